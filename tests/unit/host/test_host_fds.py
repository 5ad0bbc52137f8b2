"""A file descriptor has one owner, and nothing is abandoned half-way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading

import pytest

from linkmgr.aio.threads import create_in_thread, run_in_thread
from linkmgr.host import Fd


def an_fd() -> Fd:
    return Fd(os.open(os.devnull, os.O_RDONLY))


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_closing_closes_once() -> None:
    fd = an_fd()
    number = fd.number
    fd.close()
    assert not is_open(number)
    other = an_fd()  # very likely the same number: a second close must not hit it
    fd.close()
    assert is_open(other.number)
    other.close()


def test_a_closed_one_has_no_number() -> None:
    fd = an_fd()
    fd.close()
    assert fd.closed
    for use in (lambda: fd.number, fd.detach, fd.dup):
        with pytest.raises(ValueError, match="closed or handed over"):
            use()


def test_taking_moves_the_ownership_out() -> None:
    fd = an_fd()
    number = fd.detach()
    fd.close()
    assert is_open(number)
    os.close(number)


def test_a_duplicate_is_closed_on_its_own_and_not_inherited() -> None:
    with an_fd() as fd:
        with fd.dup() as copy:
            assert copy.number != fd.number
            assert not os.get_inheritable(copy.number)
            number = copy.number
        assert not is_open(number)
        assert is_open(fd.number)


def test_a_block_closes_also_on_an_error() -> None:
    fd = an_fd()
    number = fd.number
    with contextlib.suppress(OSError), fd:
        os.fstat(-1)
    assert not is_open(number)


def test_it_shows_its_number() -> None:
    with an_fd() as fd:
        assert repr(fd) == f"<Fd {fd.number}>"
    assert repr(fd) == "<Fd closed>"


def test_a_forgotten_one_warns_and_closes() -> None:
    forgotten = [an_fd()]
    number = forgotten[0].number
    with pytest.warns(ResourceWarning, match=f"unclosed <Fd {number}>"):
        forgotten.clear()
    assert not is_open(number)


async def test_closing_in_a_thread_is_done_on_return_and_once() -> None:
    fd = an_fd()
    number = fd.number
    await fd.close_in_thread()
    assert fd.closed
    assert not is_open(number)
    await fd.close_in_thread()


async def test_closing_in_a_thread_is_done_although_the_caller_was_cancelled() -> None:
    fd = an_fd()
    number = fd.number
    task = asyncio.create_task(fd.close_in_thread())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fd.closed
    assert not is_open(number)


async def test_a_call_that_was_cancelled_ends_before_the_cancellation_is_seen() -> None:
    go, ended = threading.Event(), threading.Event()

    def call() -> None:
        go.wait(5)
        ended.set()

    task = asyncio.create_task(run_in_thread(call))
    await asyncio.sleep(0.01)
    for _ in range(3):  # impatience changes nothing
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_what_was_made_for_a_caller_that_left_is_discarded() -> None:
    go = threading.Event()
    made: list[Fd] = []

    def make() -> Fd:
        go.wait(5)
        made.append(an_fd())
        return made[0]

    task = asyncio.create_task(create_in_thread(make, Fd.close))
    await asyncio.sleep(0.01)
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made[0].closed


async def test_an_error_for_a_caller_that_left_is_not_complained_about() -> None:
    go = threading.Event()

    def fail() -> None:
        go.wait(5)
        raise OSError("nobody hears this")

    task = asyncio.create_task(run_in_thread(fail))
    await asyncio.sleep(0.01)
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()


async def test_an_error_reaches_the_caller() -> None:
    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await run_in_thread(fail)
