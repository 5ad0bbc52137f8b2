"""A pool of connections to libvirt, in which one domain's held call delays no other domain's.

A call takes a millisecond. But libvirt can hold any call about a domain: while a hook of it runs, a
job of it lasts, or its QEMU does not answer. So of each domain one call is under way at most. One
that takes longer than `HELD_AFTER_S` seconds is *held*: it leaves the pool with its connection and
its thread, another connection takes its place, and until it returns every other call about
that domain is answered at once as busy. A domain whose last call was held is not counted among the
pool's at all: it cannot delay the others for `HELD_AFTER_S` seconds again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from linkmgr.errors import LibvirtUnreachable
from linkmgr.libvirt.client.handle import BUSY_HINT, LibvirtConnection

T = TypeVar("T")

#: Seconds after which a call is held. Nearly all take less than 0.01, on a busy host 0.1.
HELD_AFTER_S = 0.25
#: Calls under way that are not held: fewer than libvirtd has workers (20), which others need too.
MAX_RUNNING = 16
#: Held calls, so domains: each is a thread and a connection. libvirtd itself takes no calls long
#: before that, unless somebody has raised its ``max_workers``.
MAX_HELD = 64
#: Connections that stay open with nothing to do, beside the first.
MAX_IDLE = 2


@dataclass(eq=False)
class _Call:
    """A call under way, or queued for a connection.

    :param suspect: whether the last one about the same domain was held.
    :param since: when it was asked for, in the loop's time.
    """

    domain: str
    suspect: bool
    since: float
    held: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class ConnectionPool:
    """The connections over which calls are made.

    :param first: stays open, for its events, until its owner closes it.
    """

    def __init__(self, first: LibvirtConnection) -> None:
        self._first = first
        self._idle = [first]
        self._calls: dict[str, _Call] = {}  # by domain
        self._suspects: set[str] = set()
        # In the order in which they came.
        self._queue: dict[_Call, asyncio.Future[LibvirtConnection]] = {}
        self._running = 0  # calls under way that count
        self._opening: asyncio.Task[LibvirtConnection] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(
        self, what: str, domain: str, function: Callable[[Any, Any], T], timeout: float
    ) -> T:
        """Run ``function(api, conn)``: libvirt-python, and its connection.

        :param what: that is asked, for errors: "the XML of web1".
        :param domain: whom it is about; empty for what is about all of them.
        :param timeout: seconds, waiting for a connection included.
        :raise LibvirtUnreachable: the connection ended, no answer in time, or the domain is busy.
        :raise LibvirtRefused: libvirt answered with an error.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        await self._wait_turn(what, domain, end)
        call = self._calls[domain] = _Call(domain, domain in self._suspects, loop.time())
        try:
            connection = await self._obtain(what, call, timeout)
        except BaseException:
            self._has_ended(call)
            raise
        # Its time up or its caller gone, it goes on: a call cannot be taken back.
        task = asyncio.create_task(connection.call(what, function), name=f"libvirt: {what}")
        self._tasks.add(task)
        late = loop.call_later(HELD_AFTER_S, self._hold, call)
        task.add_done_callback(partial(self._returned, call, connection, late))
        await asyncio.wait({task}, timeout=max(0.0, end - loop.time()))
        if not task.done():
            raise LibvirtUnreachable(
                f"{what}: libvirt was asked, but did not answer within {timeout:g} s",
                hint=BUSY_HINT,
                sent=True,
            )
        return task.result()

    def close(self) -> None:
        """Give up all connections but the first. Idempotent, waits for nothing."""
        if self._opening is not None:
            self._opening.cancel()
        for connection in self._idle:
            self._retire(connection)
        self._idle.clear()

    # ------------------------------------------------------------------ whose turn it is

    async def _wait_turn(self, what: str, domain: str, end: float) -> None:
        """Wait until no other call about the domain is under way.

        :raise LibvirtUnreachable: one is held, or all that may be are. What is about all domains
            waits instead: nothing that a guest needs does.
        """
        clock = asyncio.get_running_loop().time
        while (before := self._calls.get(domain)) is not None:
            left = end - clock()
            if (before.held and domain) or left <= 0:
                raise LibvirtUnreachable(
                    f"{what}: libvirt is busy with it, for an earlier call has not returned for "
                    f"{clock() - before.since:.1f} s",
                    hint=BUSY_HINT,
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(before.ended.wait(), min(HELD_AFTER_S, left))
        if sum(each.held for each in self._calls.values()) >= MAX_HELD:
            raise LibvirtUnreachable(
                f"{what}: libvirt holds {MAX_HELD} calls about other domains", hint=BUSY_HINT
            )

    async def _obtain(self, what: str, call: _Call, timeout: float) -> LibvirtConnection:
        """Have a connection for a call, and be counted with it.

        :raise LibvirtUnreachable: none in time, or none can be opened.
        """
        loop = asyncio.get_running_loop()
        waits: asyncio.Future[LibvirtConnection] = loop.create_future()
        self._queue[call] = waits
        self._assign()
        try:
            left = call.since + timeout - loop.time()
            await asyncio.wait({waits}, timeout=max(0.0, left))
            if waits.done():
                return waits.result()
        except BaseException:
            if waits.done() and not waits.cancelled() and waits.exception() is None:
                self._give_back(call, waits.result())
            raise
        finally:
            self._queue.pop(call, None)
            if not waits.cancel() and not waits.cancelled():
                waits.exception()  # seen, also if nobody waits for it any more
        raise LibvirtUnreachable(
            f"{what}: libvirt was not asked within {timeout:g} s: it does not answer others",
            hint=BUSY_HINT,
        )

    def _assign(self) -> None:
        """Give idle connections to queued calls that may have one, suspects last; or open one."""
        for call, waits in sorted(self._queue.items(), key=lambda each: each[0].suspect):
            if not call.suspect and self._running >= MAX_RUNNING:
                continue
            self._idle = [each for each in self._idle if each.alive]
            if not self._idle:
                self._open()
                return
            del self._queue[call]
            self._running += not call.suspect
            waits.set_result(self._idle.pop())

    def _open(self) -> None:
        """Open a connection, one at a time: a libvirt that is stopped takes each, and answers none.

        It goes on if all who wait for it have left.
        """
        if self._opening is None and self._first.alive:
            self._opening = asyncio.create_task(
                LibvirtConnection.open(self._first.uri), name="open libvirt"
            )
            self._opening.add_done_callback(self._opened)

    def _opened(self, opening: asyncio.Task[LibvirtConnection]) -> None:
        self._opening = None
        if opening.cancelled():
            return
        if error := opening.exception():
            for waits in self._queue.values():
                waits.set_exception(error)
            self._queue.clear()
        elif not self._first.alive:
            opening.result().retire()
        else:
            self._idle.append(opening.result())
            self._assign()

    # ------------------------------------------------------------------ what becomes of it

    def _hold(self, call: _Call) -> None:
        """Take a call out of the pool: it is held."""
        call.held = True
        if not call.suspect:
            self._running -= 1
            self._suspects.add(call.domain)
        self._assign()

    def _returned(
        self,
        call: _Call,
        connection: LibvirtConnection,
        late: asyncio.TimerHandle,
        task: asyncio.Task[Any],
    ) -> None:
        late.cancel()
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left
        if not call.held:
            self._suspects.discard(call.domain)
        self._give_back(call, connection)
        self._has_ended(call)

    def _give_back(self, call: _Call, connection: LibvirtConnection) -> None:
        """A call is over, or was never made: its connection is free."""
        if not call.suspect and not call.held:
            self._running -= 1
        if connection is self._first or (self._first.alive and len(self._idle) <= MAX_IDLE):
            self._idle.append(connection)
        else:
            self._retire(connection)
        self._assign()

    def _has_ended(self, call: _Call) -> None:
        if self._calls.get(call.domain) is call:
            del self._calls[call.domain]
        call.ended.set()

    def _retire(self, connection: LibvirtConnection) -> None:
        if connection is not self._first:
            connection.retire()
