"""The time that a thread has had, without that for which others had its processor."""

from __future__ import annotations

import time
from pathlib import Path

_OWN = Path("/proc/thread-self/schedstat")


def own_time(*processes: int) -> float:
    """Seconds that go on while this thread runs or sleeps, not while it waits for a processor.

    So an upper bound of it is as strict on a busy machine as on an idle one. A lower bound is not:
    what sleeps until a time has come does so by the clock of all.

    :param processes: those that owe this one an answer. What their threads wait for a processor
        does not count either. With this process among them, that is true of its other threads.
    """
    others = (task for pid in processes for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    waited = sum(_waited(each) for each in others) if processes else _waited(_OWN)
    return time.monotonic() - waited


def _waited(schedstat: Path) -> float:
    """Seconds, of proc(5)'s "time spent waiting to run" in nanoseconds."""
    return int(schedstat.read_text().split()[1]) / 1e9
