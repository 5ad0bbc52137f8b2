"""The event loop's time that reading requests takes is shared out among users.

Requests are parsed when they arrive, before the application is asked and `FairShare` counts: each
chunk of a body and each header costs a few microseconds, so 200 connections with a few hundred
kilobytes of the smallest chunks are minutes of the loop. So that time is metered, too, and nothing
more is read from a user that is over its share. Root and the service's own user are not metered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from linkmgr.aio.token_bucket import TimeBudget, UserBudgets
from linkmgr.service.auth.peer import Peer

#: Bytes that are read from a connection at once: 10 ms of the smallest chunks.
MAX_READ_BYTES = 8 << 10
#: Seconds of the loop's time that a user's requests may take to be read at once: some hundreds.
BURST_S = 0.1
USER_SHARE = 0.05  #: of the loop's time for reading one user's requests: two hundred a second
ALL_SHARE = 0.15  #: of the loop's time for reading those of all such users
#: Seconds of it that each read takes around the parsing: sending byte by byte causes many.
READ_OVERHEAD_S = 0.00005
#: Seconds that a pause has at least: each is a timer, and a system call for each connection.
MIN_PAUSE_S = 0.05


class PausableConnection(Protocol):
    """A connection that can be told to read no further."""

    def pause_reading(self) -> None:
        """Read no further for now."""

    def resume_reading(self) -> None:
        """Read again."""


class ReadMeter:
    """Meters the time that reading takes by user, and pauses connections.

    :param free: says who is not metered.
    """

    def __init__(self, free: Callable[[Peer], bool]) -> None:
        self._free = free
        self._all = TimeBudget(BURST_S, ALL_SHARE)
        self._users = UserBudgets(BURST_S, USER_SHARE)
        self._connections: dict[int, set[PausableConnection]] = {}  # by uid
        self._paused: set[int] = set()  # uids

    def add(self, peer: Peer, connection: PausableConnection) -> None:
        """Take in a new connection."""
        if self._free(peer):
            return
        self._connections.setdefault(peer.uid, set()).add(connection)
        if self._wait(peer.uid):
            connection.pause_reading()
            self._pause(peer.uid)

    def remove(self, peer: Peer, connection: PausableConnection) -> None:
        """Forget a connection."""
        known = self._connections.get(peer.uid, set())
        known.discard(connection)
        if not known:
            self._connections.pop(peer.uid, None)

    @contextmanager
    def spending(self, peer: Peer, connection: PausableConnection) -> Iterator[None]:
        """Count the processor time of a block that reads from a connection, and must not await."""
        began = time.thread_time()
        try:
            yield
        finally:
            if not self._free(peer):
                seconds = READ_OVERHEAD_S + time.thread_time() - began
                self._users.of(peer.uid).spend(seconds)
                self._all.spend(seconds)
                if peer.uid in self._paused:
                    connection.pause_reading()  # it was told to read on when an answer was complete
                for uid in self._connections if self._all.wait else (peer.uid,):
                    if self._wait(uid):
                        self._pause(uid)

    def _pause(self, uid: int) -> None:
        """Pause all connections of a user, those too that the loop would read from next."""
        if uid in self._paused:
            return
        self._paused.add(uid)
        for each in self._connections.get(uid, ()):
            each.pause_reading()
        self._look_again(uid)

    def _look_again(self, uid: int) -> None:
        pause = max(self._wait(uid), MIN_PAUSE_S)
        asyncio.get_running_loop().call_later(pause, self._read_on, uid)

    def _read_on(self, uid: int) -> None:
        if self._wait(uid):
            self._look_again(uid)
            return
        self._paused.discard(uid)
        for each in self._connections.get(uid, ()):
            each.resume_reading()

    def _wait(self, uid: int) -> float:
        return max(self._users.of(uid).wait, self._all.wait)
