"""Networks that are a Linux bridge of this host."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import ClassVar

from linkmgr.drivers.base import Attachment, NetworkDriver
from linkmgr.drivers.mtu import check_mtu
from linkmgr.drivers.options import MTU, Option
from linkmgr.errors import LinkBusy, LinkMissing
from linkmgr.host import Host, NetDevice, new_id
from linkmgr.host.names import check_any_name, check_ifname
from linkmgr.host.netlink.link import DEVICE_GROUP
from linkmgr.host.untagged import untagged
from linkmgr.model import (
    DEFAULT_MTU,
    BridgeEndpoint,
    EndpointKind,
    Network,
    Offer,
    Options,
    OwnerTag,
    Port,
)
from linkmgr.text.untrusted import ip_device


class BridgeAttachment(Attachment):
    """A NIC's claim on a port of a bridge."""

    def __init__(
        self, driver: BridgeDriver, ident: str, offer: Offer, port: Port, kind: EndpointKind
    ) -> None:
        super().__init__(ident, offer, port, kind)
        self._driver = driver

    async def realise(self) -> BridgeEndpoint:
        """See `Attachment.realise`. Creates the bridge if the network asks for that."""
        settings = self._driver.settings(self.port)
        bridge = await self._driver.ensure_bridge(self.port.network)
        check_mtu(
            self.offer, self.port,
            network_mtu=settings["mtu"], device=bridge.name, device_mtu=bridge.mtu,
        )  # fmt: skip
        return BridgeEndpoint(
            bridge=bridge.name,
            mtu=bridge.mtu,
            isolated=settings["isolated"],
            hairpin=settings["hairpin"],
            learning=settings["learning"],
        )


class BridgeDriver(NetworkDriver):
    """Supplies ``bridge`` endpoints. Makes a bridge if asked, and then also removes it."""

    name: ClassVar[str] = "bridge"
    kinds: ClassVar[tuple[EndpointKind, ...]] = (EndpointKind.BRIDGE,)
    network_options = MappingProxyType(
        {
            "bridge": Option(str, "the name of a bridge device", required=True),
            "create": Option(bool, "whether to make the bridge if it is not there", default=False),
            "mtu": MTU,
        }
    )
    port_options = MappingProxyType(
        {
            "isolated": Option(
                bool, "whether other isolated ports are out of reach", default=False
            ),
            "hairpin": Option(
                bool, "whether frames may go back where they came from", default=False
            ),
            "learning": Option(bool, "whether the bridge learns addresses here", default=True),
        }
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._lock = asyncio.Lock()  # between making, counting and removing a bridge
        self._users: dict[str, set[str]] = {}  # bridge -> ids of attachments

    def check_network(self, network: Network) -> Options:
        """See `NetworkDriver.check_network`.

        :raise BadName: when the bridge's name cannot be that of a device.
        """
        options = super().check_network(network)
        check = check_ifname if options.get("create") else check_any_name
        check(str(options["bridge"]))
        return options

    async def missing(self, network: Network) -> str | None:
        """See `NetworkDriver.missing`."""
        name = str(network.options["bridge"])
        device = await self.host.find_device(name)
        if device is None and not network.options.get("create"):
            return (
                f"there is no bridge {name} yet: 'ip link add {ip_device(name)} type bridge' "
                "makes it, or "
                "create the network with create=true"
            )
        if device is not None and device.kind != "bridge":
            return f"{name} is no bridge: name another device, or use the driver direct"
        return None

    def may_make(self, network: Network) -> frozenset[str]:
        """See `NetworkDriver.may_make`."""
        return frozenset({str(network.options["bridge"])} if network.options.get("create") else ())

    async def init_attachment(
        self, offer: Offer, port: Port, *, ident: str | None = None
    ) -> BridgeAttachment:
        """See `NetworkDriver.init_attachment`."""
        kind = self.negotiate(offer, port)
        attachment = BridgeAttachment(self, ident or new_id(), offer, port, kind)
        bridge = self.settings(port)["bridge"]
        self._users.setdefault(bridge, set()).add(attachment.id)
        return attachment

    async def terminate_attachment(self, attachment: Attachment) -> None:
        """See `NetworkDriver.terminate_attachment`."""
        bridge = self.settings(attachment.port)["bridge"]
        self._users.get(bridge, set()).discard(attachment.id)
        await self._remove_if_idle(bridge)

    async def forget_network(self, network: Network) -> None:
        """Remove a bridge that we made and that outlived its last attachment."""
        await self._remove_if_idle(str(network.options["bridge"]))

    async def ensure_bridge(self, network: Network) -> NetDevice:
        """Return the network's bridge, up; make it if it is missing and the network says so.

        :raise LinkMissing: when it is missing and nobody asked us to make it.
        :raise LinkBusy: when the device of that name is not a bridge.
        """
        name = str(network.options["bridge"])
        async with self._lock:
            device = await self.host.find_device(name)
            if device and await self._is_untagged(device):  # a linkmgr was killed while it made it
                await self.host.delete_device(device.index)
                device = None
            if device is None:
                if not network.options.get("create"):
                    raise LinkMissing(
                        f"network {network} has no bridge: there is no device {name}",
                        hint=f"run 'ip link add {ip_device(name)} type bridge', or create the "
                        "network "
                        "anew with create=true (in Python create=True)",
                    )
                mtu = network.options.get("mtu") or DEFAULT_MTU
                assert isinstance(mtu, int)
                tag = OwnerTag.of_network(network.name, new_id())
                return await self.host.create_bridge(name, tag, mtu=mtu)
            if device.kind != "bridge":
                raise LinkBusy(
                    f"network {network} has no bridge: {name} is a {device.kind or 'plain'} device",
                    hint="name another device, or use the driver 'direct'",
                )
            if not device.up:
                if device.owner_tag and device.owner_tag.network:  # killed before it was silent
                    await self.host.disable_ipv6(device)
                await self.host.set_up(device.index)
                device = await self.host.device(device.index)
            return device

    async def _is_untagged(self, device: NetDevice) -> bool:
        if device.alias or device.group != DEVICE_GROUP:  # most often: the list costs more
            return False
        return device.index in {
            each.index for each in untagged(await self.host.list_devices(), {device.name})
        }

    async def _remove_if_idle(self, bridge: str) -> None:
        """Remove the bridge if it carries our tag, has no attachment and no port of others."""
        async with self._lock:
            if self._users.get(bridge):
                return
            self._users.pop(bridge, None)
            device = await self.host.find_device(bridge)
            if device is None or device.kind != "bridge":
                return
            if device.owner_tag is None or device.owner_tag.network is None:
                return
            devices = await self.host.list_devices()
            # Somebody may have given our bridge an uplink; pulling it would cut others off.
            if not any(device.index in (other.master, other.parent) for other in devices):
                await self.host.delete_device(device.index)
