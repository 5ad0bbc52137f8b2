"""TCP through the hub, beside the same guest on taps that are wired to its NIC directly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.lab import BRIDGE, OFFLOAD, PLAIN, Lab
from bench.loss import IN, OUT
from bench.stats import median_ratio

__all__ = ["PATHS", "Throughput", "measure_throughput"]

PATHS = {"hub": BRIDGE, "plain_tap": PLAIN, "offload_tap": OFFLOAD}


@dataclass
class Throughput:
    """Bits per second of each round, by path and direction."""

    rates: dict[tuple[str, str], list[float]] = field(
        default_factory=lambda: {(path, way): [] for path in PATHS for way in (OUT, IN)}
    )

    def ratios(self, other: str) -> dict[str, float]:
        """Return what the hub makes of another path's throughput, each round by itself."""
        return {
            f"tcp_{way}_ratio": round(
                median_ratio(self.rates["hub", way], self.rates[other, way]), 3
            )
            for way in (OUT, IN)
        }


async def measure_throughput(
    lab: Lab, rounds: int, seconds: int, tick: Callable[[], None]
) -> Throughput:
    """Measure every path in both directions, one after the other, `rounds` times."""
    found = Throughput()
    await lab.settle(BRIDGE)
    for number in range(rounds):
        for way in (OUT, IN):
            # Not always in the same order: what comes first may find the host cooler.
            for path in list(PATHS) if number % 2 else reversed(PATHS):
                rate = await lab.guest.tcp_throughput(
                    lab.peers[PATHS[path]],
                    lab.address(PATHS[path]),
                    seconds=seconds,
                    inward=way == IN,
                )
                found.rates[path, way].append(rate)
                tick()
    return found
