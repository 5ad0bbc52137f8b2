"""Medians and percentiles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread", "median_ratio", "percentile", "spread"]


@dataclass(frozen=True)
class Spread:
    """What is told of a series: the middle, what 1 in 100 exceeds, the end."""

    count: int
    median: float
    p99: float
    worst: float

    def rounded(self, digits: int = 3) -> dict[str, float]:
        """Return it for the report."""
        return {
            "count": self.count,
            "median": round(self.median, digits),
            "p99": round(self.p99, digits),
            "worst": round(self.worst, digits),
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` % of all do not exceed (nearest rank).

    Always one of the values; with fewer than 100 of them the 99th percentile is the largest.

    :raise ValueError: there are no values, or `percent` is not above 0 and up to 100.
    """
    if not values:
        raise ValueError("no values, no percentile")
    if not 0 < percent <= 100:
        raise ValueError(f"{percent} is not a percentage above 0")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def spread(values: Sequence[float]) -> Spread:
    """Summarise a series.

    :raise ValueError: there are no values.
    """
    return Spread(
        count=len(values),
        p99=percentile(values, 99),
        median=statistics.median(values),
        worst=max(values),
    )


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of what was measured in the same round.

    :raise ValueError: not as many of the one as of the other, or none.
    """
    if not ours:
        raise ValueError("no rounds, no ratio")
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
