"""Networks that are reached directly through a device of this host (macvtap, macvlan)."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar

from linkmgr.drivers.base import Attachment, NetworkDriver
from linkmgr.drivers.mtu import check_mtu
from linkmgr.drivers.options import MTU, Option
from linkmgr.host import Host, new_id
from linkmgr.host.names import check_any_name
from linkmgr.model import DirectEndpoint, DirectMode, EndpointKind, Network, Offer, Options, Port


class DirectAttachment(Attachment):
    """A NIC's claim on a place on a parent device."""

    def __init__(
        self,
        host: Host,
        claim: tuple[str, Offer, Port, EndpointKind],
        settings: dict[str, object],
    ) -> None:
        super().__init__(*claim)
        self._host = host
        self._settings = settings

    async def realise(self) -> DirectEndpoint:
        """See `Attachment.realise`. Brings the parent up if it is down."""
        name = str(self._settings["parent"])
        mode = DirectMode(str(self._settings["mode"]))
        parent = await self._host.ensure_parent_usable(name, mode, owner=str(self.offer.nic))
        network_mtu = self._settings["mtu"]
        assert network_mtu is None or isinstance(network_mtu, int)
        check_mtu(
            self.offer, self.port, network_mtu=network_mtu, device=name, device_mtu=parent.mtu
        )
        return DirectEndpoint(
            parent=parent.name,  # what was named may be an altname, or a macvlan on it
            mode=mode,
            # A macvtap can carry less than its parent, never more.
            mtu=network_mtu or parent.mtu,
            trust_guest=bool(self._settings["trust_guest"]),
        )


class DirectDriver(NetworkDriver):
    """Supplies ``direct`` endpoints. The parent is the operator's: it is never removed."""

    name: ClassVar[str] = "direct"
    kinds: ClassVar[tuple[EndpointKind, ...]] = (EndpointKind.DIRECT,)
    network_options = MappingProxyType(
        {
            "parent": Option(str, "the name of the device to sit on", required=True),
            "mode": Option(
                DirectMode,
                "how neighbours on the parent reach each other",
                default=DirectMode.BRIDGE,
            ),
            "mtu": MTU,
        }
    )
    port_options = MappingProxyType(
        {
            "trust_guest": Option(bool, "whether the guest may change its address", default=False),
        }
    )

    def check_network(self, network: Network) -> Options:
        """See `NetworkDriver.check_network`.

        :raise BadName: when the parent's name cannot be that of a device.
        """
        options = super().check_network(network)
        check_any_name(str(options["parent"]))
        return options

    async def missing(self, network: Network) -> str | None:
        """See `NetworkDriver.missing`."""
        name = str(network.options["parent"])
        if await self.host.find_device(name) is None:
            return f"there is no device {name} yet: see 'ip link', and name one that is there"
        return None

    async def init_attachment(
        self, offer: Offer, port: Port, *, ident: str | None = None
    ) -> DirectAttachment:
        """See `NetworkDriver.init_attachment`."""
        claim = (ident or new_id(), offer, port, self.negotiate(offer, port))
        return DirectAttachment(self.host, claim, self.settings(port))

    async def terminate_attachment(self, attachment: Attachment) -> None:
        """See `NetworkDriver.terminate_attachment`. The wiring removed the macvtap already."""
