"""What all parts of the running service share."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Protocol

from linkmgr.errors import LibvirtUnreachable
from linkmgr.model import (
    Affects,
    DomainInfo,
    Finding,
    LinkState,
    Network,
    NicRef,
    Notify,
    Outcome,
    Port,
)
from linkmgr.protocol import Links
from linkmgr.service.access import Access
from linkmgr.service.config import Config, Limits
from linkmgr.service.configured import Configured
from linkmgr.service.metrics import Metrics
from linkmgr.service.operations import Operations
from linkmgr.service.peers import Peer
from linkmgr.service.stream import Stream


class Served(Links, Protocol):
    """The verbs as the service needs them: `LinkManager` has them so."""

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | Notify = Notify.AUTO,
        uid: int | None = None,
    ) -> Outcome:
        """Plug a NIC; ``fd:NAME`` is an fd that user `uid` left."""


class HookAnswer(Protocol):
    """What libvirt's hook is answered."""

    @property
    def ok(self) -> bool:
        """Whether libvirt should go on."""

    @property
    def said(self) -> str:
        """Why not, or what was done."""


class HookCare(Protocol):
    """Who looks after libvirt's domains."""

    async def on_hook(
        self, operation: str, sub_operation: str, extra: str, domain_xml: str
    ) -> HookAnswer:
        """Hear what becomes of a domain, before libvirt goes on; never asks libvirt."""


class GuestVerbs(Protocol):
    """The verbs for guests, which can also be about their next start."""

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | Notify = Notify.AUTO,
        uid: int | None = None,
        affects: str | Affects = Affects.LIVE,
    ) -> Outcome:
        """Plug a NIC, now or from its next start on."""

    async def unplug(self, nic: str | NicRef, *, affects: str | Affects = Affects.LIVE) -> Outcome:
        """Take a NIC off its cable."""

    async def set_link(
        self,
        nic: str | NicRef,
        state: str | LinkState,
        *,
        affects: str | Affects = Affects.LIVE,
    ) -> Outcome:
        """Set what the guest sees as carrier."""


class GuestCare(HookCare, Protocol):
    """Who looks after libvirt's domains, and what they are asked beside the hook."""

    @property
    def verbs(self) -> GuestVerbs:
        """The verbs, for all guests, libvirt's or not."""

    async def domains(self) -> list[DomainInfo]:
        """All guests of libvirt on this host."""

    async def check(self) -> list[Finding]:
        """What domains ask for and is not so."""


class PlainVerbs:
    """The verbs of a service that looks after no domains."""

    def __init__(self, links: Served) -> None:
        self._links = links

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | Notify = Notify.AUTO,
        uid: int | None = None,
        affects: str | Affects = Affects.LIVE,
    ) -> Outcome:
        """See `GuestVerbs.plug`."""
        _only_live(affects)
        return await self._links.plug(nic, target, notify=notify, uid=uid)

    async def unplug(self, nic: str | NicRef, *, affects: str | Affects = Affects.LIVE) -> Outcome:
        """See `GuestVerbs.unplug`."""
        _only_live(affects)
        return await self._links.unplug(nic)

    async def set_link(
        self,
        nic: str | NicRef,
        state: str | LinkState,
        *,
        affects: str | Affects = Affects.LIVE,
    ) -> Outcome:
        """See `GuestVerbs.set_link`."""
        _only_live(affects)
        return await self._links.set_link(nic, state)


def _only_live(affects: str) -> None:
    if affects != Affects.LIVE:
        raise LibvirtUnreachable(
            "the service is told to do without libvirt, which has the next start of its guests",
            hint="give it a uri in the section [libvirt] of its configuration",
        )


class Core:
    """The verbs, the configuration in force, and what watches over them. Made in the event loop.

    :param links: the verbs.
    :param record: where the names of the configuration's networks are kept; ``None`` keeps none.
    :param care: looks after libvirt's domains; ``None`` looks after none.
    """

    def __init__(
        self,
        links: Served,
        config: Config,
        *,
        record: Path | None = None,
        care: HookCare | None = None,
    ) -> None:
        self.links = links
        self.care = care
        self.guests: GuestCare | None = None
        self.config = config
        self.access = Access(config.access)
        self.metrics = Metrics()
        self.configured = Configured(links, record)
        self.epoch = secrets.token_hex(4)
        self.operations = Operations(self.epoch, self.limits, self.metrics.on_operation)
        self.stream = Stream(self.epoch, self.limits, self.metrics.on_event)

    @property
    def verbs(self) -> GuestVerbs:
        """The verbs for guests."""
        return self.guests.verbs if self.guests else PlainVerbs(self.links)

    def look_after(self, guests: GuestCare) -> None:
        """Have libvirt's domains looked after."""
        self.care = self.guests = guests

    def limits(self) -> Limits:
        """The limits in force."""
        return self.config.limits

    def is_master(self, peer: Peer) -> bool:
        """Whether it is root or the service's own user."""
        return self.access.is_master(peer)

    async def use(self, config: Config) -> None:
        """Put a configuration in force. Touches no cable."""
        self.access = Access(config.access)
        self.config = config
        await self.configured.use(config.networks)
