"""Blocking calls in a thread, one after another, each with a caller who may leave.

A thread cannot be cancelled: a call that libvirt holds goes on, and the thread with it. What is
behind it can leave, and is not begun then. Nothing is, in `linkmgr.libvirt.client.pool`.

The thread is a daemon: a program does not wait at its end for a libvirt that never answers.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class NoResultError(Exception):
    """No result in time, or the thread has ended. A call that is begun goes on unseen."""


class _Job(Generic[T]):
    """A call, and where it stands."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.function = function
        self.abandoned = False  # nobody waits for it any more
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()

    def run(self) -> None:
        """Do it, and have the loop told; in a thread."""
        try:
            result = self.function()
        except BaseException as error:  # noqa: BLE001 - the caller's
            # The traceback keeps libvirt objects alive; free them in this thread, not the loop's.
            error.__traceback__ = error.__context__ = None
            self._in_loop(self.future.set_exception, error)
        else:
            self._in_loop(self.future.set_result, result)

    def _in_loop(self, tell: Callable[[Any], None], what: object) -> None:
        def end() -> None:
            tell(what)
            self.future.exception()  # nobody else looks, if the caller has left

        try:
            self.loop.call_soon_threadsafe(end)
        except RuntimeError:
            return  # the loop is closed, and with it whoever wanted to know


class WorkerThread:
    """A thread that runs calls one after another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._started = False
        self.busy = False  #: whether a call is under way
        self._last: _Job[None] | None = None

    async def call(self, function: Callable[[], T], *, timeout: float | None = None) -> T:
        """Run `function` in the thread when its turn comes.

        :param timeout: seconds, waiting for the turn included; ``None`` for as long as it takes.
        :raise NoResultError: its time is up, or the thread takes no more.
        """
        job = _Job(function)
        with self._lock:
            if self._last is not None:
                raise NoResultError
            self._put(job)
        try:
            await asyncio.wait({job.future}, timeout=timeout)
            if not job.future.done():
                raise NoResultError
        finally:
            with self._lock:
                job.abandoned = True  # it is not begun from here on
        return job.future.result()

    def finish(self, last: Callable[[], None]) -> asyncio.Future[None]:
        """Take no more calls, and run `last` when what was begun and wanted has ended.

        :return: done when that has ended. Repeats freely.
        """
        with self._lock:
            if self._last is None:
                self._last = _Job(last)
                self._put(None)
            return self._last.future

    def _put(self, job: _Job[Any] | None) -> None:
        self._jobs.put(job)
        if not self._started:
            self._started = True
            threading.Thread(target=self._work, name=self.name, daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                self.busy = not job.abandoned
            if self.busy:
                job.run()
                self.busy = False
            del job  # what it holds is to be freed here
        assert self._last is not None
        self._last.run()
