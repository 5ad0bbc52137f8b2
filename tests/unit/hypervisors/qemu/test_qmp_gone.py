"""The end of a connection, in every state that it can be in."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

import pytest

from linkmgr.errors import MonitorGone, MonitorUnreachable
from linkmgr.hypervisors.qemu.qmp import Monitor, QmpCommand
from tests.unit.qmp_peer import GREETING, FakeMonitor, connected, nothing_left_behind, opened

__all__ = ["nothing_left_behind"]

CLOSED = r"is gone \(QEMU closed it\)"
NOT_QMP = r"is gone \(it sent what is not QMP"

#: Ways in which a connection can end, and what the error says.
ENDINGS: dict[str, tuple[bytes, str]] = {
    "end of file": (b"", CLOSED),
    "end of file within a line": (b'{"return": {"a', NOT_QMP),
    "not JSON": (b"#!garbage\r\n", NOT_QMP),
    "not UTF-8": (b'{"\xff\xfe": 1}\r\n', NOT_QMP),
    "not an object": (b"[1, 2]\r\n", NOT_QMP),
    "an error without an id": (b'{"error": {"class": "GenericError", "desc": "x"}}\r\n', NOT_QMP),
    "an id that cannot be one": (b'{"id": []}\r\n', NOT_QMP),
    "a malformed event": (b'{"event": 5}\r\n', NOT_QMP),
    "a malformed event's data": (b'{"event": "X", "data": 5}\r\n', NOT_QMP),
}
every_ending = pytest.mark.parametrize(
    ("ending", "said"), list(ENDINGS.values()), ids=list(ENDINGS)
)


def end(peer: FakeMonitor, ending: bytes) -> None:
    """End it. After garbage the peer stays, for it must not be waited for."""
    peer.raw(ending)
    if not ending.endswith(b"\n"):
        peer.hang_up()


async def fails(waiting: Awaitable[object], said: str, *, sent: bool) -> MonitorGone:
    with pytest.raises(MonitorGone, match=said) as info:
        async with asyncio.timeout(2):
            await waiting
    assert info.value.sent is sent
    return info.value


async def check_gone(monitor: Monitor, said: str) -> None:
    async with asyncio.timeout(2):
        await monitor.wait_closed()
        assert monitor.closed
        await fails(monitor.execute("late"), said, sent=False)
        await fails(monitor.batch([QmpCommand("late")]), said, sent=False)
        await fails(monitor.hmp("late"), said, sent=False)
        await fails(monitor.wait_responsive(), said, sent=False)
        with opened() as null:
            await fails(monitor.execute("late", fds={"lm": null}), said, sent=False)
        await monitor.close()
        await monitor.close()


@every_ending
async def test_while_idle(ending: bytes, said: str) -> None:
    async with connected() as (monitor, peer):
        end(peer, ending)
        await check_gone(monitor, said)


@every_ending
async def test_while_a_command_is_in_flight(ending: bytes, said: str) -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("netdev_del"))
        await peer.next("netdev_del")
        end(peer, ending)
        error = await fails(asking, "netdev_del got no answer.*" + said, sent=True)
        assert error.hint
        await check_gone(monitor, said)


@every_ending
async def test_while_calls_wait_for_the_connection(ending: bytes, said: str) -> None:
    async with connected() as (monitor, peer):
        first = asyncio.create_task(monitor.execute("first"))
        await peer.next("first")
        with opened() as null:
            waiting = [
                asyncio.create_task(monitor.execute("plain")),
                asyncio.create_task(monitor.execute("tap", fds={"lm": null})),
                asyncio.create_task(monitor.batch([QmpCommand("a"), QmpCommand("b")])),
                asyncio.create_task(monitor.wait_responsive()),
            ]
            await asyncio.sleep(0)
            end(peer, ending)
            await fails(first, said, sent=True)
            for each in waiting:
                await fails(each, "was not sent.*" + said, sent=False)
        assert peer.timeline == ["first"]


@every_ending
async def test_while_a_getfd_is_in_flight(ending: bytes, said: str) -> None:
    async with connected() as (monitor, peer):
        with opened() as null:
            adding = asyncio.create_task(monitor.execute("netdev_add", fds={"lm": null}))
            await peer.next("getfd lm")
            end(peer, ending)
            await fails(adding, "netdev_add was not sent.*" + said, sent=False)
        await check_gone(monitor, said)


@every_ending
async def test_while_a_command_with_descriptors_is_in_flight(ending: bytes, said: str) -> None:
    async with connected() as (monitor, peer):
        with opened() as null:
            adding = asyncio.create_task(monitor.execute("netdev_add", fds={"lm": null}))
            peer.answer(await peer.next("getfd lm"))
            await peer.next("netdev_add")
            end(peer, ending)
            await fails(adding, "netdev_add got no answer.*" + said, sent=True)


@every_ending
async def test_while_a_closefd_is_in_flight(ending: bytes, said: str) -> None:
    async with connected() as (monitor, peer):
        with opened() as null:
            adding = asyncio.create_task(monitor.execute("netdev_add", fds={"lm": null}))
            peer.refuse(await peer.next("getfd lm"))
            await peer.next("closefd lm")
            end(peer, ending)
            with pytest.raises(Exception, match="getfd"):
                await adding
        await check_gone(monitor, said)


@every_ending
async def test_during_a_batch(ending: bytes, said: str) -> None:
    async with connected() as (monitor, peer):
        running = asyncio.create_task(
            monitor.batch([QmpCommand("a"), QmpCommand("b"), QmpCommand("c")])
        )
        a, _, _ = [await peer.next() for _ in range(3)]
        peer.answer(a)
        end(peer, ending)
        await fails(running, r"a \+ b \+ c got no answer", sent=True)


@every_ending
async def test_after_the_caller_has_left(ending: bytes, said: str) -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("slow"))
        await peer.next("slow")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        end(peer, ending)
        await check_gone(monitor, said)


@pytest.mark.parametrize("reply", [{}, {"error": "no object"}, {"error": {"class": "G"}}])
async def test_by_an_answer_that_is_none(reply: dict[str, object]) -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("x"))
        peer.send({**reply, "id": (await peer.next()).id})
        await fails(asking, NOT_QMP, sent=True)
        await check_gone(monitor, NOT_QMP)


async def test_right_after_an_answer_the_answer_still_counts() -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("quit"))
        peer.answer(await peer.next("quit"), "bye")
        peer.hang_up()
        assert await asking == "bye"
        await check_gone(monitor, CLOSED)


async def test_an_answer_sent_twice_is_no_end() -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("x"))
        command = await peer.next("x")
        for _ in range(3):
            peer.answer(command, "once")
        assert await asking == "once"
        peer.serve()
        await monitor.execute("y")


async def test_by_closing_it_ourselves_while_everything_waits() -> None:
    async with connected() as (monitor, peer):
        with opened() as null:
            first = asyncio.create_task(monitor.execute("x", fds={"lm": null}))
            second = asyncio.create_task(monitor.execute("y"))
            await peer.next("getfd lm")
            await asyncio.gather(monitor.close(), monitor.close())
            assert not monitor._tasks
            said = r"is gone \(linkmgr closed it\)"
            await fails(first, said, sent=False)
            await fails(second, said, sent=False)
        await check_gone(monitor, said)


async def test_closing_is_finished_also_when_its_caller_leaves() -> None:
    async with connected() as (monitor, _):
        closing = asyncio.create_task(monitor.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        async with asyncio.timeout(1):
            await monitor.wait_closed()


async def test_it_is_used_as_a_context() -> None:
    sock, peer = FakeMonitor.pair()
    shaking = asyncio.create_task(peer.handshake())
    async with await Monitor.from_socket(sock) as monitor:
        await shaking
    assert monitor.closed
    await peer.close()


async def test_the_end_is_not_logged_beside_being_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected() as (monitor, peer):
        end(peer, b"garbage\r\n")
        await monitor.wait_closed()
    sock, peer = FakeMonitor.pair()
    peer.hang_up()
    with pytest.raises(MonitorUnreachable):
        await Monitor.from_socket(sock)
    assert not caplog.records
    caplog.set_level(logging.DEBUG, "qemu.qmp")
    async with connected() as (monitor, peer):
        peer.hang_up()
        await monitor.wait_closed()
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def parts_of_the_greeting() -> dict[str, Callable[[FakeMonitor], None]]:
    greeting = json.dumps(GREETING).encode()

    def negotiated_and_gone(peer: FakeMonitor) -> None:
        peer.send(GREETING)
        peer.send({"return": {}})
        peer.hang_up()

    def within(peer: FakeMonitor) -> None:
        peer.raw(greeting[:20])
        peer.hang_up()

    def greeted(peer: FakeMonitor) -> None:
        peer.send(GREETING)
        peer.hang_up()

    def half_negotiated(peer: FakeMonitor) -> None:
        peer.send(GREETING)
        peer.raw(b'{"retu')
        peer.hang_up()

    return {
        "before the greeting": FakeMonitor.hang_up,
        "within the greeting": within,
        "after the greeting": greeted,
        "within the negotiation": half_negotiated,
        "right after the negotiation": negotiated_and_gone,
    }


@pytest.mark.parametrize("when", list(parts_of_the_greeting()))
async def test_before_there_was_a_monitor(when: str) -> None:
    sock, peer = FakeMonitor.pair()
    parts_of_the_greeting()[when](peer)

    async def use() -> None:
        async with asyncio.timeout(2), await Monitor.from_socket(sock, name="web1") as monitor:
            await monitor.execute("query-status")

    with pytest.raises((MonitorUnreachable, MonitorGone), match=r"hung up|not speak QMP|gone"):
        await use()
    assert sock.fileno() == -1
    await peer.close()


@pytest.mark.parametrize(
    ("greeted", "ending"),
    [
        pytest.param(greeted, ending, id=f"{name}, {greeted}")
        for greeted in (False, True)
        for name, (ending, _) in ENDINGS.items()
        # An answer before the greeting is to the client before us, for all that anybody can tell.
        if greeted or b'"error"' not in ending
    ],
)
async def test_by_garbage_before_there_was_a_monitor(greeted: bool, ending: bytes) -> None:
    sock, peer = FakeMonitor.pair()
    if greeted:
        peer.send(GREETING)
    end(peer, ending)
    with pytest.raises(
        MonitorUnreachable, match=r"web1 hung up|the monitor web1 does not speak QMP"
    ) as info:
        await Monitor.from_socket(sock, name="web1", timeout=2)
    assert info.value.hint
    await peer.close()
