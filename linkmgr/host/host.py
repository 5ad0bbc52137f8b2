"""What drivers and wirings get of this host."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from functools import partial

from linkmgr.errors import LinkBusy, NotForwarding
from linkmgr.host import names
from linkmgr.host.bridge import join, leave, make_bridge
from linkmgr.host.devices import Device, Devices, checked, speaking
from linkmgr.host.fds import Fd
from linkmgr.host.links import Link, PortState
from linkmgr.host.macvtap import make_macvtap
from linkmgr.host.names import check_ifname
from linkmgr.host.parents import (
    check_siblings,
    parent_of_macvtap,
    why_no_macvtap,
)
from linkmgr.host.rtnl import (
    Change,
    Rtnl,
    del_link,
    forget,
    forward,
    index_of,
    set_kind_data,
)
from linkmgr.host.tap import Tap, make_tap
from linkmgr.host.threads import made_in_thread, to_the_end
from linkmgr.host.trouble import Refused
from linkmgr.model import DirectMode, Mark


class Host(Devices):
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
        self, name: str, mark: Mark, *, mtu: int, vnet_hdr: bool = False, up: bool = True
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
        make = partial(make_tap, name, mark, mtu=mtu, vnet_hdr=vnet_hdr, up=up)
        with speaking(name):
            fd = await made_in_thread(make, Fd.close)
        try:
            return Tap(await self.link(name), fd)
        except BaseException:
            await fd.close_in_thread()
            raise

    async def open_macvtap(
        self,
        name: str,
        parent: str,
        mark: Mark,
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
        below = await parent_of_macvtap(self._reader, parent)
        if not below.up:
            raise LinkBusy(
                f"{parent} is down, so nothing can be reached through it",
                hint=f"bring it up: 'ip link set {parent} up'",
            )
        make = partial(make_macvtap, name, below.index, mark, mode=mode, mac=mac, mtu=mtu, up=up)
        try:
            fd = await made_in_thread(make, partial(_discard_macvtap, name))
        except Refused as refused:
            raise await why_no_macvtap(
                self._reader, refused, name, parent, mode=mode, mac=mac, mtu=mtu
            ) from refused
        try:
            return Tap(await self.link(name), fd)
        except BaseException:
            await to_the_end(_discard_macvtap, name, fd)
            raise

    async def parent_usable(
        self, parent: str, mode: DirectMode, *, owner: str | None = None
    ) -> Link:
        """Check that a macvtap of this mode can be put on `parent`; bring that up if it is down.

        :param owner: of marks, a NIC. A macvtap that it has there already is in nobody's way.
        :raise LinkMissing: when there is no such device.
        :raise LinkBusy: when it is a port of something else, or there are macvtaps on it that
            exclude this one.
        :raise Unsupported: when it is no Ethernet device.
        """
        below = await parent_of_macvtap(self._reader, parent)
        await check_siblings(self._reader, below, mode, owner)
        if not below.up:
            await self.set_up(below.index)
            below = await self.link(below.index)
        return below

    async def set_macvtap_mode(self, name_or_index: Device, mode: DirectMode) -> None:
        """Change the mode of a macvtap that exists; not into passthru nor out of it.

        :raise LinkMissing: when there is none.
        :raise HostError: for passthru.
        """
        data = {"IFLA_MACVTAP_MODE": mode.value}
        change = set_kind_data(
            f"set {name_or_index} to mode {mode}", checked(name_or_index), "macvtap", data
        )
        await self._change_in_thread(name_or_index, change)

    # --- bridges ---

    async def create_bridge(self, name: str, mark: Mark, *, mtu: int) -> Link:
        """Make a bridge that is up and silent: no IPv6, no spanning tree, no snooping.

        :param mtu: bytes; it does not follow the ports.
        :raise NameTaken: when there is a device of that name.
        """
        check_ifname(name)
        with speaking(name):
            await made_in_thread(partial(make_bridge, name, mark, mtu=mtu), lambda _: _remove(name))
        try:
            return await self.link(name)
        except BaseException:
            await to_the_end(_remove, name)
            raise

    async def attach_to_bridge(
        self,
        name: str,
        bridge: str,
        *,
        isolated: bool,
        hairpin: bool,
        learning: bool,
        timeout: float = 35.0,
    ) -> None:
        """Make a device a port of a bridge and wait until the bridge forwards to it.

        A device that is down gets its options first and is brought up then, so they hold from the
        first frame on. A device that is up forwards with default options for some 10 us. A device
        that is a port of this bridge already gets the options.

        :param timeout: seconds. A spanning tree takes twice its forward delay, 30 s by default.
        :raise LinkMissing: when one of them does not exist.
        :raise LinkBusy: when `bridge` is no bridge, or the device is a port of another.
        :raise NotForwarding: when the bridge is down or the time is over; the device is off the
            bridge then, if it was before.
        """
        port, over = await self.link(name), await self._bridge(bridge)
        if port.master not in {None, over.index}:
            raise LinkBusy(
                f"{name} is a port of {await self._reader.name_of(port.master)} already",
                hint=f"take it off: 'ip link set {name} nomaster'",
            )
        if not over.up:
            raise NotForwarding(
                f"bridge {bridge} is down, so it forwards nothing to {name}",
                hint=f"bring it up: 'ip link set {bridge} up'",
            )
        joining = port.master is None
        put = partial(
            join,
            port.index,
            name,
            over.index if joining else None,
            isolated=isolated,
            hairpin=hairpin,
            learning=learning,
            bring_up=not port.up,
        )
        take_off = partial(_attempt, leave(port.index, name))
        with speaking(name):
            if not joining:
                await to_the_end(put)
            else:
                await made_in_thread(put, lambda _: take_off())
        try:
            await self._wait_until_forwarding(name, bridge, timeout)
        except BaseException:
            if joining:
                await to_the_end(take_off)
            raise

    async def detach_from_bridge(self, name: str) -> None:
        """Take a device off the bridge that it is a port of; nothing happens if it is of none.

        :raise LinkMissing: when there is no such device.
        """
        await self._change_in_thread(name, leave(check_ifname(name), name))

    async def forwarding(self, bridge: str, device: str) -> set[str]:
        """Return the addresses that a bridge forwards to this port: learned and static ones.

        :raise LinkMissing: when one of them does not exist.
        """
        with speaking(bridge):
            over = index_of(check_ifname(bridge))
        with speaking(device):
            port = index_of(check_ifname(device))
        return await self._reader.forwarding(over, port)

    async def move_forwarding(
        self, macs: Iterable[str], device: str, *, bridge: str, static: bool = False
    ) -> None:
        """Make a bridge deliver frames for `macs` to its port `device` from now on.

        Takes about 0.1 ms for one, without giving the event loop a turn. With several VLANs the
        kernel does it in each VLAN of the port.

        :param bridge: the bridge that `device` is a port of, for the errors.
        :param static: whether the entry does not age; for a port that does not learn.
        :raise LinkMissing: when there is no such device.
        :raise NotForwarding: when it is no port of a bridge, or one that does not forward yet.
        """
        with speaking(device):
            port = index_of(check_ifname(device))
            try:
                self._opened[1].change(*(forward(mac, port, static=static) for mac in macs))
            except Refused as refused:
                link = await self.find_link(device)
                # EPERM is the answer for a port that listens, and for a missing capability.
                is_port = link is not None and link.port_state is not None
                answers = {errno.EPERM} if is_port else {errno.EOPNOTSUPP, errno.EINVAL}
                if link and refused.code in answers and link.port_state != PortState.FORWARDING:
                    raise NotForwarding(
                        f"{device} is {_port_state(link, bridge)}, so it cannot have addresses",
                        hint=f"look at 'bridge -d link show dev {device}'",
                    ) from refused
                raise

    async def flood(self, macs: Iterable[str], device: str) -> None:
        """Make a bridge forget that `macs` are behind its port `device`.

        Until it learns or is told where they are it delivers to all its ports: nothing gets lost
        while a NIC moves from one port to another.

        :raise LinkMissing: when there is no such device.
        """
        with speaking(device):
            port = index_of(check_ifname(device))
            for refused in self._opened[1].attempt([forget(mac, port) for mac in macs]):
                if refused is not None and refused.code != errno.ENOENT:
                    raise refused

    async def _bridge(self, name: str) -> Link:
        link = await self._reader.link(name, "a bridge")
        if link.kind != "bridge":
            raise LinkBusy(
                f"{name} is not a bridge but a {link.kind or 'plain'} device",
                hint="name a bridge; 'ip link show type bridge' lists them",
            )
        return link

    async def _wait_until_forwarding(self, name: str, bridge: str, timeout: float) -> None:
        end = asyncio.get_running_loop().time() + timeout
        pause = 0.001
        while True:
            link = await self.link(name)
            if link.port_state is PortState.FORWARDING:
                return
            left = end - asyncio.get_running_loop().time()
            if link.port_state is None or left <= 0:
                raise NotForwarding(
                    f"{name} is {_port_state(link, bridge)} after {timeout - left:.1f} s",
                    hint=f"look at 'bridge -d link show dev {name}'; a spanning tree takes twice "
                    f"its forward delay, see 'ip -d link show {bridge}'",
                )
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, 0.1)  # nothing to wait for without a spanning tree, 30 s with


def _port_state(link: Link, bridge: str) -> str:
    if link.port_state is None:
        return f"no port of {bridge}"
    return f"a port of {bridge} in the state {link.port_state.name.lower()}"


def _attempt(change: Change) -> None:
    with Rtnl() as rtnl:
        rtnl.attempt([change])


def _remove(name: str) -> None:
    _attempt(del_link(name))


def _discard_macvtap(name: str, fd: Fd) -> None:
    fd.close()
    _remove(name)
