"""Blocking calls, and tasks, that asyncio does not abandon half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def to_the_end(call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `call` in a thread, and return only when it has ended, also when cancelled.

    A thread cannot be cancelled. If the caller left before its end, nobody would own what it made.
    """
    return await finished(asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs)))


async def made_in_thread(make: Callable[[], R], discard: Callable[[R], object]) -> R:
    """Run `make` in a thread; when cancelled meanwhile, `discard` in a thread what it made."""
    return await _ended(asyncio.ensure_future(asyncio.to_thread(make)), discard)


async def finished(work: asyncio.Future[R]) -> R:
    """Wait for a task to its end, also when cancelled; then the cancellation goes on."""
    return await _ended(work, None)


async def _ended(work: asyncio.Future[R], discard: Callable[[R], object] | None) -> R:
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # A second cancellation does not hurry it either: it ends by itself, and soon.
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue
        # Read the outcome, or asyncio complains about an exception that nobody saw.
        if not work.cancelled() and work.exception() is None and discard is not None:
            result = work.result()
            await to_the_end(discard, result)
        raise
