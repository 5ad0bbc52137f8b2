"""Blocking calls, and tasks, that asyncio does not abandon half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def run_in_thread(call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `call` in a thread, and return only when it has ended, also when cancelled.

    A thread cannot be cancelled. If the caller left before its end, nobody would own what it made.
    """
    return await shield_and_wait(asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs)))


async def create_in_thread(create: Callable[[], R], discard: Callable[[R], object]) -> R:
    """Run `create` in a thread; when cancelled meanwhile, `discard` in a thread what it made."""
    return await _shield_and_wait(asyncio.ensure_future(asyncio.to_thread(create)), discard)


async def shield_and_wait(future: asyncio.Future[R]) -> R:
    """Wait for a task to its end, also when cancelled; then the cancellation goes on."""
    return await _shield_and_wait(future, None)


async def _shield_and_wait(future: asyncio.Future[R], discard: Callable[[R], object] | None) -> R:
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        # A second cancellation does not hurry it either: it ends by itself, and soon.
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        # Read the outcome, or asyncio complains about an exception that nobody saw.
        if not future.cancelled() and future.exception() is None and discard is not None:
            result = future.result()
            await run_in_thread(discard, result)
        raise
