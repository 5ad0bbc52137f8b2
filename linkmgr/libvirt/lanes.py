"""Calls to libvirt that do not wait for each other for long.

A call takes a millisecond, and one thread with one connection, a lane, is enough for all. But
libvirt can hold any call: while a hook of that domain runs, or its QEMU does not answer. So a call
whose turn has not come after `OVERTAKE` seconds leaves, a new lane is opened, and it and all after
it take that one; the old lane is closed when its call has ended. At most `HELD` lanes wait for
such an end. While that many do, calls wait in the last lane, and leave when their time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from linkmgr.errors import LibvirtUnreachable
from linkmgr.libvirt.handle import BUSY_HINT, Handle
from linkmgr.libvirt.worker import LateError

T = TypeVar("T")

OVERTAKE = 0.5
HELD = 4


class Lanes:
    """The connections over which calls are made.

    :param first: the lane to begin with; it stays open, for its events, until its owner closes it.
    """

    def __init__(self, first: Handle) -> None:
        self._first = first
        self._now = first
        self._left: list[Handle] = []  # lanes that were left to a call
        self._opening = asyncio.Lock()

    async def call(self, what: str, work: Callable[[Any, Any], T], timeout: float) -> T:
        """Run ``work(load(), connection)``; see `Handle.call`.

        :raise LibvirtUnreachable: the connection ended, or no answer in time.
        :raise LibvirtRefused: libvirt answered with an error.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while (left := end - loop.time()) > 0:
            lane = self._now if self._now.alive else self._first
            try:
                return await lane.call(what, work, timeout=left, turn=OVERTAKE)
            except LateError:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(end):
                        await self._overtake(lane)
        raise LibvirtUnreachable(
            f"{what}: libvirt was not asked within {timeout:g} s: it does not answer others",
            hint=BUSY_HINT,
        )

    def close(self) -> None:
        """Give up all lanes but the first. Idempotent, waits for nothing."""
        for lane in {self._now, *self._left} - {self._first}:
            lane.retire()

    async def _overtake(self, lane: Handle) -> None:
        """Leave a lane for another one, unless somebody else has done so meanwhile."""
        async with self._opening:
            self._left = [each for each in self._left if each.busy]
            if (self._now is not lane and self._now.alive) or len(self._left) >= HELD:
                return
            opened = await Handle.open(self._first.uri)
            for each in {self._now, lane} - {self._first}:
                each.retire()
            self._left.append(lane)
            self._now = opened
            if not self._first.alive:
                self.close()
