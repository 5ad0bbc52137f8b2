"""``python -m bench.hostile``: time a guest's replugs beside attackers; 1 if one costs too much."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.hostile.attack import NAMES
from bench.hostile.world import Block, World, make_world
from bench.stats import percentile
from linkmgr.testing import enter_sandbox

REPORT = Path("build/bench-hostile.json")
MAX_SLOWDOWN = 3.0  #: times a replug may take beside an attacker what it takes beside one at a sink
_UNIT = Path(__file__).parents[2] / "packaging" / "linkmgr.service"
#: Bytes; MemoryHigh= of the unit, which is in MiB.
MEMORY_HIGH = int(_UNIT.read_text().partition("MemoryHigh=")[2].partition("M\n")[0]) << 20
COLUMNS = ("replugs", "median_ms", "sink_median_ms", "median_ratio", "p99_ms", "sink_p99_ms",
           "p99_ratio", "service_cpu_percent", "sink_service_cpu_percent",
           "service_rss_mb")  # fmt: skip
ROUNDS = 5  # in which the two targets take turns


@dataclass
class Found:
    """What one attacker cost, at the service and at the sink."""

    attacker: str
    service: list[Block] = field(default_factory=list)
    sink: list[Block] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Return the figures: milliseconds, CPU seconds per second, bytes, ratios."""
        ours, theirs = _replugs(self.service), _replugs(self.sink)
        seconds = sum(block.seconds for block in self.service)
        median_ratio = median(ours) / median(theirs)
        p99_ratio = percentile(ours, 99) / percentile(theirs, 99)
        failed = sum(block.failed for block in self.service)
        rss = max(block.rss for block in self.service)
        return {
            "attacker": self.attacker,
            "replugs": len(ours),
            "failed": failed,
            "median_ms": round(median(ours), 2),
            "p99_ms": round(percentile(ours, 99), 2),
            "sink_median_ms": round(median(theirs), 2),
            "sink_p99_ms": round(percentile(theirs, 99), 2),
            "median_ratio": round(median_ratio, 2),
            "p99_ratio": round(p99_ratio, 2),
            "service_cpu_percent": round(
                100 * sum(block.cpu for block in self.service) / seconds, 1
            ),
            "sink_service_cpu_percent": round(
                100 * sum(block.cpu for block in self.sink)
                / sum(block.seconds for block in self.sink), 1
            ),
            "service_rss_mb": round(rss / 1e6, 1),
            "ok": max(median_ratio, p99_ratio) < MAX_SLOWDOWN and not failed and rss < MEMORY_HIGH,
        }  # fmt: skip


def _replugs(blocks: list[Block]) -> list[float]:
    return [ms for block in blocks for ms in block.replugs]


async def measure(world: World, attacker: str, count: int, seconds: float) -> Found:
    """Let the attacker attack the service and the sink in turn."""
    found = Found(attacker)
    for number in range(ROUNDS):
        for sink in (True, False) if number % 2 else (False, True):
            block = await world.block(attacker, -(-count // ROUNDS), seconds, sink=sink)
            (found.sink if sink else found.service).append(block)
            await world.settle()
    return found


def show(reports: list[dict[str, Any]], console: Console) -> None:
    """Print a table."""
    title = "Another guest's replug in ms, attackers at the service and at a sink"
    table = Table(title=title, title_justify="left")
    for column in ("attacker", "count", "median", "at sink", "ratio", "p99", "at sink", "ratio",
                   "CPU %", "at sink", "RSS MB", ""):  # fmt: skip
        table.add_column(column, justify="left" if column == "attacker" else "right")
    for of in reports:
        word = "[green]ok[/]" if of["ok"] else "[bold red]too much[/]"
        table.add_row(of["attacker"], *(str(of[key]) for key in COLUMNS), word)
    console.print(table)


async def main(options: argparse.Namespace) -> int:
    """Measure and report."""
    console, begun = Console(), time.monotonic()
    reports = []
    for attacker in options.only:
        # A world for each: what one attacker leaves behind is not the next one's.
        with tempfile.TemporaryDirectory(prefix="linkmgr-hostile-") as folder:
            async with make_world(Path(folder), shlex.split(options.program)) as world:
                await world.quiet(20, 5.0)  # everything is loaded by then
                found = await measure(world, attacker, options.replugs, options.seconds)
        reports.append(found.report())
        console.print(reports[-1])
    show(reports, console)
    report = {
        "ok": all(each["ok"] for each in reports),
        "limit": MAX_SLOWDOWN,
        "attackers": reports,
        "load": [round(load, 2) for load in os.getloadavg()],
        "seconds": round(time.monotonic() - begun, 1),
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"{report['seconds']} s; the same in {REPORT}", highlight=False)
    return 0 if report["ok"] else 1


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--replugs", type=int, default=300, help="at the service, per attacker")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="the longest that a fifth of them may take"
    )
    parser.add_argument(
        "--unbounded",
        action="store_const",
        dest="program",
        const=f"{sys.executable} -m bench.hostile.unbounded",
        help="with the bounds switched off: it must be too much",
    )
    parser.add_argument(
        "--program", default="", help="words that start another linkmgr than this checkout's"
    )
    return parser.parse_args()


if __name__ == "__main__":
    enter_sandbox()
    sys.exit(asyncio.run(main(arguments())))
