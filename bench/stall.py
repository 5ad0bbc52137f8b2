"""How long QEMU's main loop is away during a swap, beside windows without one.

A late answer has two causes: QEMU was busy (its main loop at work, or waiting for a lock), or it
had no CPU. On a small machine the second hides the first: linkmgr, QEMU, its guest and the program
that asks are four, and other people's work comes on top. So the stall is measured with QEMU and the
one that asks before everything else (SCHED_RR), and a second time, for information, with all alike.
"""

from __future__ import annotations

import array
import asyncio
import os
import statistics
import sys
import tempfile
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.lab import BRIDGE, Lab
from linkmgr.testing.process import Child, finish, until

__all__ = ["RoundTrips", "Stall", "measure_stall"]

WINDOW_GAP_S = 0.03  # seconds between windows
WINDOW_TAIL_S = 0.02  # seconds that a window goes on after the swap, for what comes late


@dataclass(frozen=True)
class RoundTrips:
    """Round trips one after the other: when each began, how long it took; seconds."""

    starts: Sequence[float]
    durations: Sequence[float]

    @classmethod
    def read(cls, path: Path) -> RoundTrips:
        """Read what the program of `bench.roundtrips` wrote."""
        numbers = array.array("d")
        numbers.frombytes(path.read_bytes())
        return cls(numbers[0::2], numbers[1::2])

    def longest(self, start: float, end: float) -> float:
        """Return how long the longest took that began in the window or just before it.

        :raise ValueError: none did.
        """
        first = max(0, bisect_right(self.starts, start) - 1)
        return max(self.durations[first : bisect_right(self.starts, end)])


@dataclass
class Stall:
    """The longest round trip of each window, in milliseconds.

    :param first: whether QEMU went before everything else.
    :param usual: the median of all round trips, in milliseconds.
    """

    first: bool
    swap: list[float] = field(default_factory=list)
    quiet: list[float] = field(default_factory=list)
    usual: float = 0.0


async def measure_stall(lab: Lab, pairs: int, tick: Callable[[], None], *, first: bool) -> Stall:
    """Measure `pairs` windows with a swap and as many of the same length without, in turn.

    :param first: let QEMU and the program that asks go before everything else.
    :raise PermissionError: this machine does not allow that.
    """
    now = asyncio.get_running_loop().time  # CLOCK_MONOTONIC, as in the other process
    windows: list[tuple[list[float], float, float]] = []
    stall = Stall(first)
    await lab.settle(BRIDGE)
    with tempfile.TemporaryDirectory(prefix="linkmgr-bench-") as folder:
        result = Path(folder, "times")
        async with _asking(lab.guest.qmp2_path, result) as child:
            threads = (*_threads(lab.guest.pid), child.pid) if first else ()
            with _before_everything(threads):
                for _ in range(pairs):
                    await asyncio.sleep(WINDOW_GAP_S)
                    start = now()
                    await lab.swap(BRIDGE)
                    await asyncio.sleep(WINDOW_TAIL_S)
                    length = now() - start
                    windows.append((stall.swap, start, start + length))
                    await asyncio.sleep(WINDOW_GAP_S)
                    start = now()
                    await asyncio.sleep(length)
                    windows.append((stall.quiet, start, start + length))
                    tick()
        trips = RoundTrips.read(result)
    for series, start, end in windows:
        series.append(trips.longest(start, end) * 1000)
    stall.usual = statistics.median(trips.durations) * 1000
    return stall


@contextmanager
def _before_everything(threads: Iterable[int]) -> Iterator[None]:
    """Let these threads run whenever they can."""
    changed = []
    try:
        for thread in threads:
            os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(1))
            changed.append(thread)
        yield
    finally:
        for thread in changed:
            with suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _threads(pid: int) -> list[int]:
    return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]


@asynccontextmanager
async def _asking(monitor: Path, result: Path) -> AsyncIterator[Child]:
    """Run the program that asks QEMU over and over."""
    program = Path(__file__).with_name("roundtrips.py")
    said = result.with_name("said")
    with said.open("w+b") as output:
        child = Child([sys.executable, str(program), str(monitor), str(result)], output=output)

        async def ready() -> bool:
            return child.status is not None or "ready" in said.read_text()

        try:
            await until(ready, timeout=10, what="round trips begin")
            if child.status is not None:
                raise RuntimeError(f"{program} has ended: {said.read_text()}")
            yield child
        finally:
            await finish(child.end())
