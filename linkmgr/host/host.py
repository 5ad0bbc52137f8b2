"""What drivers and wirings get of this host."""

from __future__ import annotations

from functools import partial

from linkmgr.aio.threads import create_in_thread, run_in_thread
from linkmgr.errors import LinkBusy
from linkmgr.host import names
from linkmgr.host.bridge_ports import BridgePorts
from linkmgr.host.devices.bridge import make_bridge
from linkmgr.host.devices.macvlan_parent import (
    check_siblings,
    explain_macvtap_refusal,
    resolve_macvtap_parent,
)
from linkmgr.host.devices.macvtap import make_macvtap
from linkmgr.host.devices.tap import Tap, make_tap
from linkmgr.host.fd import Fd
from linkmgr.host.links import DeviceKey, device_key, naming_device
from linkmgr.host.names import check_ifname
from linkmgr.host.netlink.changes import (
    Rtnl,
    del_link,
    set_kind_data,
)
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.host.netlink.link import NetDevice
from linkmgr.model import DirectMode, OwnerTag
from linkmgr.text.untrusted import ip_device


class Host(BridgePorts):
    """The network devices of this host, in the network namespace of the process.

    An async context manager, to be used in the event loop that entered it. Whatever the kernel
    refuses is raised as a `HostError` that names the device. Any method may raise `Denied` when a
    capability is missing, and `BadName` for a name that no device can have.

    Reading is asynchronous. A change is one short synchronous piece, in a thread where the kernel
    sleeps, so it is made entirely or not at all, also when the caller is cancelled.
    """

    private_mac = staticmethod(names.private_mac)
    tap_mac = staticmethod(names.tap_mac)

    # --- taps ---

    async def open_tap(
        self, name: str, tag: OwnerTag, *, mtu: int, vnet_hdr: bool = False, up: bool = True
    ) -> Tap:
        """Make a tap: one queue, not persistent, silent, with an address that begins with fe:.

        :param mtu: bytes.
        :param vnet_hdr: whether frames carry a virtio-net header; not for a hub.
        :param up: ``False`` when `attach_to_bridge` brings it up: then its port's options hold from
            the first frame on.
        :raise NameTaken: when there is a device of that name.
        :raise Unsupported: when this host has no /dev/net/tun.
        """
        check_ifname(name)
        make = partial(make_tap, name, tag, mtu=mtu, vnet_hdr=vnet_hdr, up=up)
        with naming_device(name):
            fd = await create_in_thread(make, Fd.close)
        try:
            return Tap(await self.device(name), fd)
        except BaseException:
            await fd.close_in_thread()
            raise

    async def open_macvtap(
        self,
        name: str,
        parent: str,
        tag: OwnerTag,
        *,
        mode: DirectMode,
        mac: str,
        mtu: int,
        up: bool = True,
    ) -> Tap:
        """Make a macvtap on `parent`: silent, and with all multicast from the start.

        In passthru mode the parent takes this address too, as long as the macvtap lives.

        :param mtu: bytes, at most what the parent carries.
        :param up: ``False`` leaves it down: it may then have an address that is in use on the
            parent, and receives nothing.
        :raise NameTaken: when there is a device of that name.
        :raise LinkMissing: when there is no such parent.
        :raise LinkBusy: when the parent is down, a port of something else or in a passthru that
            excludes this, or the address is taken on it.
        :raise HostError: when the parent carries less than `mtu`.
        :raise Unsupported: when the parent cannot carry a macvtap, or sysfs does not show it.
        """
        check_ifname(name)
        lower = await resolve_macvtap_parent(self._reader, parent)
        if not lower.up:
            raise LinkBusy(
                f"{parent} is down, so nothing can be reached through it",
                hint=f"bring it up: 'ip link set {ip_device(parent)} up'",
            )
        make = partial(make_macvtap, name, lower.index, tag, mode=mode, mac=mac, mtu=mtu, up=up)
        try:
            fd = await create_in_thread(make, partial(_discard_macvtap, name))
        except KernelRefused as refused:
            raise await explain_macvtap_refusal(
                self._reader, refused, name, parent, mode=mode, mac=mac, mtu=mtu
            ) from refused
        try:
            return Tap(await self.device(name), fd)
        except BaseException:
            await run_in_thread(_discard_macvtap, name, fd)
            raise

    async def ensure_parent_usable(
        self, parent: str, mode: DirectMode, *, owner: str | None = None
    ) -> NetDevice:
        """Check that a macvtap of this mode can be put on `parent`; bring that up if it is down.

        :param owner: of tags, a NIC. A macvtap that it has there already is in nobody's way.
        :raise LinkMissing: when there is no such device.
        :raise LinkBusy: when it is a port of something else, or there are macvtaps on it that
            exclude this one.
        :raise Unsupported: when it is no Ethernet device.
        """
        lower = await resolve_macvtap_parent(self._reader, parent)
        await check_siblings(self._reader, lower, mode, owner)
        if not lower.up:
            await self.set_up(lower.index)
            lower = await self.device(lower.index)
        return lower

    async def set_macvtap_mode(self, name_or_index: DeviceKey, mode: DirectMode) -> None:
        """Change the mode of a macvtap that exists; not into passthru nor out of it.

        :raise LinkMissing: when there is none.
        :raise HostError: for passthru.
        """
        data = {"IFLA_MACVTAP_MODE": mode.value}
        request = set_kind_data(
            f"set {name_or_index} to mode {mode}", device_key(name_or_index), "macvtap", data
        )
        await self._change_in_thread(name_or_index, request)

    # --- bridges ---

    async def create_bridge(self, name: str, tag: OwnerTag, *, mtu: int) -> NetDevice:
        """Make a bridge that is up and silent: no IPv6, no spanning tree, no snooping.

        :param mtu: bytes; it does not follow the ports.
        :raise NameTaken: when there is a device of that name.
        """
        check_ifname(name)
        with naming_device(name):
            await create_in_thread(
                partial(make_bridge, name, tag, mtu=mtu), lambda _: _remove(name)
            )
        try:
            return await self.device(name)
        except BaseException:
            await run_in_thread(_remove, name)
            raise


def _remove(name: str) -> None:
    with Rtnl() as rtnl:
        rtnl.try_all([del_link(name)])


def _discard_macvtap(name: str, fd: Fd) -> None:
    fd.close()
    _remove(name)
