"""Events of a monitor, fanned out to subscribers that may be slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Self
from weakref import WeakSet

#: Events that a subscriber may be behind before the oldest are dropped.
DEFAULT_LIMIT = 256

DISCONNECTED = "DISCONNECTED"
OVERFLOW = "OVERFLOW"


@dataclass(frozen=True)
class MonitorEvent:
    """An event as QEMU names it, or one of the two that linkmgr adds.

    ``DISCONNECTED`` (no data) is the last event of every stream. ``OVERFLOW`` (``lost``: how many)
    stands where events were dropped because the subscriber was too slow.
    """

    name: str
    data: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


class EventStream:
    """One subscriber's events, oldest first: an async iterator, and a context that ends it.

    It is subscribed from the moment that it exists, so nothing is lost between the call and the
    first iteration. Iteration ends after ``DISCONNECTED``.

    :param limit: events kept for a subscriber that is behind.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._queue: deque[MonitorEvent] = deque()
        self._limit = limit
        self._lost = 0
        self._ended = False  # no more events will be put
        self._farewell = False  # DISCONNECTED is still to be seen
        self._news = asyncio.Event()

    def put(self, event: MonitorEvent) -> None:
        """Queue an event; for the hub."""
        if self._ended:
            return
        if len(self._queue) >= self._limit:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(event)
        self._news.set()

    def end(self) -> None:
        """Queue the farewell; for the hub."""
        if not self._ended:
            self._ended = self._farewell = True
            self._news.set()

    async def aclose(self) -> None:
        """Unsubscribe: iteration ends at once, without ``DISCONNECTED``. Idempotent."""
        self._ended, self._farewell, self._lost = True, False, 0
        self._queue.clear()
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MonitorEvent:
        while True:
            if self._lost:
                lost, self._lost = self._lost, 0
                return MonitorEvent(OVERFLOW, {"lost": lost})
            if self._queue:
                return self._queue.popleft()
            if self._farewell:
                self._farewell = False
                return MonitorEvent(DISCONNECTED)
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class EventHub:
    """Hands every event to every subscriber without ever waiting for one."""

    def __init__(self) -> None:
        # Weak, so that a stream that is simply dropped (``break`` in an ``async for``) is freed.
        self._streams: WeakSet[EventStream] = WeakSet()
        self._ended = False

    def subscribe(self, limit: int = DEFAULT_LIMIT) -> EventStream:
        """Start a stream; after the end it yields only ``DISCONNECTED``."""
        stream = EventStream(limit)
        if self._ended:
            stream.end()
        self._streams.add(stream)
        return stream

    def put(self, event: MonitorEvent) -> None:
        """Hand on an event."""
        for stream in list(self._streams):
            stream.put(event)

    def end(self) -> None:
        """Say ``DISCONNECTED`` to every stream, once. Idempotent."""
        self._ended = True
        for stream in list(self._streams):
            stream.end()
