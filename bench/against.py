"""``python -m bench.against PROGRAM``: CPU time of this service beside another checkout's.

CPU time, because what else the machine does changes it least; in pairs, because it changes it all
the same. The programs take turns with one fleet of paused QEMUs. PROGRAM is the ``linkmgr`` of the
other checkout's virtual environment. Exits 1 when the upper end of an interval exceeds the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.fleet import Fleet
from bench.procfs import cpu_seconds
from bench.served import ServiceProcess
from linkmgr.testing import enter_sandbox
from linkmgr.testing.process import execute

REPORT = Path("build/bench-against.json")
MAX_CPU_RATIO = 1.10  #: of the other's CPU time
BRIDGES = {"blue": "br-blue", "red": "br-red"}
OPS = ("plug", "swap", "start")
#: How often, in percent, the interval may miss the true median: so take 6 pairs or more.
ERROR_PERCENT = 5


async def one_turn(fleet: Fleet, program: list[str], rounds: int) -> dict[str, float]:
    """Run one service with the whole fleet; CPU seconds of a plug, a swap and a start."""
    used: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory(prefix="linkmgr-against-") as folder:
        async with ServiceProcess(Path(folder), program=program) as service:
            plugged = [f"{name}/net0" for name in fleet.names[::2]]
            async with service.client() as client:
                for network, bridge in BRIDGES.items():
                    await client.create_network(network, "bridge", bridge=bridge)
                for name in fleet.names:
                    await client.add_vm(name, fleet.monitor(name))
                before = cpu_seconds(service.pid)
                for nic in plugged:
                    await client.plug(nic, "blue", notify="silent")
                used["plug"] = (cpu_seconds(service.pid) - before) / len(plugged)
                before = cpu_seconds(service.pid)
                for number in range(rounds):
                    target = ("red", "blue")[number % 2]
                    await client.plug(plugged[number % 5], target, notify="silent")
                    await client.plug(plugged[number % 5], "blue", notify="silent")
                used["swap"] = (cpu_seconds(service.pid) - before) / (2 * rounds)
            await service.stop(signal.SIGKILL)
            await service.start()
            async with service.client() as client:
                await client.nics()
                used["start"] = cpu_seconds(service.pid)
                for nic in plugged:
                    await client.unplug(nic)
                for name in fleet.names:
                    await client.remove_vm(name)
    return used


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return an interval for the median of the pairs' ratios, by the sign test."""
    ordered, count = sorted(ratios), len(ratios)
    tail, chance, skip = 0.0, 0.5**count, 0
    for number in range(count // 2):
        tail += chance
        if 200 * tail > ERROR_PERCENT:
            break
        skip = number
        chance = chance * (count - number) / (number + 1)
    return ordered[skip], ordered[-1 - skip]


async def main(options: argparse.Namespace) -> int:
    """Measure and report."""
    console = Console()
    ratios: dict[str, list[float]] = {op: [] for op in OPS}
    spent: dict[str, list[tuple[float, float]]] = {op: [] for op in OPS}
    for bridge in BRIDGES.values():
        await execute(f"ip link add {bridge} type bridge".split())
        await execute(f"ip link set {bridge} up".split())
    with tempfile.TemporaryDirectory(prefix="linkmgr-fleet-") as folder:
        async with Fleet(options.vms, Path(folder)) as fleet:
            for number in range(options.pairs):
                found = {}
                for ours in (True, False) if number % 2 else (False, True):
                    program = [] if ours else [options.program]
                    found[ours] = await one_turn(fleet, program, options.swaps)
                for op in OPS:
                    ratios[op].append(found[True][op] / found[False][op])
                    spent[op].append((found[True][op], found[False][op]))
    report: dict[str, dict[str, float]] = {}
    good: dict[str, bool] = {}
    table = Table(title="CPU time of the service", title_justify="left")
    for column in ("", "pairs", "ours ms", "other's ms", "ratio", "interval", ""):
        table.add_column(column, justify="right" if column else "left")
    for op in OPS:
        low, high = interval(ratios[op])
        middle = median(ratios[op])
        own, other = (1000 * median(pair[side] for pair in spent[op]) for side in (0, 1))
        report[op] = {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3),
                      "ours_ms": round(own, 3), "other_ms": round(other, 3)}  # fmt: skip
        good[op] = high <= MAX_CPU_RATIO
        cells = (f"{own:.2f}", f"{other:.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
        table.add_row(op, str(len(ratios[op])), *cells, "ok" if good[op] else "too much")
    console.print(table)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps({"ok": good, **report}, indent=2) + "\n")
    return 0 if all(good.values()) else 1


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.against", description=__doc__)
    parser.add_argument("program", help="the linkmgr of the other checkout")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--vms", type=int, default=200)
    parser.add_argument("--swaps", type=int, default=100)
    return parser.parse_args()


if __name__ == "__main__":
    enter_sandbox()
    sys.exit(asyncio.run(main(arguments())))
