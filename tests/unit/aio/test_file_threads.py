"""Calls that may never return: in time, in few threads, and nothing of a late one is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from linkmgr.aio.file_threads import (
    PER_USER_MAX,
    PRIVILEGED_MAX,
    UNPRIVILEGED_MAX,
    FileThreads,
    NoFreeThread,
)

SHORT = 0.1
THREAD_TIMEOUT_S = 5.0


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What never comes; set at the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


async def hang(threads: FileThreads, uid: int, stuck: threading.Event, times: int) -> None:
    calls = [threads.run(uid, stuck.wait, timeout=SHORT) for _ in range(times)]
    for each in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(each, TimeoutError)


async def test_a_user_whose_calls_hang_has_few_threads_and_others_are_served(
    stuck: threading.Event,
) -> None:
    threads, before = FileThreads(), threading.active_count()
    await hang(threads, 1001, stuck, 3 * PER_USER_MAX)
    assert threading.active_count() == before + PER_USER_MAX
    for uid in (1002, 0):
        assert await threads.run(uid, lambda: "here", timeout=THREAD_TIMEOUT_S) == "here"
    with pytest.raises(NoFreeThread, match="no thread for files of uid 1001"):
        await threads.run(1001, lambda: "here", timeout=SHORT)
    stuck.set()
    assert await threads.run(1001, lambda: "here", timeout=THREAD_TIMEOUT_S) == "here", (
        "they have returned"
    )


async def test_many_users_leave_places_to_root_and_root_has_an_end_too(
    stuck: threading.Event,
) -> None:
    threads, before = FileThreads(), threading.active_count()
    users = range(1001, 1001 + 2 * UNPRIVILEGED_MAX // PER_USER_MAX)
    await asyncio.gather(*(hang(threads, uid, stuck, PER_USER_MAX) for uid in users))
    assert threading.active_count() == before + UNPRIVILEGED_MAX
    assert await threads.run(0, lambda: "here", timeout=THREAD_TIMEOUT_S) == "here"
    await hang(threads, 0, stuck, PRIVILEGED_MAX + 8)
    assert threading.active_count() == before + UNPRIVILEGED_MAX + PRIVILEGED_MAX


async def test_what_comes_too_late_or_to_nobody_is_discarded(stuck: threading.Event) -> None:
    threads, late = FileThreads(), asyncio.Queue[str]()

    def make() -> str:
        stuck.wait()
        return "made"

    with pytest.raises(TimeoutError):
        await threads.run(0, make, timeout=SHORT, discard=late.put_nowait)
    left = asyncio.create_task(
        threads.run(0, make, timeout=THREAD_TIMEOUT_S, discard=late.put_nowait)
    )
    await asyncio.sleep(SHORT)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    stuck.set()
    async with asyncio.timeout(THREAD_TIMEOUT_S):
        assert [await late.get(), await late.get()] == ["made", "made"]


async def test_what_comes_in_the_very_turn_of_the_cancellation_is_discarded() -> None:
    threads, made = FileThreads(), threading.Event()
    discarded: list[str] = []

    def make() -> str:
        made.set()
        return "made"

    call = asyncio.create_task(
        threads.run(0, make, timeout=THREAD_TIMEOUT_S, discard=discarded.append)
    )
    await asyncio.sleep(0)
    made.wait(THREAD_TIMEOUT_S)
    while threads._running:  # the thread delivers next; the loop has no turn meanwhile
        time.sleep(0.001)  # noqa: ASYNC251
    time.sleep(0.01)  # noqa: ASYNC251
    asyncio.get_running_loop().call_soon(call.cancel)
    with pytest.raises(asyncio.CancelledError):
        await call
    assert discarded == ["made"]


async def test_a_timeout_of_the_call_itself_is_the_callers() -> None:
    def fail() -> None:
        raise TimeoutError("the server of NFS")

    with pytest.raises(TimeoutError, match="the server of NFS") as raised:
        await FileThreads().run(0, fail, timeout=THREAD_TIMEOUT_S)
    assert not isinstance(raised.value, NoFreeThread)


async def test_an_error_of_the_call_is_the_callers() -> None:
    def fail() -> None:
        raise FileNotFoundError("no such file")

    with pytest.raises(FileNotFoundError):
        await FileThreads().run(0, fail, timeout=THREAD_TIMEOUT_S)
