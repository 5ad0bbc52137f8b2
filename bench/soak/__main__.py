"""``python -m bench.soak``: swap, count, print a table; 1 if something has grown."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.soak.census import Census, changes, growth
from bench.soak.swapping import SWAPS_PER_CYCLE, Soak, make_soak
from linkmgr.testing import enter_sandbox

REPORT = Path("build/soak.json")
MAX_GROWTH_PERCENT = 2.0  # percent that the memory of a process may grow
ROUNDS = 20
#: Swaps before the first census that counts: the service keeps the last 1000 operations and events,
#: and until there are as many, each of its largest size, it has to grow.
WARM_UP_SWAPS = 2600
GUESTS, NICS = 2, 4


async def run(soak: Soak, options: argparse.Namespace, console: Console) -> list[Census]:
    """Do all rounds; stop when the time is over."""
    clock = asyncio.get_running_loop().time
    end = clock() + 60 * options.minutes

    async def one(swaps: float, what: str) -> Census:
        begun, before = clock(), soak.swaps
        cycles = math.ceil(swaps / SWAPS_PER_CYCLE / len(soak.nics))
        census = await soak.round(cycles, lambda: None, until=end)
        service = census.memory["service"]
        rate = (soak.swaps - before) / (clock() - begun)
        console.print(
            f"{what} {soak.swaps:6} swaps, {rate:4.1f} a second, service RSS {service.rss} "
            f"PSS {service.pss} KiB, {sum(census.counts.values())} things",
            highlight=False,
        )
        return census

    censuses = [await one(options.warm_up, "warm-up")]
    first = soak.swaps
    while soak.swaps - first < options.swaps and clock() < end:
        censuses.append(await one(options.swaps / ROUNDS, "round  "))
    return censuses


def show(censuses: Sequence[Census], console: Console) -> bool:
    """Print what grew, and return whether all is well."""
    swaps = censuses[-1].swaps - censuses[0].swaps
    table = Table(title=f"{swaps} swaps after a warm-up of {censuses[0].swaps}")
    for column in ("process", "RSS KiB*", "", "%", "PSS KiB", "", "%", ""):
        table.add_column(column, justify="right")
    well = True
    for each in growth(censuses):
        fine = each.percent < MAX_GROWTH_PERCENT
        well = well and fine
        table.add_row(
            *(each.process, str(each.first.own), str(each.last.own), f"{each.percent:+.2f}"),
            *(str(each.first.pss), str(each.last.pss), f"{each.pss_percent:+.2f}"),
            "[green]kept[/]" if fine else "[bold red]missed[/]",
        )
    console.print(table)
    console.print("* without the guest's RAM", highlight=False)
    changed = changes(censuses[0], censuses[-1])
    for what, (before, after) in changed.items():
        console.print(f"[bold red]{what}: {before} before, {after} after[/]")
    if not changed:
        console.print(f"all {len(censuses[0].counts)} counts are what they were:", highlight=False)
        counts = (f"{what} {count}" for what, count in sorted(censuses[0].counts.items()))
        console.print("; ".join(counts), highlight=False, markup=False)
    return well and not changed


def report(censuses: Sequence[Census], events: dict[str, int]) -> dict[str, Any]:
    """Return all of it for build/soak.json."""
    return {
        "swaps": censuses[-1].swaps - censuses[0].swaps,
        "warm_up": censuses[0].swaps,
        "growth": {
            each.process: {
                "rss_percent": round(each.percent, 3),
                "pss_percent": round(each.pss_percent, 3),
            }
            for each in growth(censuses)
        },
        "limit_percent": MAX_GROWTH_PERCENT,
        "changed": changes(censuses[0], censuses[-1]),
        "events": events,
        "censuses": [
            {
                "swaps": census.swaps,
                "memory": {name: asdict(memory) for name, memory in census.memory.items()},
                "counts": dict(sorted(census.counts.items())),
            }
            for census in censuses
        ],
    }


async def main(options: argparse.Namespace) -> int:
    """Soak and report."""
    console, begun = Console(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="linkmgr-soak-") as folder:
        async with make_soak(Path(folder), guests=GUESTS, nics=NICS) as soak:
            censuses = await run(soak, options, console)
    done = censuses[-1].swaps - censuses[0].swaps
    well = show(censuses, console)
    if done < options.swaps:
        console.print(f"[bold red]only {done} of {options.swaps} swaps in the time[/]")
    ok = well and done >= options.swaps
    seconds, load = round(time.monotonic() - begun, 1), [round(each, 2) for each in os.getloadavg()]
    facts = {"ok": ok, "seconds": seconds, "load": load}
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(facts | report(censuses, dict(soak.events)), indent=2) + "\n")
    console.print(f"{seconds} s, load {load}; the same in {REPORT}", highlight=False)
    return 0 if ok else 1


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--swaps", type=int, default=10_000, help="after the warm-up")
    parser.add_argument("--warm-up", type=int, default=WARM_UP_SWAPS, help="swaps before")
    parser.add_argument("--minutes", type=float, default=25.0, help="at most")
    return parser.parse_args()


if __name__ == "__main__":
    enter_sandbox()
    sys.exit(asyncio.run(main(arguments())))
