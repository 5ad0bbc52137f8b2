"""The verbs, as `LinkManager` has them in this process and `Client` in the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from linkmgr.events import Event
from linkmgr.model import (
    Affects,
    Connection,
    DomainInfo,
    Drift,
    Finding,
    LinkState,
    Network,
    NetworkInfo,
    Nic,
    NicRef,
    NotifyMode,
    OrphanDevice,
    Outcome,
    Port,
    VmInfo,
)

ORPHAN_MIN_AGE_S = 60.0  #: how long `LinkApi.gc` leaves an orphan alone


class EventStream(Protocol):
    """The events from the call of `LinkApi.events` on; iterate over it, then close it."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def close(self) -> None:
        """Unsubscribe."""


class LinkApi(Protocol):
    """The API for NICs, networks and VMs. `LinkManager` says what each verb does."""

    async def add_vm(self, name: str, qmp: str | Path) -> list[Nic]:
        """Take charge of a running guest's NICs."""

    async def remove_vm(self, name: str) -> bool:
        """Unplug all NICs of a VM and forget it."""

    async def vms(self) -> list[VmInfo]:
        """All VMs."""

    async def create_network(
        self, name: str, driver: str, *, drift: str | Drift = Drift.REPAIR, **options: Any
    ) -> Network:
        """Describe a network."""

    async def delete_network(self, name: str) -> bool:
        """Forget a network."""

    async def networks(self) -> list[Network]:
        """All networks."""

    async def network(self, name: str) -> NetworkInfo:
        """One network with all that is known of it."""

    async def create_port(self, network: str, name: str, **options: Any) -> Port:
        """Describe a port."""

    async def delete_port(self, network: str, name: str) -> bool:
        """Forget a port."""

    async def ports(self, network: str) -> list[Port]:
        """The ports that were created on a network."""

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | NotifyMode = NotifyMode.AUTO,
    ) -> Outcome:
        """Plug a NIC into a network or port, from wherever it is."""

    async def unplug(self, nic: str | NicRef) -> Outcome:
        """Take a NIC off its cable."""

    async def set_link(self, nic: str | NicRef, state: str | LinkState) -> Outcome:
        """Set what the guest sees as carrier while the NIC is plugged."""

    async def nics(self) -> list[Nic]:
        """All NICs as they are now."""

    async def nic(self, nic: str | NicRef) -> Nic:
        """One NIC as it is now."""

    async def connections(self) -> list[Connection]:
        """All NICs that are plugged, with what they are plugged into."""

    async def check(self) -> list[Finding]:
        """Compare what should be with QEMU and the kernel."""

    async def gc(
        self, *, older_than: float = ORPHAN_MIN_AGE_S, dry_run: bool = False
    ) -> list[OrphanDevice]:
        """Remove devices that carry our tag and that nothing recorded."""

    def events(self) -> EventStream:
        """Subscribe from now on."""


class LibvirtLinkApi(LinkApi, Protocol):
    """The API of a service, which can change libvirt's guests for their next start too."""

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | NotifyMode = NotifyMode.AUTO,
        affects: str | Affects = Affects.LIVE,
    ) -> Outcome:
        """Plug a NIC; `affects` says whether now, from its next start on, or both."""

    async def unplug(self, nic: str | NicRef, *, affects: str | Affects = Affects.LIVE) -> Outcome:
        """Take a NIC off its cable."""

    async def set_link(
        self, nic: str | NicRef, state: str | LinkState, *, affects: str | Affects = Affects.LIVE
    ) -> Outcome:
        """Set what the guest sees as carrier while the NIC is plugged."""

    async def domains(self) -> list[DomainInfo]:
        """All guests of libvirt on the host."""
