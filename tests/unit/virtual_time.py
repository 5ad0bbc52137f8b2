"""An event loop on virtual time: what waits is not waited for, however busy the machine is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class VirtualTime:
    """The clock of a loop in `virtual_time`, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def pass_by(self, seconds: float) -> None:
        """Let that time pass, as work that takes it does."""
        self.now += seconds

    def read(self) -> float:
        """Return the time, as `time.monotonic` does."""
        return self.now


@contextmanager
def virtual_time(patch: pytest.MonkeyPatch) -> Iterator[VirtualTime]:
    """Put the running loop on virtual time, which goes on to the next timer when all wait.

    Only for what does no I/O, as nothing is waited for that comes from outside.
    """
    made = VirtualTime()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    select = loop._selector.select  # type: ignore[attr-defined]  # asyncio's own

    def at_once(timeout: float | None = None) -> object:
        made.pass_by(timeout or 0.0)
        return select(0)

    made.now = loop.time()  # timers that were set before are on the same scale
    with patch.context() as patched:
        patched.setattr(loop, "time", made.read)
        patched.setattr(loop._selector, "select", at_once)  # type: ignore[attr-defined]
        yield made
