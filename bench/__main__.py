"""``python -m bench``: measure, print tables, write build/bench.json; 1 if a budget is missed."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bench.budgets import judge
from bench.hook import HookEffort, measure_hook
from bench.lab import BRIDGE, DIRECT, Lab, make_lab
from bench.loss import IN, OUT, count_loss
from bench.report import Results, show
from bench.service import ServiceEffort, measure_service
from bench.stall import measure_stall
from bench.swaps import time_swaps
from bench.throughput import PATHS, measure_throughput
from linkmgr.testing import enter_sandbox
from linkmgr.testing.process import execute
from linkmgr.wirings import HubWiring

REPORT = Path("build/bench.json")
GUEST_PHASES = ("swaps", "loss", "stall", "throughput")
PHASES = (*GUEST_PHASES, "service", "hook")


@dataclass(frozen=True)
class Effort:
    """How often each thing is measured."""

    swaps: int  # between ports of the bridge network
    others: int  # swaps of each other kind
    loss_pairs: int  # windows with and without a swap, per direction
    direct_loss_pairs: int
    stall_pairs: int
    shared_stall_pairs: int
    rounds: int
    seconds: int  # of a TCP stream, after a first one that does not count
    service: ServiceEffort
    hook: HookEffort


FULL = Effort(100, 20, 25, 6, 200, 60, 4, 2, ServiceEffort(5, 2, 10.0, 50), HookEffort(25, 50, 5))
QUICK = Effort(10, 3, 3, 1, 20, 10, 1, 1, ServiceEffort(1, 1, 3.0, 10), HookEffort(3, 5, 1))


class Bars:
    """A progress bar per phase, drawn only between measurements: by itself rich uses a thread."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(*columns, console=console, auto_refresh=False)

    def add(self, what: str, total: int) -> Callable[[], None]:
        """Add a bar; return what moves it by one."""
        task = self.progress.add_task(what, total=total)

        def tick() -> None:
            self.progress.advance(task)
            self.progress.refresh()

        return tick


async def measure(effort: Effort, phases: Collection[str], bars: Bars) -> Results:
    """Run the phases, in the order of `PHASES`; the guest is gone before the service has its."""
    results = Results()
    with tempfile.TemporaryDirectory(prefix="linkmgr-bench-") as folder:
        if not set(phases).isdisjoint(GUEST_PHASES):
            async with make_lab(Path(folder)) as lab:
                await measure_guest(lab, effort, phases, bars, results)
        if "service" in phases:
            tick = bars.add("the service with 200 VMs", effort.service.ticks)
            results.service = await measure_service(Path(folder), effort.service, tick)
        if "hook" in phases:
            (own := Path(folder, "hook")).mkdir()
            tick = bars.add("libvirt's hook", effort.hook.ticks)
            results.hook = await measure_hook(own, effort.hook, tick)
    return results


async def measure_guest(
    lab: Lab, effort: Effort, phases: Collection[str], bars: Bars, results: Results
) -> None:
    """Run the phases that need a guest."""
    if "swaps" in phases:
        tick = bars.add("time of a swap", effort.swaps + 3 * effort.others)
        results.times = await time_swaps(lab, effort.swaps, effort.others, tick)
    if "loss" in phases:
        for network, pairs in ((BRIDGE, effort.loss_pairs), (DIRECT, effort.direct_loss_pairs)):
            for way in (OUT, IN):
                tick = bars.add(f"frames lost on the {network} network, {way}", 2 * pairs)
                results.losses.append(await count_loss(lab, network, way, pairs, tick))
    if "stall" in phases:
        for first, pairs in ((True, effort.stall_pairs), (False, effort.shared_stall_pairs)):
            tick = bars.add("stall of QEMU" + ("" if first else ", CPUs shared"), pairs)
            results.stalls.append(await measure_stall(lab, pairs, tick, first=first))
    if "throughput" in phases:
        tick = bars.add("throughput", effort.rounds * 2 * len(PATHS))
        results.throughput = await measure_throughput(lab, effort.rounds, effort.seconds, tick)


async def host() -> dict[str, Any]:
    """Return what the figures depend on."""
    qemu = shlex.split(os.environ.get("LINKMGR_QEMU") or "qemu-system-x86_64")
    said = (await execute([*qemu, "--version"])).output
    version = re.search(r"version ([\d.]+)", said)
    return {
        "qemu": version[1] if version else said,
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


async def main(options: argparse.Namespace) -> int:
    """Measure and report."""
    console, start = Console(), time.monotonic()
    HubWiring.keep_fds = not options.no_kept_fd
    bars = Bars(console)
    facts = await host()
    with bars.progress:
        effort = QUICK if options.quick else FULL
        results = await measure(effort, options.only, bars)
    facts["load_after"] = [round(load, 2) for load in os.getloadavg()]
    verdicts = judge(results.figures())
    measured = [verdict for verdict in verdicts if verdict.budget.phase in options.only]
    report = {
        "ok": all(verdict.ok for verdict in measured),
        "budgets": [verdict.report() for verdict in measured],
        **results.report(),
        "host": facts,
        "options": {
            "kept_fd": not options.no_kept_fd, "quick": options.quick, "only": options.only,
        },
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    show(results, measured, console)
    console.print(
        f"\nQEMU {facts['qemu']}, Linux {facts['kernel']}, {facts['cpus']} CPUs, "
        f"{report['seconds']} s; the same in {REPORT}",
        highlight=False,
    )
    return 0 if report["ok"] else 1


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few of each: does it run at all?")
    parser.add_argument(
        "--no-kept-fd",
        action="store_true",
        help="let QEMU close the last descriptor of the old tap: the budgets must be missed",
    )
    parser.add_argument(
        "--only", nargs="+", choices=PHASES, default=list(PHASES), help="run only these phases"
    )
    return parser.parse_args()


if __name__ == "__main__":
    enter_sandbox()
    sys.exit(asyncio.run(main(arguments())))
