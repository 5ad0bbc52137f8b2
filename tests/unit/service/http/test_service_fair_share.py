"""A user who asks without end waits; nobody else does, and nothing is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from linkmgr.aio.token_bucket import USERS_MAX
from linkmgr.service.auth.peer import Peer
from linkmgr.service.http.fair_share import (
    ALL_SHARE,
    BURST_S,
    MAX_WAITING_REQUESTS,
    USER_SHARE,
    FairShare,
)
from tests.own_time import own_time

ROOT = Peer(0, 0, 1, frozenset([0]))
COST = 0.004  # CPU seconds of a request of these tests


def peer(uid: int) -> Peer:
    return Peer(uid, uid, 1, frozenset([uid]))


async def burn(_scope: Any, _receive: Any, _send: Any) -> None:
    """Take `COST` seconds of CPU in two steps."""
    for _ in range(2):
        end = time.thread_time() + COST / 2
        while time.thread_time() < end:
            pass
        await asyncio.sleep(0)


async def asks(app: Any, who: Peer, sent: list[Any] | None = None) -> None:
    async def send(message: Any) -> None:
        if sent is not None:
            sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is received")

    await app({"type": "http", "state": {"peer": who}, "headers": []}, receive, send)


def share(app: Callable[..., Any] = burn) -> FairShare:
    return FairShare(app, free=lambda who: who.uid == 0)


async def done_in(seconds: float, *floods: tuple[FairShare, Peer]) -> list[int]:
    """How many requests of each user are answered while all of them ask without end."""
    counts = [0] * len(floods)

    async def flood(number: int, app: FairShare, who: Peer) -> None:
        while True:
            await asks(app, who)
            counts[number] += 1

    tasks = [
        asyncio.create_task(flood(n, *each)) for n, each in enumerate(floods) for _ in range(8)
    ]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return counts


async def test_a_flood_takes_its_share_of_the_loop_and_no_more() -> None:
    began = time.thread_time()
    (count,) = await done_in(2.0, (share(), peer(1000)))
    assert count > 10, "nothing is refused"
    assert time.thread_time() - began < (BURST_S + 2.0 * USER_SHARE) * 1.5


async def test_many_users_together_leave_the_loop_to_root() -> None:
    app = share()
    began = time.thread_time()
    counts = await done_in(2.0, *((app, peer(1000 + number)) for number in range(6)))
    assert min(counts) > 0, "users take turns"
    assert time.thread_time() - began < (BURST_S + 2.0 * ALL_SHARE) * 1.5


async def test_root_waits_for_nobody() -> None:
    app = share()
    async with app._turn:
        stranger = asyncio.create_task(asks(app, peer(1000)))
        await asyncio.wait_for(asks(app, ROOT), 5)
        assert not stranger.done()
    await asyncio.wait_for(stranger, 5)


async def test_a_user_that_asks_now_and_then_does_not_wait_for_one_that_floods() -> None:
    app = share()
    flood = asyncio.create_task(done_in(1.5, (app, peer(1000))))
    await asyncio.sleep(0.5)
    began = own_time()
    await asks(app, peer(1001))
    assert own_time() - began < 0.3
    await flood


async def test_a_guess_that_was_too_high_is_given_back() -> None:
    async def cheap(*_: Any) -> None:
        await asyncio.sleep(0)

    (count,) = await done_in(1.0, (share(cheap), peer(1000)))
    assert count > USER_SHARE / 0.001


async def test_requests_that_wait_are_counted_and_one_too_many_is_refused() -> None:
    app = share()
    sent: list[Any] = []
    async with app._account(1000).turn:
        waiting = [asyncio.create_task(asks(app, peer(1000))) for _ in range(MAX_WAITING_REQUESTS)]
        await asyncio.sleep(0)
        await asks(app, peer(1000), sent)
        assert sent[0]["status"] == 429
        await asyncio.wait_for(asks(app, peer(1001)), 5)  # it has its own
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.wait_for(asks(app, peer(1000)), 5)


async def test_users_beyond_those_that_are_told_apart_share_one_account() -> None:
    async def cheap(*_: Any) -> None:
        pass

    app = share(cheap)
    for number in range(USERS_MAX):
        app._account(number).waiting = 1  # busy
    await asks(app, peer(5000))
    assert app._account(5000) is app._account(5001)
    app._account(7).waiting = 0
    assert app._account(5000) is not app._account(5001)
    assert len(app._accounts) == USERS_MAX


async def test_an_error_passes_through_and_a_cancelled_request_is_closed() -> None:
    seen: list[str] = []

    async def fails(*_: Any) -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def waits(*_: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with pytest.raises(LookupError):
        await asks(share(fails), peer(1000))
    task = asyncio.create_task(asks(share(waits), peer(1000)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]
