"""Ports of bridges: how a device gets onto one, and which of them hears what."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Iterable
from functools import partial

from linkmgr.errors import LinkBusy, NotForwarding
from linkmgr.host.bridge import join, keep_address, leave, take_off
from linkmgr.host.devices import Devices, speaking
from linkmgr.host.links import Link, PortState
from linkmgr.host.names import check_ifname
from linkmgr.host.rtnl import (
    IFF_UP,
    Change,
    forget,
    forward,
    index_of,
    is_up,
    set_link,
    set_port_state,
)
from linkmgr.host.threads import made_in_thread, to_the_end
from linkmgr.host.trouble import Refused

log = logging.getLogger(__name__)

#: Why a port cannot be shut that passes nothing: it is down, or no port any more.
_SHUT_ANYWAY = frozenset({errno.ENETDOWN, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP})


class Ports(Devices):
    """What `Host` does with the ports of bridges."""

    async def attach_to_bridge(
        self,
        name: str,
        bridge: str,
        *,
        isolated: bool,
        hairpin: bool,
        learning: bool,
        up: bool = True,
        timeout: float = 35.0,
    ) -> None:
        """Make a device a port of a bridge and wait until the bridge forwards to it.

        A device that is down gets its options first and is brought up then, so they hold from the
        first frame on. A device that is up forwards with default options for some 10 us. A device
        that is a port of this bridge already gets the options.

        A bridge with none but ports of ours has its address set before, to the one that it has: see
        `linkmgr.host.bridge.keep_address`.

        :param up: ``False`` leaves a device that is down as it is, and does not wait.
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
            bring_up=up and not port.up,
        )
        undo = partial(take_off, port.index, name)
        if joining:
            with speaking(bridge):
                kept = await to_the_end(keep_address, over.index, bridge)
            if kept is not None:
                log.info("bridge %s keeps its address %s, whichever taps come and go", bridge, kept)
        with speaking(name):
            if not joining:
                await to_the_end(put)
            else:
                await made_in_thread(put, lambda _: undo())
        if not up:
            return
        try:
            await self._wait_until_forwarding(name, bridge, timeout)
        except BaseException:
            if joining:
                await to_the_end(undo)
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
                raise await self._why_not(device, bridge, refused) from refused

    async def cross(
        self, macs: Iterable[str], old: str, new: str, *, bridge: str, static: bool = False
    ) -> None:
        """Shut the bridge port `old`, bring `new` up and have `macs` forwarded there, in one go.

        The kernel does it within one ``send``: no signal comes in between, and frames are lost for
        some microseconds. Takes about 0.3 ms, without giving the event loop a turn.

        :param old: may be gone.
        :param new: is a port of a bridge without a spanning tree, and down.
        :param bridge: that `new` is a port of, for the errors.
        :param static: as in `move_forwarding`.
        :raise LinkMissing: when there is no device `new`.
        :raise NotForwarding: when it is no port of a bridge.
        :raise HostError: when `old` cannot be shut; `new` is down again then.
        """
        shut: list[Change] = []
        with contextlib.suppress(Refused):
            shut.append(set_port_state(index_of(check_ifname(old)), old, PortState.DISABLED))
        with speaking(new):
            port = index_of(check_ifname(new))
            carry = [set_link(f"bring {new} up", port, on=IFF_UP)]
            carry += [forward(mac, port, static=static) for mac in macs]
            answers = self._opened[1].attempt(shut + carry)
            open_still = answers[0] if shut else None
            if open_still is not None and open_still.code not in _SHUT_ANYWAY:
                # Its bridge has a spanning tree by now, say: then both would be open.
                self._opened[1].attempt([set_link(f"take {new} down", port, off=IFF_UP)])
                with speaking(old):
                    raise open_still
            up, *carried = answers[len(shut) :]
            if up is not None:
                raise up
            for refused in carried:
                if refused is not None:
                    raise await self._why_not(new, bridge, refused)

    async def open_port(self, device: str) -> None:
        """End what `cross` did to its old port. A spanning tree is left to decide.

        :raise LinkMissing: when there is no such device.
        """
        with speaking(device):
            change = set_port_state(index_of(check_ifname(device)), device, PortState.FORWARDING)
            self._opened[1].attempt([change])

    def is_up(self, device: str) -> bool:
        """Whether there is such a device, and it is up. Takes a few microseconds."""
        return is_up(check_ifname(device))

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

    async def _why_not(self, device: str, bridge: str, refused: Refused) -> Exception:
        """Make the error for a port that would not be told where an address is."""
        link = await self.find_link(device)
        # EPERM is the answer for a port that listens, and for a missing capability.
        is_port = link is not None and link.port_state is not None
        answers = {errno.EPERM} if is_port else {errno.EOPNOTSUPP, errno.EINVAL}
        if link is None or link.port_state is PortState.FORWARDING or refused.code not in answers:
            return refused
        return await self._not_forwarding(link, bridge, "so it cannot have addresses")

    async def _not_forwarding(self, link: Link, bridge: str, then: str) -> NotForwarding:
        """Make the error. The device may be removed by the time that somebody reads it."""
        if await self.find_link(bridge) is None:
            return NotForwarding(
                f"bridge {bridge} does not exist any more, so it forwards nothing to {link.name}",
                hint=f"make it again: 'ip link add {bridge} type bridge', then try again",
            )
        if link.port_state is None:
            return NotForwarding(
                f"{link.name} is no port of {bridge} any more, {then}",
                hint=f"look which program takes ports off {bridge}, and try again",
            )
        return NotForwarding(
            f"{link.name} is a port of {bridge} in the state {link.port_state.name.lower()}, "
            f"{then}",
            hint=f"a spanning tree takes twice its forward delay, see 'ip -d link show {bridge}'",
        )

    async def _wait_until_forwarding(self, name: str, bridge: str, timeout: float) -> None:
        end = asyncio.get_running_loop().time() + timeout
        pause = 0.001
        while True:
            link = await self.link(name)
            if link.port_state is PortState.FORWARDING:
                return
            left = end - asyncio.get_running_loop().time()
            if link.port_state is None or left <= 0:
                raise await self._not_forwarding(link, bridge, f"after {timeout - left:.1f} s")
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, 0.1)  # nothing to wait for without a spanning tree, 30 s with
