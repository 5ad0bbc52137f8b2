"""The context that all parts of the running service share."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Protocol

from linkmgr.api import LinkApi
from linkmgr.hypervisors.qemu.qmp.admission import MayUse
from linkmgr.libvirt.domains.controller import DomainController
from linkmgr.model import (
    Network,
    Nic,
    NicRef,
    NotifyMode,
    Outcome,
    Port,
)
from linkmgr.service.auth.peer import Peer
from linkmgr.service.auth.policy import Access
from linkmgr.service.auth.quota import Quota, Rank
from linkmgr.service.config.declared_networks import DeclaredNetworks
from linkmgr.service.config.schema import Config, Limits
from linkmgr.service.event_log import EventLog
from linkmgr.service.metrics import Metrics
from linkmgr.service.operations import Operations
from linkmgr.state.directory import StateDirectory


class ServiceLinkApi(LinkApi, Protocol):
    """The verbs as the service needs them: `LinkManager` has them so."""

    def begin_close(self) -> None:
        """Begin nothing more; what waits for a NIC ends."""

    async def resolve(self, nic: str | NicRef) -> NicRef:
        """Which NIC a name means."""

    async def add_vm(
        self,
        name: str,
        qmp: str | Path,
        *,
        uid: int | None = None,
        may_use: MayUse | None = None,
    ) -> list[Nic]:
        """Take charge of a guest whose monitor user `uid` may use."""

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | NotifyMode = NotifyMode.AUTO,
        uid: int | None = None,
    ) -> Outcome:
        """Plug a NIC; ``fd:NAME`` is an fd that user `uid` left."""


class ServiceContext:
    """The verbs, the configuration in force, and what watches over them. Made in the event loop.

    :param api: the verbs.
    :param documents: the state directory; by default nothing is kept.
    """

    def __init__(
        self,
        api: ServiceLinkApi,
        config: Config,
        documents: StateDirectory | None = None,
    ) -> None:
        self.api = api
        #: Looks after libvirt's domains, also without libvirt. Set when the configuration is in
        #: force, for it plugs into the networks of that; before anybody is answered.
        self.domain_controller: DomainController
        self.config = config
        self.access = Access(config.access)
        self.metrics = Metrics()
        self.declared = DeclaredNetworks(api, documents or StateDirectory(None))
        self.epoch = secrets.token_hex(4)
        running = Quota(lambda: self.limits().running, self.rank)
        streams = Quota(lambda: self.limits().streams, self.rank)
        self.operations = Operations(self.epoch, self.limits, self.metrics.on_operation, running)
        self.event_log = EventLog(self.epoch, self.limits, self.metrics.on_event, streams)

    def limits(self) -> Limits:
        """The limits in force."""
        return self.config.limits

    def is_privileged(self, peer: Peer) -> bool:
        """Whether it is root or the service's own user."""
        return self.access.is_privileged(peer)

    def rank(self, peer: Peer) -> Rank:
        """How many places a user may have."""
        return self.access.rank(peer)

    async def use(self, config: Config) -> None:
        """Put a configuration in force. Touches no cable."""
        self.access = Access(config.access)
        self.config = config
        await self.declared.apply(config.networks)
