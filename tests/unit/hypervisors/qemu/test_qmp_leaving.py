"""Callers that leave, by cancellation or by timing out, and answers that come late."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import pytest

from linkmgr.errors import MonitorTimeout
from linkmgr.hypervisors.qemu.qmp import Monitor, QmpCommand
from tests.unit.qmp_peer import FakeMonitor, connected, nothing_left_behind, open_fds, opened

__all__ = ["nothing_left_behind"]

COMMAND_TIMEOUT_S = 0.05  # seconds

pytestmark = pytest.mark.parametrize("how", ["cancelled", "timed out"])


class Caller:
    """Someone who calls the monitor and leaves before the answer."""

    def __init__(self, how: str, call: Coroutine[Any, Any, Any]) -> None:
        self.how = how
        self.task = asyncio.create_task(call)

    async def leave(self) -> MonitorTimeout | None:
        """Leave, and say what was learned."""
        if self.how == "cancelled":
            self.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await self.task
            return None
        with pytest.raises(MonitorTimeout) as info:
            await self.task
        return info.value


def limit(how: str) -> float | None:
    return COMMAND_TIMEOUT_S if how == "timed out" else None


def add_tap(monitor: Monitor, how: str, null: int) -> Caller:
    fds = {"lm-a": null, "lm-b": null}
    return Caller(how, monitor.execute("netdev_add", fds=fds, timeout=limit(how)))


async def check_usable(monitor: Monitor, peer: FakeMonitor) -> None:
    asking = asyncio.create_task(monitor.execute("query-status"))
    peer.answer(await peer.next("query-status"))
    await asking


async def test_leaving_while_others_wait_for_answers_sends_nothing(how: str) -> None:
    async with connected() as (monitor, peer):
        slow = asyncio.create_task(monitor.execute("slow"))
        command = await peer.next("slow")
        with opened() as null:
            before = open_fds()
            callers = [
                Caller(how, monitor.execute("plain", timeout=limit(how))),
                add_tap(monitor, how, null),
                Caller(how, monitor.batch([QmpCommand("a"), QmpCommand("b")], timeout=limit(how))),
            ]
            await asyncio.sleep(COMMAND_TIMEOUT_S / 2)
            for caller in callers:
                learned = await caller.leave()
                assert learned is None or not learned.sent
            assert open_fds() == before
        peer.answer(command)
        await slow
        await peer.quiet()
        await check_usable(monitor, peer)


@pytest.mark.parametrize("turns", range(12))
async def test_leaving_at_any_moment_leaves_no_descriptor_in_qemu(how: str, turns: int) -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        with opened() as null:
            now = 0.0 if how == "timed out" else None
            calling = asyncio.create_task(monitor.execute("use", fds={"lm": null}, timeout=now))
            for _ in range(turns):
                await asyncio.sleep(0)
            if how == "cancelled":
                calling.cancel()
            done = (await asyncio.gather(calling, return_exceptions=True))[0]
        await monitor.execute("query-status")
        used = "use" in peer.timeline
        assert (peer.named == {}) != used  # the command, when it was sent, has the descriptor
        assert peer.pending_fds == []
        if isinstance(done, MonitorTimeout):
            assert done.sent is used


async def test_leaving_during_getfd_takes_the_descriptors_back(how: str) -> None:
    async with connected() as (monitor, peer):
        before = open_fds()
        with opened() as null:
            caller = add_tap(monitor, how, null)
            first = await peer.next("getfd lm-a")
            learned = await caller.leave()
            assert learned is None or not learned.sent
        await peer.quiet()  # as long as QEMU is stopped
        peer.answer(first)
        peer.answer(await peer.next("closefd lm-a"))
        await check_usable(monitor, peer)
        assert peer.timeline == ["fd", "getfd lm-a", "closefd lm-a", "query-status"]
        os.close(peer.pending_fds.pop())
        assert open_fds() == before


async def test_leaving_during_the_second_getfd_takes_both_back(how: str) -> None:
    async with connected() as (monitor, peer):
        with opened() as null:
            caller = add_tap(monitor, how, null)
            peer.answer(await peer.next("getfd lm-a"))
            second = await peer.next("getfd lm-b")
            learned = await caller.leave()
            assert learned is None or not learned.sent
        peer.refuse(second, "No file descriptor supplied via SCM_RIGHTS")
        peer.answer(await peer.next("closefd lm-a"))
        peer.refuse(await peer.next("closefd lm-b"), "not found")
        await check_usable(monitor, peer)


async def test_leaving_during_the_command_lets_it_run(how: str) -> None:
    async with connected() as (monitor, peer):
        with opened() as null:
            caller = add_tap(monitor, how, null)
            peer.answer(await peer.next("getfd lm-a"))
            peer.answer(await peer.next("getfd lm-b"))
            command = await peer.next("netdev_add")
            learned = await caller.leave()
            assert learned is None or learned.sent
        peer.answer(command)
        await peer.quiet()  # the descriptors are QEMU's now
        await check_usable(monitor, peer)


async def test_a_command_that_fails_after_its_caller_left_has_its_descriptors_closed(
    how: str,
) -> None:
    async with connected() as (monitor, peer):
        with opened() as null:
            caller = add_tap(monitor, how, null)
            peer.answer(await peer.next("getfd lm-a"))
            peer.answer(await peer.next("getfd lm-b"))
            command = await peer.next("netdev_add")
            await caller.leave()
        peer.refuse(command, "no such hub")
        peer.answer(await peer.next("closefd lm-a"))
        peer.answer(await peer.next("closefd lm-b"))
        await check_usable(monitor, peer)


async def test_the_connection_stays_taken_until_the_late_answer(how: str) -> None:
    async with connected() as (monitor, peer):
        caller = Caller(how, monitor.execute("slow", timeout=limit(how)))
        slow = await peer.next("slow")
        await caller.leave()
        with opened() as null:
            adding = asyncio.create_task(monitor.execute("netdev_add", fds={"lm": null}))
            await peer.quiet()
            assert peer.timeline == ["slow"]  # no descriptor overtakes what QEMU has not read
            peer.answer(slow)
            peer.serve()
            await adding
        assert peer.timeline == ["slow", "fd", "getfd lm", "netdev_add"]


async def test_leaving_a_batch_lets_all_of_it_run(how: str) -> None:
    async with connected() as (monitor, peer):
        batch = [QmpCommand("netdev_del"), QmpCommand("netdev_add")]
        caller = Caller(how, monitor.batch(batch, timeout=limit(how)))
        received = [await peer.next(), await peer.next()]
        learned = await caller.leave()
        assert learned is None or learned.sent
        for command in received:
            peer.refuse(command)
        await check_usable(monitor, peer)


async def test_leaving_answering_leaves_nothing_in_the_way(how: str) -> None:
    async with connected() as (monitor, peer):
        callers = [asyncio.create_task(monitor.wait_responsive()) for _ in range(3)]
        status = await peer.next("query-status")
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        peer.answer(status)
        await peer.quiet()
        await check_usable(monitor, peer)
