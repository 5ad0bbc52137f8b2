"""What must be so after each kill and restart, compared with QEMU, the kernel and the disk."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linkmgr import Client, Nic
from linkmgr.host.netlink.link import DEVICE_GROUP
from linkmgr.hypervisors.qemu.qmp.info_network import NetTopology, parse_info_network
from linkmgr.model import LinkState, NicState, OwnerTag
from linkmgr.testing import Guest
from linkmgr.testing.process import execute

__all__ = ["Inspection", "devices"]

_NET = Path("/sys/class/net")
_IPV6 = Path("/proc/sys/net/ipv6/conf")
#: What a paused guest's NIC asks for and does not get is no fault.
_NO_FAULTS = {"refused"}
#: What the kernel counts or shows of a device without anybody having touched it.
_RESTLESS = {"stats", "stats64", "hello_timer", "tcn_timer", "topology_change_timer", "gc_timer",
             "hold_timer", "message_age_timer", "forward_delay_timer", "linkinfo_timer",
             "operstate", "allmulti", "promiscuity"}  # fmt: skip

_MAX_LISTINGS = 20  #: tries to have a whole list of the devices; two in a row have never failed
#: What an fd of a tap or macvtap leads to.
_TAP = re.compile(r"/dev/(net/tun|tap\d)|.*/linkmgr-node-")

Device = dict[str, Any]


@dataclass
class Inspection:
    """Compares all that there is with all that there should be.

    :param made: by network, the bridge that linkmgr makes for it.
    :param others: what other managers have, by name of the device.
    :param outside: devices that were there before the world, and are not looked at.
    """

    state: Path
    guest: Guest
    made: dict[str, str]
    others: dict[str, Device]
    outside: frozenset[str] = frozenset()

    def _document(self) -> dict[str, Any]:
        path = self.state / "vms" / f"{self.guest.name}.json"
        document: dict[str, Any] = json.loads(path.read_text())
        return document

    async def faults(self, client: Client) -> list[str]:
        """Look at everything once; what is not as it must be, as sentences."""
        nics = await client.nics()
        found = [
            f"check: {each.subject}: {each.what}"
            for each in await client.check()
            if each.code not in _NO_FAULTS
        ]
        said = await self.guest.qmp("human-monitor-command", **{"command-line": "info network"})
        info = parse_info_network(said)
        for nic in nics:
            found += _cable_faults(nic, info)
        found += self._qemu_faults(nics, info)
        found += self._device_faults(nics, await devices())
        found += self._journal_faults(nics)
        return found

    def _qemu_faults(self, nics: list[Nic], info: NetTopology) -> list[str]:
        cables = sum(1 for nic in nics if nic.connection)
        taps = [name for name, each in info.netdevs.items() if each.type == "tap"]
        found = [] if len(taps) == cables else [f"QEMU has {taps} for {cables} cables"]
        held: Counter[str] = Counter()
        for fd in Path(f"/proc/{self.guest.pid}/fd").iterdir():
            target = str(fd.readlink())
            if target.startswith(
                ("/dev/net/tun", "/dev/tap", "/dev/linkmgr-", "/tmp/linkmgr-node-")
            ):
                held[target] += 1
        if held.total() != cables:
            found.append(f"QEMU holds {dict(held)} for {cables} cables")
        return found

    def _device_faults(self, nics: list[Nic], there: dict[str, Device]) -> list[str]:
        found = []
        for name, before in self.others.items():
            if name not in there:
                found.append(f"{name} is gone, which was nobody's to remove")
            elif there[name] != before:
                changed = {key for key in before if there[name].get(key) != before[key]}
                found.append(f"{name} is not as it was: {sorted(changed)}")
        wanted = {}
        for nic in nics:
            if nic.connection:
                # A replug that kept the macvtap kept its id.
                cable = (self._document()["nics"][nic.ref.alias]["cable"] or {}).get("id", "?")
                wanted[nic.connection.device] = str(OwnerTag(str(nic.ref), cable))
                if bridge := self.made.get(nic.connection.network):
                    wanted[bridge] = f"linkmgr:network:{nic.connection.network}:"
        ours = there.keys() - self.others.keys() - self.outside
        if ours != wanted.keys():
            found.append(f"devices {sorted(ours)}, not {sorted(wanted)}")
        for name in ours & wanted.keys():
            if not str(there[name].get("ifalias", "")).startswith(wanted[name]):
                found.append(f"{name} is tagged {there[name].get('ifalias')}, not {wanted[name]}")
            with contextlib.suppress(FileNotFoundError):  # a repair has just replaced it
                if (_IPV6 / name / "disable_ipv6").read_text().strip() != "1":
                    found.append(f"{name} has IPv6 on")
                continue
            found.append(f"{name} went away")
        return found + [
            f"{name} is in the group of linkmgr and has no tag"
            for name in ours
            if there[name].get("group") == str(DEVICE_GROUP) and not there[name].get("ifalias")
        ]

    def _journal_faults(self, nics: list[Nic]) -> list[str]:
        files = [str(path.relative_to(self.state)) for path in self.state.rglob("*")]
        found = [f"{name} is in the state directory" for name in files
                 if name.endswith(".tmp") or ".damaged" in name]  # fmt: skip
        document = self._document()
        for nic in nics:
            record = document["nics"][nic.ref.alias]
            if record["intent"] is not None:
                found.append(f"{nic.ref} has an intent in the journal")
            cable = record["cable"]["attachment"] if record["cable"] else None
            if cable != (nic.connection.attachment if nic.connection else None):
                found.append(f"{nic.ref} has another cable in the journal: {cable}")
        return found


def _cable_faults(nic: Nic, info: NetTopology) -> list[str]:
    if nic.state not in (NicState.PLUGGED, NicState.UNPLUGGED):
        return [f"{nic.ref} is {nic.state}"]
    hub = info.hub_of(nic.ref.alias)
    if hub is None:
        return [f"{nic.ref} is on no hub"]
    found = []
    backends = info.hubs[hub[0]].backends
    if len(backends) != (1 if nic.connection else 0):
        found.append(f"{nic.ref} is {nic.state}, and on its hub are {backends}")
    if nic.link is not (LinkState.UP if nic.connection else LinkState.DOWN):
        found.append(f"{nic.ref} is {nic.state}, and its link {nic.link}")
    return found


async def devices() -> dict[str, Device]:
    """All devices by name, without what changes by itself."""
    for _ in range(_MAX_LISTINGS):
        said = (await execute(["ip", "-json", "-details", "link", "show"])).output
        # It says before the list when devices have come or gone meanwhile.
        if said.startswith("["):
            return {each["ifname"]: _calm(each) for each in json.loads(said)}
    raise RuntimeError(f"no list of the devices was whole: {said}")


def _calm(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _calm(each) for key, each in value.items() if key not in _RESTLESS}
    return value
