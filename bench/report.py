"""The results: build/bench.json for programs, tables for people.

Keys of bench.json: ``ok``, ``budgets`` (``[{name, what, limit, value, ok}]``), ``hub_swap`` (the
figures that have budgets and some beside them: times in milliseconds, losses in frames),
``hub_vs_plain_tap`` and ``hub_vs_offload_tap`` (``tcp_out_ratio``, ``tcp_in_ratio``), ``timings``
(by kind of swap and step), ``loss`` (by network and direction), ``stall``, ``throughput_mbit``,
``service`` (see `bench.service`), ``hook`` (see `bench.hook`), ``host``, ``options``,
``seconds``. Phases that were left out have no keys. ``*_shared_cpus_*``: see `bench.stall`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.budgets import BudgetVerdict
from bench.hook import ALONE, HookFigures
from bench.lab import BRIDGE
from bench.loss import IN, OUT, Loss
from bench.service import CLIENTS, VMS, ServiceFigures
from bench.stall import Stall
from bench.stats import Spread, spread
from bench.swaps import TOTAL, Times
from bench.throughput import PATHS, Throughput

__all__ = ["Results", "show"]


@dataclass
class Results:
    """What the phases found; what was left out is empty."""

    times: list[Times] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    throughput: Throughput | None = None
    service: ServiceFigures | None = None
    hook: HookFigures | None = None

    def hub_swap(self) -> dict[str, Any]:
        """Return the figures of a swap between two ports of one bridge network."""
        figures: dict[str, Any] = {}
        if self.times:
            steps = self.times[0].steps
            for step in ("switch", TOTAL):
                figures[f"{step}_ms_median"] = round(median(steps[step]), 3)
                figures[f"{step}_ms_p99"] = round(spread(steps[step]).p99, 3)
        over = {loss.direction: _over(loss) for loss in self.losses if loss.network == BRIDGE}
        if over:
            figures["lost_over_baseline_median"] = max(over.values())
            figures |= {f"lost_over_baseline_{way}": value for way, value in over.items()}
        for stall in self.stalls:
            key = "stall_over_baseline_ms" if stall.first else "stall_over_baseline_shared_cpus_ms"
            swap, quiet = spread(stall.swap), spread(stall.quiet)
            figures[f"{key}_median"] = round(swap.median - quiet.median, 3)
            figures[f"{key}_p99"] = round(swap.p99 - quiet.p99, 3)
        return figures

    def figures(self) -> dict[str, Any]:
        """Return the figures that may have budgets."""
        figures = self.hub_swap() | (self.service.report() if self.service else {})
        return figures | (self.hook.report() if self.hook else {})

    def report(self) -> dict[str, Any]:
        """Return all of it for bench.json."""
        found: dict[str, Any] = {"hub_swap": self.hub_swap()}
        if self.throughput:
            for other in ("plain_tap", "offload_tap"):
                found[f"hub_vs_{other}"] = self.throughput.ratios(other)
            found["throughput_mbit"] = {
                path: {way: round(_mbit(self.throughput, path, way), 1) for way in (OUT, IN)}
                for path in PATHS
            }
        if self.times:
            found["timings"] = {
                times.kind: {step: spread(ms).rounded() for step, ms in times.steps.items()}
                for times in self.times
            }
        if self.losses:
            found["loss"] = [_loss(loss) for loss in self.losses]
        if self.stalls:
            found["stall"] = [
                {
                    "qemu_first": stall.first,
                    "swap": spread(stall.swap).rounded(),
                    "quiet": spread(stall.quiet).rounded(),
                    "round_trip_ms_median": round(stall.usual, 3),
                }
                for stall in self.stalls
            ]
        if self.service:
            found["service"] = self.service.report()
        if self.hook:
            found["hook"] = self.hook.report()
        return found


def show(results: Results, verdicts: Sequence[BudgetVerdict], console: Console) -> None:
    """Print the tables."""
    for table in (
        _times_table(results.times),
        _loss_table(results.losses),
        _stall_table(results.stalls),
        _throughput_table(results.throughput),
        _service_table(results.service),
        _latency_table(results.service),
        _hook_table(results.hook),
        _verdict_table(verdicts),
    ):
        if table.row_count:
            console.print()
            console.print(table)


def _times_table(kinds: Sequence[Times]) -> Table:
    kinds = [times for times in kinds if times.steps]
    table = _table(
        "Time of a swap: median / p99 in ms",
        "step",
        *(times.kind.replace("_", " ") for times in kinds),
    )
    for step in kinds[0].steps if kinds else ():
        cells = [spread(times.steps[step]) for times in kinds]
        row = (f"{_ms(cell.median)} / {_ms(cell.p99)}" for cell in cells)
        table.add_row(step, *row, style="bold" if step in ("switch", TOTAL) else "")
    return table


def _loss_table(losses: Sequence[Loss]) -> Table:
    table = _table(
        "Frames lost per window at 10,000/s: median (worst)",
        *("network", "direction", "windows", "with a swap", "without", "more with"),
    )
    for loss in losses:
        way = "guest to peer" if loss.direction == OUT else "peer to guest"
        cells = (_frames(spread(loss.swap)), _frames(spread(loss.quiet)))
        table.add_row(loss.network, way, f"2 x {len(loss.swap)}", *cells, f"{_over(loss):g}")
    return table


def _stall_table(stalls: Sequence[Stall]) -> Table:
    table = _table("Longest round trip per window in ms", "windows", "median", "p99", "worst")
    for stall in stalls:
        swap, quiet = spread(stall.swap), spread(stall.quiet)
        more = (swap.median - quiet.median, swap.p99 - quiet.p99, swap.worst - quiet.worst)
        cpus = "QEMU first" if stall.first else "CPUs shared"
        for what, cell in (("with a swap", swap), ("without", quiet)):
            row = (_ms(cell.median), _ms(cell.p99), _ms(cell.worst))
            table.add_row(f"{cpus}: {cell.count} {what}", *row)
        table.add_row("more with", *map(_ms, more), style="bold" if stall.first else "")
        table.add_section()
    return table


def _throughput_table(found: Throughput | None) -> Table:
    table = _table("One TCP stream", "path", "out Gbit/s", "in Gbit/s", "hub: out", "hub: in")
    if found:
        for path in PATHS:
            rates = (f"{_mbit(found, path, way) / 1000:.2f}" for way in (OUT, IN))
            ratios = found.ratios(path).values() if path != "hub" else ()
            table.add_row(path.replace("_", " "), *rates, *(f"{ratio:.0%}" for ratio in ratios))
    return table


def _service_table(found: ServiceFigures | None) -> Table:
    table = _table(f"The service with {VMS} VMs", "", "")
    if found:
        of = found.report()
        table.add_row("start after a kill, median", f"{of['start_200_s']:.2f} s")
        table.add_row("of which CPU time", f"{of['start_200_cpu_s']:.2f} s")
        table.add_row("adding a VM", f"{of['add_ms']:.1f} ms")
        table.add_row("idle CPU, worst window", f"{of['idle_cpu_percent']:.3f} %")
        for when, mb in of["memory_mb"].items():
            table.add_row(f"RSS / PSS, {when}", f"{mb['rss']:.1f} / {mb['pss']:.1f} MB")
        table.add_row("load", " ".join(f"{load:.2f}" for load in found.load))
    return table


def _latency_table(found: ServiceFigures | None) -> Table:
    title = f"Latency with {CLIENTS} clients at once in ms"
    table = _table(title, "request", "count", "median", "p99", "worst")
    for op, ms in found.latencies.items() if found else ():
        cell = spread(ms)
        table.add_row(op, str(cell.count), _ms(cell.median), _ms(cell.p99), _ms(cell.worst))
    return table


def _hook_table(found: HookFigures | None) -> Table:
    table = _table("libvirt's hook in ms", "", "count", "median", "p99", "worst")
    for name in ALONE if found else ():
        assert found is not None
        for what, ms in (("virsh start", found.starts.get(name)), ("alone", found.alone[name])):
            if ms:
                cell = spread(ms)
                row = (str(cell.count), _ms(cell.median), _ms(cell.p99), _ms(cell.worst))
                table.add_row(f"{name}: {what}", *row)
    return table


def _verdict_table(verdicts: Sequence[BudgetVerdict]) -> Table:
    table = _table("Budgets", "budget", "limit", "measured", "")
    for verdict in verdicts:
        word = "[green]kept[/]" if verdict.ok else "[bold red]missed[/]"
        budget = verdict.budget
        table.add_row(budget.what, f"{budget.limit:g}", f"{verdict.value:.3g}", word)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    return table


def _loss(loss: Loss) -> dict[str, Any]:
    return {
        "network": loss.network,
        "direction": loss.direction,
        "swap": spread(loss.swap).rounded(),
        "quiet": spread(loss.quiet).rounded(),
        "over_baseline_median": _over(loss),
        "late_swaps": loss.late,
    }


def _over(loss: Loss) -> float:
    return median(loss.swap) - median(loss.quiet)


def _mbit(found: Throughput, path: str, way: str) -> float:
    return median(found.rates[path, way]) / 1e6


def _ms(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _frames(cell: Spread) -> str:
    return f"{cell.median:g} ({cell.worst:g})"
