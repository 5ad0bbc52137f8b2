"""Reading the devices of this host, and changing one thing of one device."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Self

from linkmgr.aio.threads import run_in_thread
from linkmgr.errors import HostError, LinkBusy
from linkmgr.host.devices.ipv6_off import disable_ipv6
from linkmgr.host.devices.macvlan_parent import address_taken_error
from linkmgr.host.fds.registry import FdRegistry
from linkmgr.host.fds.store import FdStore, NullFdStore
from linkmgr.host.names import check_ifname
from linkmgr.host.netlink import dump
from linkmgr.host.netlink.changes import (
    IFF_ALLMULTI,
    IFF_PROMISC,
    IFF_UP,
    NetlinkRequest,
    Rtnl,
    del_link,
    set_link,
)
from linkmgr.host.netlink.errors import KernelRefused, to_host_error
from linkmgr.host.netlink.link import NetDevice
from linkmgr.host.netlink.reader import NetlinkReader
from linkmgr.model import OwnerTag

DeviceKey = int | str  #: index or name


class Devices:
    """The part of `linkmgr.host.Host` that is about any device; see there."""

    def __init__(self, fd_store: FdStore | None = None) -> None:
        self.fd_store: FdStore = fd_store or NullFdStore()
        self.fds = FdRegistry()
        self._open: tuple[NetlinkReader, Rtnl] | None = None

    async def __aenter__(self) -> Self:
        self._open = NetlinkReader(), Rtnl()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.fds.close()
        (_, rtnl), self._open = self._opened, None
        rtnl.close()

    async def device(self, name: DeviceKey) -> NetDevice:
        """Return a device, by its name or index. Takes about 0.2 ms, in a thread.

        :raise LinkMissing: when there is none.
        """
        return await self._reader.device(name)

    async def find_device(self, name: DeviceKey) -> NetDevice | None:
        """Return a device, by its name or index, or ``None``."""
        return await self._reader.find_device(name)

    async def find_devices(self, names: Collection[str]) -> dict[str, NetDevice]:
        """Return some devices, by what was asked for, without those that are not there.

        Each takes some 25 us, however many others this host has and however they change.
        """
        return await self._reader.find_devices(names)

    async def list_devices(self, *, consistent: bool = True) -> list[NetDevice]:
        """Return all devices. Takes some 20 us for each, in a thread.

        :param consistent: ``False`` if devices that come or go meanwhile may be missing: never
            before something is deleted because it is not in the list.
        """
        return await self._reader.list_devices(consistent=consistent)

    async def tagged_devices(self) -> list[tuple[OwnerTag, NetDevice]]:
        """Return the devices that carry our tag."""
        found = [(device.owner_tag, device) for device in await self._reader.list_devices()]
        return [(tag, device) for tag, device in found if tag is not None]

    async def delete_device(self, name_or_index: DeviceKey) -> bool:
        """Remove a device, whosever it is; return ``False`` when it is already gone.

        Takes 10 to 40 ms.

        :raise Unsupported: when it cannot be removed, such as hardware.
        """
        try:
            await self._change_in_thread(name_or_index, del_link(device_key(name_or_index)))
        except HostError as error:
            if _code(error) in {errno.ENODEV, errno.ENXIO}:
                return False
            raise
        return True

    async def set_up(self, name_or_index: DeviceKey) -> None:
        """Bring a device up.

        :raise LinkMissing: when there is none.
        :raise LinkBusy: for a macvtap whose address another one on its parent has.
        """
        await self._set(name_or_index, "bring {} up", on=IFF_UP)

    async def disable_ipv6(self, device: NetDevice) -> None:
        """Switch IPv6 off on a device; see `linkmgr.host.devices.ipv6_off`.

        :raise HostError: when it cannot be done.
        """
        with naming_device(device.name):
            await run_in_thread(_disable_ipv6, device.name)

    async def set_down(self, name_or_index: DeviceKey) -> None:
        """Take a device down; about 10 ms for a macvtap.

        :raise LinkMissing: when there is none.
        """
        await self._set(name_or_index, "take {} down", off=IFF_UP)

    async def set_mtu(self, name_or_index: DeviceKey, mtu: int) -> None:
        """Set how many bytes a device carries.

        :raise LinkMissing: when there is none.
        :raise HostError: when it cannot carry as many.
        """
        await self._set(name_or_index, f"set the MTU of {{}} to {mtu}", mtu=mtu)

    async def set_mac(self, name_or_index: DeviceKey, mac: str) -> None:
        """Set the address of a device; it need not be down.

        Takes about 0.2 ms, for a macvtap that is up 8 to 16 ms, in which it receives nothing: the
        kernel waits for an RCU grace period. No frame is sent.

        :raise LinkMissing: when there is none.
        :raise LinkBusy: for a macvtap when another one on its parent has this address.
        """
        try:
            await self._set(name_or_index, f"give {{}} the address {mac}", address=mac)
        except LinkBusy as error:
            raise await self._who_has(mac, name_or_index, error) from error

    async def set_alias(self, name_or_index: DeviceKey, alias: OwnerTag | str) -> None:
        """Set the interface alias, where our tag is.

        :raise LinkMissing: when there is none.
        """
        await self._set(name_or_index, "tag {}", ifalias=str(alias))

    async def rename(self, device: NetDevice, name: str) -> None:
        """Give a device another name, also while it is up and in use. Takes some 20 ms.

        :raise LinkMissing: when it is gone.
        :raise NameTaken: when there is another device of that name.
        :raise LinkBusy: when it is up and the kernel renames no such device: before Linux 6.2.
        """
        action = f"rename {device.name} to {check_ifname(name)}"
        await self._change_in_thread(name, set_link(action, device.index, ifname=name))

    async def set_promiscuity(self, name_or_index: DeviceKey, on: bool) -> None:
        """Set whether a device receives everything. On a macvtap only passthru makes it true.

        :raise LinkMissing: when there is none.
        """
        flag = {"on" if on else "off": IFF_PROMISC}
        await self._set(name_or_index, "set promiscuity of {}", **flag)

    async def traffic_control(self, index: int) -> list[str]:
        """Return the kinds of traffic control (tc(8)) that somebody has set on a device."""
        with naming_device(index):
            return await run_in_thread(dump.list_qdiscs, index)

    async def set_allmulti(self, name_or_index: DeviceKey) -> None:
        """Have a device receive all multicast.

        :raise LinkMissing: when there is none.
        """
        await self._set(name_or_index, "have {} take all multicast", on=IFF_ALLMULTI)

    async def set_carrier(self, name_or_index: DeviceKey) -> None:
        """Give a tap its carrier back.

        :raise LinkMissing: when there is none.
        """
        await self._set(name_or_index, "set the carrier of {}", carrier=1)

    @property
    def _opened(self) -> tuple[NetlinkReader, Rtnl]:
        if self._open is None:
            raise RuntimeError("a Host is open only inside its 'async with'")
        return self._open

    @property
    def _reader(self) -> NetlinkReader:
        return self._opened[0]

    async def _who_has(self, mac: str, device: DeviceKey, error: LinkBusy) -> LinkBusy:
        net_device = await self.find_device(device)
        if (
            net_device is None
            or net_device.parent is None
            or net_device.kind not in {"macvtap", "macvlan"}
        ):
            return error
        return await address_taken_error(self._reader, net_device.name, net_device.parent, mac)

    async def _set(self, device: DeviceKey, action: str, **attrs: Any) -> None:
        request = set_link(action.format(device), device_key(device), **attrs)
        await self._change_in_thread(device, request)

    async def _change_in_thread(self, device: DeviceKey, request: NetlinkRequest) -> None:
        with naming_device(device):
            await run_in_thread(_do, request)


def device_key(device: DeviceKey) -> DeviceKey:
    """Return an index as it is, and a name if it can be one.

    :raise BadName: otherwise.
    """
    return device if isinstance(device, int) else check_ifname(device)


@contextmanager
def naming_device(device: DeviceKey) -> Iterator[None]:
    """Turn a refusal of the kernel into the error that names the device."""
    try:
        yield
    except KernelRefused as refused:
        raise to_host_error(refused, device) from refused


def _code(error: HostError) -> int | None:
    cause = error.__cause__
    return cause.code if isinstance(cause, KernelRefused) else None


def _disable_ipv6(name: str) -> None:
    with Rtnl() as rtnl:
        disable_ipv6(rtnl, name)


def _do(request: NetlinkRequest) -> None:
    with Rtnl() as rtnl:
        rtnl.change(request)
