"""Single flight: one run of a call for all who wait for it, as in Go's golang.org/x/sync."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: A run begins no sooner after the last one than this many times what that took, and no later than
#: so many seconds: callers that ask without end have a quarter of the loop's time at most.
REST_FACTOR, REST_MAX_S = 3.0, 1.0
#: Seconds that it takes to answer one of those who asked (measured for HTTP: 0.7 ms): a part of
#: what a run takes, and the larger one if hundreds ask.
ANSWER_COST_S = 0.001


class SingleFlight(Generic[T]):
    """Runs a call for any number of callers, one run at a time.

    A caller that comes while a run is under way gets the next one, shared with all that come until
    it begins: a change that the caller has just made shows in it. A run without callers is
    cancelled.

    :param call: what is run; it may be cancelled at any await.
    :param name: of its task.
    """

    def __init__(self, call: Callable[[], Awaitable[T]], name: str) -> None:
        self._call = call
        self._name = name
        self._last: _Run[T] | None = None

    async def get(self) -> T:
        """The result of a run that begins from now on, or what it raised."""
        run = self._last
        if run is None or run.begun or run.task.done() or run.task.cancelling():
            run = self._last = _Run(self._call, self._name, run)
        run.callers += 1
        run.most = max(run.most, run.callers)
        try:
            return await asyncio.shield(run.task)
        finally:
            run.callers -= 1
            if not run.callers:
                run.task.cancel()

    async def close(self) -> None:
        """Cancel what is under way, and wait for its end."""
        if self._last is not None:
            self._last.task.cancel()
            await asyncio.wait({self._last.task})


class _Run(Generic[T]):
    """One run, and how many wait for it."""

    def __init__(self, call: Callable[[], Awaitable[T]], name: str, before: _Run[T] | None) -> None:
        self._call = call
        self.callers = self.most = 0
        self.begun = False
        self.ended = 0.0  #: when, in the loop's time
        self.took = 0.0  #: seconds
        self.task = asyncio.create_task(self._run(before), name=name)
        self.task.add_done_callback(_retrieve_exception)

    async def _run(self, before: _Run[T] | None) -> T:
        clock = asyncio.get_running_loop().time
        if before is not None:
            await asyncio.wait({before.task})
            rest = min(REST_FACTOR * (before.took + ANSWER_COST_S * before.most), REST_MAX_S)
            await asyncio.sleep(max(0.0, before.ended + rest - clock()))
        self.begun = True
        begun = clock()
        try:
            return await self._call()
        finally:
            self.ended = clock()
            self.took = self.ended - begun


def _retrieve_exception(task: asyncio.Task[T]) -> None:
    if not task.cancelled():
        task.exception()  # all who asked may have left
