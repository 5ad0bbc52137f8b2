"""How long a swap takes, step by step, on a guest that does nothing else."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.lab import BRIDGE, DIRECT, Lab

__all__ = ["TOTAL", "Times", "time_swaps"]

TOTAL = "total"
SWAP_INTERVAL_S = 0.05  # seconds between swaps, so that none meets what is left of the one before


@dataclass
class Times:
    """Milliseconds of each swap of one kind, by step; ``total`` is what the caller waits."""

    kind: str
    steps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


async def time_swaps(lab: Lab, count: int, others: int, tick: Callable[[], None]) -> list[Times]:
    """Time `count` swaps between ports of the bridge network, `others` of each other kind."""
    same = Times("bridge_to_bridge")
    await lab.settle(BRIDGE)
    for _ in range(count):
        await _timed(lab, BRIDGE, same, tick)
    there, back = Times("bridge_to_direct"), Times("direct_to_bridge")
    for _ in range(others):
        await _timed(lab, DIRECT, there, tick, notify="silent")
        await _timed(lab, BRIDGE, back, tick, notify="silent")
    direct = Times("direct_to_direct")
    await lab.settle(DIRECT)
    for _ in range(others):
        await _timed(lab, DIRECT, direct, tick)
    return [same, there, back, direct]


async def _timed(
    lab: Lab, network: str, times: Times, tick: Callable[[], None], *, notify: str = "auto"
) -> None:
    await asyncio.sleep(SWAP_INTERVAL_S)
    start = time.perf_counter()
    outcome = await lab.swap(network, notify=notify)
    total = (time.perf_counter() - start) * 1000
    for step, ms in {**outcome.timings, TOTAL: total}.items():
        times.steps[step].append(ms)
    tick()
