"""What is told to listeners, each of whom may be slow, and none of whom is waited for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class Stream(Generic[T]):
    """What one listener is told, oldest first: an async iterator.

    :param limit: how many wait for it at most; then the oldest goes.
    :param missed: makes what the listener is told first when it has missed so many.
    """

    def __init__(self, limit: int, missed: Callable[[int], T]) -> None:
        self._waiting: deque[T] = deque()
        self._limit = limit
        self._missed = missed
        self._lost = 0
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, item: T) -> None:
        """Add one; for whoever tells."""
        if self._closed:
            return
        if len(self._waiting) >= self._limit:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(item)
        self._wake.set()

    def close(self, *farewell: T) -> None:
        """Stop listening: iteration ends after what waits already. Idempotent.

        :param farewell: what the listener is told last.
        """
        if not self._closed:
            self._closed = True
            self._waiting.extend(farewell)
            self._wake.set()

    def drop(self) -> None:
        """Stop listening, and end the iteration at once. Idempotent."""
        self._closed, self._lost = True, 0
        self._waiting.clear()
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return self._missed(lost)
        return self._waiting.popleft()


class Listeners(Generic[T]):
    """Everybody who listens."""

    def __init__(self) -> None:
        # Weak, so that a stream that is simply dropped (``break`` in an ``async for``) is freed.
        self._streams: WeakSet[Stream[T]] = WeakSet()

    def add(self, stream: Stream[T]) -> None:
        """Tell this one too, until it is closed."""
        self._streams.add(stream)

    def tell(self, item: T) -> None:
        """Tell everybody, and wait for nobody."""
        for stream in list(self._streams):
            stream.put(item)

    def close(self, *farewell: T) -> None:
        """End every stream; see `Stream.close`."""
        for stream in list(self._streams):
            stream.close(*farewell)
