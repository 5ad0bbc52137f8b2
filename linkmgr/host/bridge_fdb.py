"""Forwarding entries of bridges: which of them go with a NIC from one port to another.

An address may be used by one guest now and by another in a moment (a bond, VRRP), or be that of a
gateway. So an entry moves only if the bridge has it behind the NIC's old port when that is left,
and never replaces one that leads elsewhere by then.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Sequence

from linkmgr.errors import NotForwarding
from linkmgr.host.links import Devices, naming_device
from linkmgr.host.names import check_ifname
from linkmgr.host.netlink import dump
from linkmgr.host.netlink.changes import NetlinkRequest, add_fdb_entry, del_fdb_entry, index_of
from linkmgr.host.netlink.errors import KernelRefused, device_missing, to_host_error
from linkmgr.host.netlink.link import FdbEntry, NetDevice, PortState
from linkmgr.text.untrusted import ip_device

log = logging.getLogger(__name__)


def fdb_additions(
    entries: Iterable[FdbEntry], port: int, *, learning: bool, own: str
) -> list[NetlinkRequest]:
    """The requests that put entries behind a port, where the bridge has none meanwhile.

    :param learning: whether the port learns. One that does not gets no entry for good of what was
        only learned, and the NIC's own address gets a static one.
    :param own: the address that the NIC was configured with.
    """
    kept = [each for each in entries if each.static or learning]
    put = [
        add_fdb_entry(each.mac, port, static=each.static and each.mac != own, vlan=each.vlan)
        for each in kept
        if learning or each.mac != own
    ]
    return put if learning or not own else [*put, add_fdb_entry(own, port, static=True)]


class BridgeFdb(Devices):
    """What `Host` does with the forwarding entries of bridges."""

    def fdb_entries_behind(self, device: str, bridge: str) -> list[FdbEntry]:
        """Return what a bridge has behind a port at this moment: learned and static entries.

        Takes about 0.1 ms, without giving the event loop a turn. There is none behind a device
        that is gone, or that is no port of this bridge.
        """
        try:
            port, bridge_index = index_of(check_ifname(device)), index_of(check_ifname(bridge))
        except KernelRefused:
            return []
        with naming_device(bridge):
            found, _ = dump.list_fdb_entries(bridge_index, port)
        return [each for each in found if not each.local]

    async def forget_fdb_entries(self, entries: Sequence[FdbEntry], device: str) -> None:
        """Make a bridge forget entries of its port `device`; those that moved meanwhile stay.

        Until it learns or is told where the addresses are it delivers to all its ports: nothing
        gets lost while a NIC moves from one port to another.
        """
        with naming_device(device):
            requests = [del_fdb_entry(each.mac, each.port, each.vlan) for each in entries]
            for refused in self._opened[1].try_all(requests):
                if refused is not None and refused.code != errno.ENOENT:
                    raise refused

    async def add_fdb_entries(
        self,
        entries: Sequence[FdbEntry],
        device: str,
        *,
        bridge: str,
        learning: bool = True,
        own: str = "",
    ) -> None:
        """Put entries that were withdrawn behind a port, where the bridge has none meanwhile.

        Takes about 0.1 ms for one, without giving the event loop a turn.

        :param bridge: the bridge that `device` is a port of.
        :param learning: as in `fdb_additions`, `own` too.
        :raise LinkMissing: when there is no such device.
        :raise NotForwarding: when it is no port of a bridge, or one that does not forward yet.
        """
        with naming_device(device):
            port = index_of(check_ifname(device))
            put = fdb_additions(entries, port, learning=learning, own=own)
            answers = self._opened[1].try_all(put) if put else []
        await self._check_forwards(answers, device, bridge)
        if not learning:
            await self._claim_mac(own, device, bridge)

    async def ports_with_mac(self, mac: str, bridge: str) -> list[NetDevice]:
        """Return the ports, or the bridge itself, to which a bridge forwards an address now."""
        bridge_device = await self.find_device(bridge)
        if bridge_device is None:
            return []
        found = {each.port for each in await self._reader.fdb_entries(bridge_device, mac)}
        devices = [await self.find_device(index) for index in found]
        return [device for device in devices if device is not None]

    async def _claim_mac(self, mac: str, device: str, bridge: str) -> None:
        """Make the entry of a port that does not learn a static one.

        What was learned elsewhere gives way, for the NIC cannot have it back by speaking; what
        somebody has set does not.
        """
        bridge_device, net_device = await self.find_device(bridge), await self.find_device(device)
        if not mac or bridge_device is None or net_device is None:
            return
        for entry in await self._reader.fdb_entries(bridge_device, mac):
            if entry.port == net_device.index and entry.static:
                continue
            if entry.static:
                log.warning("bridge %s: %s stays where somebody has set it", bridge, mac)
                continue
            with naming_device(device):
                request = add_fdb_entry(
                    mac, net_device.index, static=True, vlan=entry.vlan, replace=True
                )
                self._opened[1].try_all([request])

    async def _check_forwards(
        self, answers: Sequence[KernelRefused | None], device: str, bridge: str
    ) -> None:
        """Check that a port forwards, and was told of its addresses.

        :raise LinkMissing: when it is gone.
        :raise NotForwarding: when it does not forward.
        """
        # At once, in the event loop: what is seen holds for the moment of the switch.
        with naming_device(device):
            net_device = dump.find_device(device)
        if net_device is None:
            raise device_missing(device)
        if net_device.port_state is not PortState.FORWARDING:
            raise await self._not_forwarding_error(
                net_device, bridge, "so it cannot have addresses"
            )
        for refused in answers:
            # EEXIST: it leads elsewhere by now. EINVAL: the new port is not in that VLAN.
            if refused is not None and refused.code not in {errno.EEXIST, errno.EINVAL}:
                raise to_host_error(refused, device) from refused

    async def _not_forwarding_error(
        self, device: NetDevice, bridge: str, then: str
    ) -> NotForwarding:
        """Make the error. The device may be removed by the time that somebody reads it."""
        if await self.find_device(bridge) is None:
            return NotForwarding(
                f"bridge {bridge} does not exist any more, so it forwards nothing to {device.name}",
                hint=f"make it again: 'ip link add {ip_device(bridge)} type bridge', then try "
                "again",
            )
        if device.port_state is None:
            return NotForwarding(
                f"{device.name} is no port of {bridge} any more, {then}",
                hint=f"look which program takes ports off {bridge}, and try again",
            )
        return NotForwarding(
            f"{device.name} is a port of {bridge} in the state {device.port_state.name.lower()}, "
            f"{then}",
            hint="a spanning tree takes twice its forward delay, see 'ip -d link show "
            f"{ip_device(bridge)}'",
        )
