"""Calls to libvirt that do not wait for each other for long.

A call takes a millisecond, and one thread with one connection, a lane, is enough for all. But
libvirt can hold any call: while a hook of that domain runs, or its QEMU does not answer. So a call
whose turn has not come after `OVERTAKE` seconds leaves, a new lane is opened, and it and all after
it take that one; the old lane is closed when its call has ended. At most `HELD` lanes wait for
such an end. While that many do, calls wait in the last lane, and leave when their time is up.
"""

from __future__ import annotations

import asyncio
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
        self._opening: asyncio.Task[None] | None = None

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
                await self._overtake(lane, end - loop.time())
        raise LibvirtUnreachable(
            f"{what}: libvirt was not asked within {timeout:g} s: it does not answer others",
            hint=BUSY_HINT,
        )

    def close(self) -> None:
        """Give up all lanes but the first. Idempotent, waits for nothing."""
        if self._opening is not None:
            self._opening.cancel()
        for lane in {self._now, *self._left} - {self._first}:
            lane.retire()

    async def _overtake(self, lane: Handle, seconds: float) -> None:
        """Leave a lane for another one, unless somebody else has done so meanwhile.

        One is opened for all who wait, and goes on if they leave: a libvirt that is stopped takes
        each connection, and answers none.
        """
        if self._opening is None:
            self._left = [each for each in self._left if each.busy]
            if (self._now is not lane and self._now.alive) or len(self._left) >= HELD:
                return
            self._opening = asyncio.create_task(self._open(lane), name="overtake in libvirt")
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        # Then the old lane may be free again.
        await asyncio.wait({opening}, timeout=max(0.0, min(seconds, OVERTAKE)))
        if opening.done() and not opening.cancelled():
            opening.result()

    async def _open(self, lane: Handle) -> None:
        opened = await Handle.open(self._first.uri)
        for each in {self._now, lane} - {self._first}:
            each.retire()
        self._left.append(lane)
        self._now = opened

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # nobody else looks, if all have left
        if not self._first.alive:
            self.close()
