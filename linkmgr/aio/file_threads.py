"""Calls about files of others, in threads of their own: a file system may never answer.

What names a path waits for the file system behind it, and a FUSE or NFS mount whose server is
silent keeps it waiting for ever. A thread cannot be ended, so one that takes too long is left
alone; it counts until it returns. The threads that all share (`asyncio.to_thread`) are few, and
would soon all be held.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

#: Threads of one user at once. A call takes less than a millisecond where the file system answers.
PER_USER_MAX = 4
#: Threads of all users but root and the service's own at once: the unit allows 256 tasks.
UNPRIVILEGED_MAX = 32
#: Threads of root and the service's own user at once; the next ones wait for a place.
PRIVILEGED_MAX = 64
_SLOT_POLL_INTERVAL_S = 0.01  # between two looks whether there is a place

T = TypeVar("T")


class NoFreeThread(TimeoutError):
    """A call was not begun in time, for as many others as may be are under way."""


class FileThreads:
    """Runs calls that may never return."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Counter[int] = Counter()  # by uid

    async def run(
        self,
        uid: int,
        call: Callable[[], T],
        *,
        timeout: float,
        discard: Callable[[T], object] = lambda _: None,
    ) -> T:
        """Run a call for a user.

        :param timeout: seconds, those included that it waits for a place.
        :param discard: takes what the call returns when nobody waits for it any more.
        :raise NoFreeThread: it found no place in time.
        :raise TimeoutError: it has not returned in time.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def deliver(made: list[T], error: BaseException | None) -> None:
            if result.done():
                for each in made:
                    discard(each)
            elif error is not None:
                result.set_exception(error)
            else:
                result.set_result(made[0])

        def run_call() -> None:
            made: list[T] = []
            error: BaseException | None = None
            try:
                made.append(call())
            except BaseException as caught:  # noqa: BLE001 - it is the caller's
                error = caught
            self._count(uid, -1)
            try:
                loop.call_soon_threadsafe(deliver, made, error)
            except RuntimeError:  # the loop has ended
                for each in made:
                    discard(each)

        begun = False
        try:
            async with asyncio.timeout(timeout):
                while not self._take_slot(uid):  # noqa: ASYNC110 - no thread sets an asyncio.Event
                    await asyncio.sleep(_SLOT_POLL_INTERVAL_S)
                begun = True
                # The process must not wait for it at its end.
                thread = threading.Thread(target=run_call, name=f"file of uid {uid}", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self._count(uid, -1)
                    raise OSError(f"no thread can be made: {error}") from error
                try:
                    return await result
                except asyncio.CancelledError:
                    # It may have come in the same turn of the loop.
                    if result.done() and not result.cancelled() and result.exception() is None:
                        discard(result.result())
                    raise
        except TimeoutError as error:
            if begun:
                raise
            raise NoFreeThread(f"no thread for files of uid {uid} within {timeout:g} s") from error

    def _take_slot(self, uid: int) -> bool:
        privileged = {0, os.geteuid()}
        with self._lock:
            if uid in privileged:
                free = sum(self._running[each] for each in privileged) < PRIVILEGED_MAX
            else:
                others = sum(n for each, n in self._running.items() if each not in privileged)
                free = self._running[uid] < PER_USER_MAX and others < UNPRIVILEGED_MAX
            if free:
                self._running[uid] += 1
            return free

    def _count(self, uid: int, number: int) -> None:
        with self._lock:
            self._running[uid] += number
            if not self._running[uid]:
                del self._running[uid]


_THREADS = FileThreads()
run_in_file_thread = _THREADS.run
