"""What a swap, the service and the hook may cost, and whether they do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BUDGETS", "Budget", "BudgetVerdict", "judge"]


@dataclass(frozen=True)
class Budget:
    """A limit for one figure of ``hub_swap``, ``service`` or ``hook``.

    :param phase: which phase measures it.
    :param reached: whether the limit itself is still good ("at most", not "under").
    """

    phase: str
    key: str
    what: str
    limit: float
    reached: bool = False

    def met_by(self, value: float) -> bool:
        """Tell whether `value` is within the budget; NaN is not."""
        return value < self.limit or (self.reached and value == self.limit)


@dataclass(frozen=True)
class BudgetVerdict:
    """A budget beside what was measured."""

    budget: Budget
    value: float

    @property
    def ok(self) -> bool:
        """Whether the budget was kept."""
        return self.budget.met_by(self.value)

    def report(self) -> dict[str, object]:
        """Return it for the report; a value that was not measured is null."""
        return {
            "name": self.budget.key,
            "what": self.budget.what,
            "limit": self.budget.limit,
            "value": None if math.isnan(self.value) else self.value,
            "ok": self.ok,
        }


BUDGETS = (
    Budget("swaps", "switch_ms_median", "QMP switch, median, under (ms)", 2.0),
    Budget(
        "loss", "lost_over_baseline_out", "frames lost guest to peer, at most", 5.0, reached=True
    ),
    Budget(
        "loss", "lost_over_baseline_in", "frames lost peer to guest, at most", 5.0, reached=True
    ),
    Budget("stall", "stall_over_baseline_ms_median", "stall of QEMU, median, under (ms)", 1.5),
    Budget("stall", "stall_over_baseline_ms_p99", "stall of QEMU, p99, under (ms)", 5.0),
    Budget("service", "start_200_s", "start with 200 VMs, median, under (s)", 3.0),
    Budget("service", "idle_cpu_percent", "idle CPU with 200 VMs, under (%)", 0.5),
    Budget("service", "rss_mb", "resident memory with 200 VMs, under (MB)", 100.0),
    Budget(
        "hook",
        "hook_start_over_ms_median",
        "virsh start, more with the hook, at most (ms)",
        60.0,
        reached=True,
    ),
    Budget("hook", "hook_down_ms_worst", "hook, service down, worst, under (ms)", 250.0),
    Budget("hook", "hook_hangs_s_worst", "hook, service hangs, worst, under (s)", 2.5),
)


def judge(figures: Mapping[str, object]) -> list[BudgetVerdict]:
    """Hold the figures against the budgets; a figure that is missing misses its budget."""
    verdicts = []
    for budget in BUDGETS:
        value = figures.get(budget.key)
        verdicts.append(
            BudgetVerdict(budget, float(value) if isinstance(value, int | float) else math.nan)
        )
    return verdicts
