"""Bounded broadcast: a slow subscriber loses its oldest items and is told how many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class Subscription(Generic[T]):
    """One subscriber's items, oldest first: an async iterator.

    :param limit: items that wait at most; then the oldest is dropped.
    :param missed: makes the item that stands for the number of items that were dropped.
    """

    def __init__(self, limit: int, missed: Callable[[int], T]) -> None:
        self._waiting: deque[T] = deque()
        self._limit = limit
        self._missed = missed
        self._lost = 0
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, item: T) -> None:
        """Add an item; for the publisher."""
        if self._closed:
            return
        if len(self._waiting) >= self._limit:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(item)
        self._wake.set()

    def close(self, *farewell: T) -> None:
        """Unsubscribe: iteration ends after the items that wait already. Idempotent.

        :param farewell: the last items of the iteration.
        """
        if not self._closed:
            self._closed = True
            self._waiting.extend(farewell)
            self._wake.set()

    def drop(self) -> None:
        """Unsubscribe, and end the iteration at once. Idempotent."""
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


class Broadcast(Generic[T]):
    """All subscriptions to one source of items."""

    def __init__(self) -> None:
        # Weak, so that one that is simply dropped (``break`` in an ``async for``) is freed.
        self._subscriptions: WeakSet[Subscription[T]] = WeakSet()

    def add(self, subscription: Subscription[T]) -> None:
        """Publish to this subscription too, until it is closed."""
        self._subscriptions.add(subscription)

    def publish(self, item: T) -> None:
        """Give an item to every subscription; wait for none."""
        for subscription in list(self._subscriptions):
            subscription.put(item)

    def close(self, *farewell: T) -> None:
        """End every subscription; see `Subscription.close`."""
        for subscription in list(self._subscriptions):
            subscription.close(*farewell)
