"""What there is while all NICs are at home: memory, and whatever can be counted."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.procfs import Memory, open_files, read_memory
from bench.served import ServiceProcess
from linkmgr.testing import Guest
from linkmgr.testing.process import execute

__all__ = ["SERVICE", "Census", "Growth", "changes", "growth", "take"]

SERVICE = "service"
_CLOSE_DELAY_S = 1.0  # seconds: what a swap leaves to be closed is closed by then
_MAX_COUNTS = 20  # at most, until two in a row are alike


@dataclass(frozen=True)
class Census:
    """What was there after so many swaps.

    :param memory: of each process.
    :param counts: how many there are of each thing; any change is a leak.
    """

    swaps: int
    memory: dict[str, Memory]
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Growth:
    """How the memory of one process changed."""

    process: str
    first: Memory
    last: Memory

    @property
    def percent(self) -> float:
        """Growth of what is resident, without a guest's RAM, which is the guest's to fill."""
        return 100 * (self.last.own - self.first.own) / self.first.own

    @property
    def pss_percent(self) -> float:
        """Growth of PSS, RAM included; it also changes with who else maps the same files."""
        return 100 * (self.last.pss - self.first.pss) / self.first.pss


async def take(swaps: int, service: ServiceProcess, guests: Sequence[Guest]) -> Census:
    """Count when it is quiet: nobody but who listens for events is connected to the service."""
    counts: Counter[str] = Counter()
    for _ in range(_MAX_COUNTS):
        await asyncio.sleep(_CLOSE_DELAY_S)
        before, counts = counts, await _count(service, guests)
        if counts == before:
            break
    memory = {SERVICE: read_memory(service.pid)}
    memory |= {guest.name: read_memory(guest.pid) for guest in guests}
    return Census(swaps, memory, counts)


async def _count(service: ServiceProcess, guests: Sequence[Guest]) -> Counter[str]:
    """Count everything, the fds before anything else: to ask takes a connection."""
    counts: Counter[str] = Counter()
    for name, pid in [(SERVICE, service.pid), *((guest.name, guest.pid) for guest in guests)]:
        for kind, count in open_files(pid).items():
            counts[f"{name}: fds of {kind}"] = count
    links = json.loads((await execute(["ip", "-json", "-details", "link", "show"])).output)
    for link in links:
        counts[f"links: {link.get('linkinfo', {}).get('info_kind', 'others')}"] += 1
    entries = (await execute(["bridge", "fdb", "show"])).output
    counts["static forwarding entries"] = entries.count(" static")
    counts["files"] = sum(1 for _ in service.state.rglob("*"))
    counts["files beside the socket"] = sum(1 for _ in service.socket.parent.iterdir())
    for guest in guests:
        tree = await guest.qmp("human-monitor-command", **{"command-line": "info qom-tree"})
        net = await guest.qmp("human-monitor-command", **{"command-line": "info network"})
        counts[f"{guest.name}: QOM objects"] = tree.count("\n")
        counts[f"{guest.name}: NICs, backends, hubs and ports"] = net.count("\n")
    counts["metric series"] = len(
        re.findall(r"^linkmgr_", await service.get("/metrics"), re.MULTILINE)
    )
    return counts


def changes(first: Census, last: Census) -> dict[str, tuple[int, int]]:
    """What there are more or less of: before, after."""
    keys = first.counts.keys() | last.counts.keys()
    return {
        key: (first.counts[key], last.counts[key])
        for key in sorted(keys)
        if first.counts[key] != last.counts[key]
    }


def growth(censuses: Sequence[Census]) -> list[Growth]:
    """How much memory each process has gained, from the first census to the last."""
    first, last = censuses[0], censuses[-1]
    return [Growth(name, first.memory[name], last.memory[name]) for name in first.memory]
