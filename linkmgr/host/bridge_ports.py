"""Ports of bridges: how a device gets onto one, and which of them hears what."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from functools import partial

from linkmgr.aio.threads import create_in_thread, run_in_thread
from linkmgr.errors import LinkBusy, NotForwarding
from linkmgr.host.bridge_fdb import BridgeFdb, fdb_additions
from linkmgr.host.devices.bridge import join_bridge, leave_bridge, pin_bridge_mac, try_leave_bridge
from linkmgr.host.links import naming_device
from linkmgr.host.names import check_ifname
from linkmgr.host.netlink.changes import (
    IFF_UP,
    NetlinkRequest,
    del_fdb_entry,
    index_of,
    is_up,
    set_link,
    set_port_state,
)
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.host.netlink.link import NetDevice, PortState
from linkmgr.text.untrusted import ip_device

log = logging.getLogger(__name__)

#: Why a port cannot be shut that passes nothing: it is down, or no port any more.
_SHUT_ANYWAY = frozenset({errno.ENETDOWN, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP})


class BridgePorts(BridgeFdb):
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
        `linkmgr.host.devices.bridge.pin_bridge_mac`.

        :param up: ``False`` leaves a device that is down as it is, and does not wait.
        :param timeout: seconds. A spanning tree takes twice its forward delay, 30 s by default.
        :raise LinkMissing: when one of them does not exist.
        :raise LinkBusy: when `bridge` is no bridge, or the device is a port of another.
        :raise NotForwarding: when the bridge is down or the time is over; the device is off the
            bridge then, if it was before.
        """
        port, bridge_device = await self.device(name), await self._bridge(bridge)
        if port.master not in {None, bridge_device.index}:
            raise LinkBusy(
                f"{name} is a port of {await self._reader.name_of(port.master)} already",
                hint=f"take it off: 'ip link set {ip_device(name)} nomaster'",
            )
        if not bridge_device.up:
            raise NotForwarding(
                f"bridge {bridge} is down, so it forwards nothing to {name}",
                hint=f"bring it up: 'ip link set {ip_device(bridge)} up'",
            )
        joining = port.master is None
        put = partial(
            join_bridge,
            port.index,
            name,
            bridge_device.index if joining else None,
            isolated=isolated,
            hairpin=hairpin,
            learning=learning,
            bring_up=up and not port.up,
        )
        undo = partial(try_leave_bridge, port.index, name)
        if joining:
            await self.pin_bridge_mac(bridge)
        with naming_device(name):
            if not joining:
                await run_in_thread(put)
            else:
                await create_in_thread(put, lambda _: undo())
        if not up:
            return
        try:
            await self._wait_until_forwarding(name, bridge, timeout)
        except BaseException:
            if joining:
                await run_in_thread(undo)
            raise

    async def set_port_options(
        self, port: int, *, isolated: bool, hairpin: bool, learning: bool
    ) -> None:
        """Set the options of a device that is a port of a bridge.

        :raise LinkMissing: when there is no such device.
        """
        put = partial(
            join_bridge, port, f"port {port}", None,
            isolated=isolated, hairpin=hairpin, learning=learning, bring_up=False,
        )  # fmt: skip
        with naming_device(port):
            await run_in_thread(put)

    async def pin_bridge_mac(self, bridge: str) -> str | None:
        """See `linkmgr.host.devices.bridge.pin_bridge_mac`; ``None`` too without such a bridge."""
        try:
            bridge_index = index_of(check_ifname(bridge))
        except KernelRefused:
            return None
        with naming_device(bridge):
            kept = await run_in_thread(pin_bridge_mac, bridge_index, bridge)
        if kept is not None:
            log.info("bridge %s keeps its address %s, whichever taps come and go", bridge, kept)
        return kept

    async def detach_from_bridge(self, name: str) -> None:
        """Take a device off the bridge that it is a port of; nothing happens if it is of none.

        :raise LinkMissing: when there is no such device.
        """
        await self._change_in_thread(name, leave_bridge(check_ifname(name), name))

    async def switch_bridge_ports(
        self, old: str, new: str, *, bridge: str, learning: bool = True, own: str = ""
    ) -> None:
        """Shut the bridge port `old`, bring `new` up and move the forwarding entries, in one go.

        The kernel does it within one ``send``: no signal comes in between, and frames are lost for
        some microseconds. Takes about 0.4 ms, without giving the event loop a turn.

        :param old: may be gone. Only what `bridge` has behind it at this moment moves.
        :param new: is a port of a bridge without a spanning tree, and down.
        :param learning: as in `add_fdb_entries`, `own` too.
        :raise LinkMissing: when there is no device `new`.
        :raise NotForwarding: when it is no port of a bridge.
        :raise HostError: when `old` cannot be shut; `new` is down again then.
        """
        shut: list[NetlinkRequest] = []
        drop: list[NetlinkRequest] = []
        entries = self.fdb_entries_behind(old, bridge)
        with contextlib.suppress(KernelRefused):
            shut.append(set_port_state(index_of(check_ifname(old)), old, PortState.DISABLED))
        with naming_device(new):
            port = index_of(check_ifname(new))
            carry = [set_link(f"bring {new} up", port, on=IFF_UP)]
            drop = [del_fdb_entry(each.mac, each.port, each.vlan) for each in entries]
            put = fdb_additions(entries, port, learning=learning, own=own)
            answers = self._opened[1].try_all([*shut, *carry, *drop, *put])
            open_still = answers[0] if shut else None
            if open_still is not None and open_still.code not in _SHUT_ANYWAY:
                # Its bridge has a spanning tree by now, say: then both would be open.
                self._opened[1].try_all([set_link(f"take {new} down", port, off=IFF_UP)])
                with naming_device(old):
                    raise open_still
            if (up := answers[len(shut)]) is not None:
                raise up
        await self._check_forwards(answers[-len(put) :] if put else [], new, bridge)
        if not learning:
            await self._claim_mac(own, new, bridge)

    async def enable_port(self, device: str) -> None:
        """End what `switch_bridge_ports` did to its old port. A spanning tree is left to decide.

        :raise LinkMissing: when there is no such device.
        """
        with naming_device(device):
            request = set_port_state(index_of(check_ifname(device)), device, PortState.FORWARDING)
            self._opened[1].try_all([request])

    def is_up(self, device: str) -> bool:
        """Whether there is such a device, and it is up. Takes a few microseconds."""
        return is_up(check_ifname(device))

    async def _bridge(self, name: str) -> NetDevice:
        device = await self._reader.device(name, "a bridge")
        if device.kind != "bridge":
            raise LinkBusy(
                f"{name} is not a bridge but a {device.kind or 'plain'} device",
                hint="name a bridge; 'ip link show type bridge' lists them",
            )
        return device

    async def _wait_until_forwarding(self, name: str, bridge: str, timeout: float) -> None:
        end = asyncio.get_running_loop().time() + timeout
        pause = 0.001
        while True:
            device = await self.device(name)
            if device.port_state is PortState.FORWARDING:
                return
            left = end - asyncio.get_running_loop().time()
            if device.port_state is None or left <= 0:
                raise await self._not_forwarding_error(
                    device, bridge, f"after {timeout - left:.1f} s"
                )
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, 0.1)  # nothing to wait for without a spanning tree, 30 s with
