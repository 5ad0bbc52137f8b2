"""The reserved network ``fd``: taps and macvtaps that callers open themselves and hand over.

Each fd that was left (`linkmgr.host.fds.registry`) is a port of it. Nobody creates the network or a
port, and two of its ports have nothing to do with each other.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar, NoReturn

from linkmgr.drivers.base import Attachment, NetworkDriver
from linkmgr.errors import BadName, MtuTooLarge
from linkmgr.host import Host, new_id
from linkmgr.host.fds.registry import port_name
from linkmgr.model import (
    Drift,
    EndpointKind,
    FdEndpoint,
    Network,
    Offer,
    Options,
    Port,
)

#: An fd that is gone cannot be had again, so nothing of it is ever repaired.
FD_NETWORK = Network("fd", "fd", drift=Drift.REPORT)


def refuse_reserved(network: str) -> None:
    """Refuse to create or delete the network ``fd``.

    :raise BadName: when that is the name.
    """
    if network == FD_NETWORK.name:
        _raise_reserved()


def fd_port(uid: int, name: str) -> Port:
    """The port for an fd that `uid` has left under `name`, or may yet.

    :param name: empty when only the network was named.
    :raise BadName: when it cannot be a name.
    :raise UnknownPort: when it is the name of another uid.
    """
    if not name:
        raise BadName(
            "the network fd alone does not name an fd",
            hint="write fd:NAME, with the name under which the fd was left",
        )
    return Port(FD_NETWORK, port_name(uid, name))


class FdAttachment(Attachment):
    """A NIC's claim on an fd."""

    def __init__(
        self, host: Host, ident: str, offer: Offer, port: Port, kind: EndpointKind
    ) -> None:
        super().__init__(ident, offer, port, kind)
        self._host = host

    async def realise(self) -> FdEndpoint:
        """See `Attachment.realise`. Looks at the fd once more; nothing is made.

        :raise BadFd: when its device was deleted since it was left.
        :raise MtuTooLarge: when it carries larger frames than the NIC can take.
        """
        found = await self._host.fds.recheck(self.id)
        if found is None:
            return FdEndpoint(self.port.name)
        if found.mtu is not None and found.mtu > self.offer.mtu:
            raise MtuTooLarge(
                f"device {found.device}, fd {self.port.name}, carries {found.mtu} bytes, but the "
                f"NIC is known to take only {self.offer.mtu}",
                hint=f"give the device the MTU {self.offer.mtu}",
                mtu=found.mtu,
            )
        return FdEndpoint(self.port.name, found.device, vnet_hdr=found.vnet_hdr, mtu=found.mtu)

    async def activate(self) -> None:
        """See `Attachment.activate`. From now on the fd is not given back."""
        self._host.fds.commit(self.id)


class FdDriver(NetworkDriver):
    """Supplies ``fd`` endpoints. The devices are the callers': nothing of them is changed."""

    name: ClassVar[str] = "fd"
    kinds: ClassVar[tuple[EndpointKind, ...]] = (EndpointKind.FD,)
    network_options = MappingProxyType({})
    port_options = MappingProxyType({})

    def check_network(self, network: Network) -> Options:
        """See `NetworkDriver.check_network`.

        :raise BadName: always.
        """
        super().check_network(network)
        _raise_reserved()

    def check_port(self, port: Port) -> Options:
        """See `NetworkDriver.check_port`.

        :raise BadName: always.
        """
        super().check_port(port)
        _raise_reserved()

    async def init_attachment(
        self, offer: Offer, port: Port, *, ident: str | None = None
    ) -> FdAttachment:
        """See `NetworkDriver.init_attachment`.

        :raise UnknownPort: when no fd waits under the name.
        :raise PortInUse: when another NIC is plugged into the same device.
        """
        kind = self.negotiate(offer, port)
        if ident is not None:
            self.host.fds.restore(port.name, ident, offer.nic)
            return FdAttachment(self.host, ident, offer, port, kind)
        attachment = FdAttachment(self.host, new_id(), offer, port, kind)
        await self.host.fds.claim(port.name, attachment.id, offer.nic)
        return attachment

    async def terminate_attachment(self, attachment: Attachment) -> None:
        """See `NetworkDriver.terminate_attachment`. What no NIC was on waits again."""
        await self.host.fds.release(attachment.id)


def _raise_reserved() -> NoReturn:
    raise BadName(
        "the network fd is reserved for fds that are handed over: nobody creates or deletes it",
        hint="leave an fd on the service's fd socket and plug into fd:NAME; see docs/fd.md",
    )
