"""A QEMU that was taken over says what it likes: only its own guest may notice."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from linkmgr.errors import CommandFailed, MonitorError, MonitorGone, MonitorUnreachable
from linkmgr.hypervisors.qemu.qmp import Monitor, event_budget, parse_info_network
from linkmgr.hypervisors.qemu.qmp.event_budget import (
    EVENTS_BURST,
    FLOOD_TIMEOUT_S,
    MESSAGES_PER_SECOND,
)
from linkmgr.hypervisors.qemu.qmp.inbound import MAX_MESSAGE_BYTES
from linkmgr.hypervisors.qemu.qmp.info_network import MAX_INFO_LINES, MAX_NICS
from tests.own_time import own_time
from tests.unit.qmp_peer import GREETING, FakeMonitor, connected, nothing_left_behind

__all__ = ["nothing_left_behind"]

NOT_QMP = "it sent what is not QMP"
#: Seconds that one message may hold the loop up; a hostile one took half a second and more.
HELD_UP = 0.1

# Writes the same bytes again and again to a socket that it inherits, for so many seconds.
FLOOD = """
import socket, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
data = bytes.fromhex(sys.argv[2])
data *= max(1, 65536 // len(data))
end = time.monotonic() + float(sys.argv[3])
sock.settimeout(0.2)
while time.monotonic() < end:
    try:
        sock.sendall(data)
    except TimeoutError:
        time.sleep(0.01)  # the rest of a line is lost, as is all that it says
    except OSError:
        break
"""


@asynccontextmanager
async def flooded_with(said: bytes, seconds: float) -> AsyncIterator[Monitor]:
    """A monitor whose QEMU, another process, says the same without end once it was negotiated."""
    sock, peer = FakeMonitor.pair()
    shaking = asyncio.create_task(peer.handshake())
    monitor = await Monitor.from_socket(sock, name="web1")
    await shaking
    fd = peer.sock.fileno()
    command = [sys.executable, "-c", FLOOD, str(fd), said.hex(), str(seconds)]
    peer.stop()
    child = await asyncio.create_subprocess_exec(*command, pass_fds=[fd])
    try:
        yield monitor
    finally:
        await monitor.close()
        await child.wait()
        await peer.close()


async def processor_seconds(seconds: float) -> tuple[float, float]:
    """What the loop's thread works in that time, and the longest that the loop was held up."""
    began, end, longest = time.thread_time(), time.monotonic() + seconds, 0.0
    while (before := time.monotonic()) < end:
        worked = time.thread_time()
        await asyncio.sleep(0.005)
        if time.monotonic() > before:
            longest = max(longest, time.thread_time() - worked)
    return time.thread_time() - began, longest


@contextmanager
def no_more_memory_than(limit: int) -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < limit, f"{grown >> 20} MiB"


# --- one message ----------------------------------------------------------------------------------
TOO_MUCH: dict[str, bytes] = {
    "megabytes of lists": b'{"return": [' + b"[]," * 2_500_000 + b"[]]}\n",
    "as many lists as fit": b'{"return": [' + b"[]," * 20_000 + b"[]]}\n",
    "megabytes of text": b'{"return": "' + b"x" * 9_000_000 + b'"}\n',
    "megabytes without an end": b'{"return": "' + b"x" * 9_000_000,
    "no object": b"[" + b"1," * 1000 + b"1]\n",
    "a deep nest": b'{"return": ' + b"[" * 8000 + b"]" * 8000 + b"}\n",
    "a number of 5,000 digits": b'{"return": ' + b"1" * 5000 + b"}\n",
    "no number": b'{"return": NaN}\n',
    "an infinite number": b'{"return": -Infinity}\n',
    "a number that is too large": b'{"return": 1e999}\n',
    "an event of megabytes": b'{"event": "SHUTDOWN", "data": {"reason": "'
    + b"x" * 9_000_000
    + b'"}}\n',
}


@pytest.mark.parametrize("said", TOO_MUCH.values(), ids=TOO_MUCH)
async def test_a_message_that_is_too_much_ends_the_connection_and_holds_nobody_up(
    said: bytes,
) -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("query-status"))
        await peer.next()
        began = time.thread_time()
        writing = asyncio.create_task(write(peer.sock, said))
        with pytest.raises(MonitorGone, match=NOT_QMP) as info:
            await asking
        assert time.thread_time() - began < HELD_UP
        assert len(str(info.value)) < 500
        await asyncio.gather(writing, return_exceptions=True)


async def write(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


@pytest.mark.parametrize("said", TOO_MUCH.values(), ids=TOO_MUCH)
async def test_a_greeting_that_is_too_much_is_refused_in_a_short_sentence(said: bytes) -> None:
    sock, peer = FakeMonitor.pair()
    writing = asyncio.create_task(write(peer.sock, said.replace(b"return", b"QMP")))
    began = time.thread_time()
    with pytest.raises(MonitorUnreachable) as info:
        await Monitor.from_socket(sock, name="web1", timeout=3)
    assert time.thread_time() - began < HELD_UP
    assert len(str(info.value)) < 500
    await asyncio.gather(writing, return_exceptions=True)
    await peer.close()


@pytest.mark.parametrize(
    "greeting",
    [
        {"QMP": {"version": {}, "capabilities": "oob"}},
        {"QMP": {"version": {"qemu": None}, "capabilities": {"oob": 1}}},
        {"QMP": {"version": [], "capabilities": []}},
        {"QMP": None},
        {"QMP": {"version": {}, "capabilities": [[]] * 1000}},
    ],
)
async def test_a_greeting_of_wrong_types_is_taken_or_refused(greeting: Any) -> None:
    sock, peer = FakeMonitor.pair()
    peer.send(greeting)
    peer.send({"return": {}})
    try:
        monitor = await Monitor.from_socket(sock, name="web1", timeout=3)
    except MonitorUnreachable:
        pass
    else:
        await monitor.close()
    await peer.close()


async def test_an_answer_that_nobody_asked_for_is_dropped_unformatted() -> None:
    unasked: dict[str, Any] = {"return": ["x" * 20] * 2000, "id": "__qmp#99999"}
    async with connected() as (monitor, peer):
        peer.serve()
        unknown: list[Any] = ["x", [], {}, 7, None]
        for ident in unknown:
            peer.send({**unasked, "id": ident})
            began = time.thread_time()
            await monitor.execute("query-status")
            assert time.thread_time() - began < HELD_UP


# --- one answer -----------------------------------------------------------------------------------
TEXTS = ["two\nlines", "\x1b[2Jmine", "\ud800 half", "\u202eturned", "x" * 25_000, "\0"]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
async def test_an_error_of_qemu_is_one_short_line_of_printable_text(text: str) -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("x"))
        peer.refuse(await peer.next(), text, kind=text)
        with pytest.raises(CommandFailed) as info:
            await asking
        for shown in (str(info.value), info.value.error_class):
            assert len(shown) < 300
            assert shown.isprintable()
            assert shown.encode()


@pytest.mark.parametrize("answer", [None, 7, [], {"a": 1}, True, [["x"] * 100]])
async def test_a_network_that_is_no_text_is_a_monitor_error(answer: Any) -> None:
    with pytest.raises(MonitorError, match="answered 'info network' with"):
        parse_info_network(answer)


NETWORKS: dict[str, str] = {
    "45,000 hubs": "".join(f"hub {n}\n \\ p{n}\n" for n in range(45_000)),
    "as many hubs as fit": "".join(f"hub {n}\n \\ p{n}\n" for n in range(MAX_INFO_LINES // 2 - 1)),
    "a hub of 45,000 ports": "hub 1\n" + "".join(f" \\ p{n}\n" for n in range(45_000)),
    "a megabyte of backends": "".join(f"t{n}: index=0,type=tap,\n" for n in range(45_000)),
    "as many NICs as fit": "".join(f"n{n}: index=0,type=nic,\n" for n in range(MAX_INFO_LINES - 1)),
    "NICs on one hub": "hub 1\n"
    + "".join(f" \\ p{n}: n{n}: index=0,type=nic,\n" for n in range(MAX_NICS)),
    "a megabyte without a line": "x" * (1 << 20),
    "a megabyte of line ends": "\n" * (1 << 20),
    "a hub of 5,000 digits": f"hub {'9' * 5000}\n \\ p0\n",
    "a queue of 5,000 digits": f"t: index={'9' * 5000},type=tap,\n",
    "an id of a megabyte": f"{'x' * (1 << 20)}: index=0,type=tap,\n",
}


@pytest.mark.parametrize("text", NETWORKS.values(), ids=NETWORKS)
def test_a_network_of_any_size_is_read_or_refused_at_once(text: str) -> None:
    began, said = time.process_time(), ""
    try:
        info = parse_info_network(text)
        for nic in info.nics:
            place = info.hub_of(nic)
            assert place is None or len(info.hubs[place[0]].nics)
    except MonitorError as error:
        said = str(error)
    assert len(said) < 500
    assert time.process_time() - began < HELD_UP


# --- many messages --------------------------------------------------------------------------------
SHUTDOWN = b'{"event": "SHUTDOWN", "data": {"reason": "' + b"x" * 60_000 + b'"}}\n'
FLOODS: dict[str, bytes] = {
    "events that nobody wants": b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "X"}\n',
    "events in another spelling": b'{"event":"X"}\n',
    "events that somebody wants": b'{"event":"STOP"}\n{"event":"RESUME"}\n',
    "events of a size": SHUTDOWN,
    "answers that nobody asked for": b'{"return": {}, "id": "x"}\n',
    "large answers that nobody asked for": b'{"return": [' + b"1," * 8000 + b'1], "id": "x"}\n',
}


@pytest.mark.parametrize("said", FLOODS.values(), ids=FLOODS)
async def test_a_flood_costs_a_few_percent_of_a_processor(said: bytes) -> None:
    async with flooded_with(said, seconds=1.5) as monitor:
        with no_more_memory_than(16 << 20):
            events = monitor.events()
            await asyncio.sleep(0.2)  # the burst is spent
            worked, longest = await processor_seconds(1.0)
        assert worked < 0.2, "a fifth; a loop that does nothing else takes all of it"
        assert longest < HELD_UP
        assert all(len(str(event)) < 500 for event in events._waiting)


async def test_an_answer_comes_through_a_flood_that_stays_below_the_bounds() -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        for _ in range(int(MESSAGES_PER_SECOND * event_budget.BURST_S) - 50):
            await write(peer.sock, b'{"event": "BLOCK_IO_ERROR", "data": {"device": "disk0"}}\r\n')
        began = own_time()
        await monitor.execute("query-status")
        assert own_time() - began < 1


async def test_of_too_many_events_it_is_told_how_many_were_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("linkmgr.hypervisors.qemu.qmp.event_budget.OVERFLOW_DELAY_S", 0.05)
    async with connected() as (monitor, peer), monitor.events() as events:
        for _ in range(EVENTS_BURST + 40):
            peer.event("STOP")
        async with asyncio.timeout(3):
            heard = 0
            async for event in events:
                if event.name == "OVERFLOW":
                    break
                heard += 1
        assert heard >= EVENTS_BURST
        lost = event.data["lost"]
        assert isinstance(lost, int)
        assert heard + lost == EVENTS_BURST + 40


async def test_a_flood_that_does_not_end_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FLOOD_TIMEOUT_S >= 5, "a storm of errors on a disk passes"
    monkeypatch.setattr(event_budget, "FLOOD_TIMEOUT_S", 0.3)
    async with flooded_with(b'{"event":"X"}\n', seconds=3) as monitor:
        async with asyncio.timeout(2):
            await monitor.wait_closed()
        with pytest.raises(MonitorGone, match="it sent more than 1000 messages"):
            await monitor.execute("query-status")


async def test_what_an_event_has_beside_what_is_needed_is_not_kept() -> None:
    async with connected() as (monitor, peer), monitor.events() as events:
        peer.event("SHUTDOWN", guest=True, reason="a\nb" + "x" * 50_000, more=["x"] * 500)
        peer.event("POWERDOWN")
        peer.event("DEVICE_DELETED", device={"a": "\x1b"}, path="/machine")
        event = await anext(events)
        assert set(event.data) == {"guest", "reason"}
        assert event.data["guest"] is True
        assert str(event.data["reason"]).startswith("a\\nbxx")
        assert len(str(event.data["reason"])) <= 200
        assert str((await anext(events)).data["device"]).isprintable()


async def test_a_schema_may_be_long_and_other_answers_may_not() -> None:
    answer = ["x" * 1000] * 200
    assert len(json.dumps(answer)) > MAX_MESSAGE_BYTES
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("query-qmp-schema"))
        ident = (await peer.next()).id
        await write(peer.sock, json.dumps({"return": answer, "id": ident}).encode() + b"\n")
        assert await asking == answer
        asking = asyncio.create_task(monitor.execute("query-status"))
        ident = (await peer.next()).id
        said = json.dumps({"return": answer, "id": ident}).encode() + b"\n"
        writing = asyncio.create_task(write(peer.sock, said))
        with pytest.raises(MonitorGone, match="a message of more than 64 KiB"):
            await asking
        await asyncio.gather(writing, return_exceptions=True)


async def test_a_greeting_of_a_real_qemu_is_no_flood() -> None:
    assert len(json.dumps(GREETING)) < MAX_MESSAGE_BYTES
