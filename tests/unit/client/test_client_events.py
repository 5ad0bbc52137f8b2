"""Events come over a connection of their own that mends itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkmgr import Client, EventKind
from linkmgr.client.sse import MAX_MESSAGE, Message, Parser, SseError
from linkmgr.errors import LinkmgrError, ServiceUnreachable
from linkmgr.events import SUBSCRIPTION_LIMIT
from tests.unit import samples
from tests.unit.http_peer import Exchange, FakeService, Script, serving

BEAT = 0.1  # seconds between two heartbeats in these tests


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
async def no_task_is_left_behind() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    assert not asyncio.all_tasks() - before - {asyncio.current_task()}


def message(number: int, kind: str = "plugged", epoch: str = "e1") -> str:
    data = {
        "kind": kind,
        "subject": f"web{number}/net0",
        "details": {"port": "blue"},
        "at": samples.NOW.isoformat(),
    }
    return f"id: {epoch}-{number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"


def stream(*texts: str, hold: bool = True) -> Script:
    """A script that sends texts and then keeps the connection alive, or ends it."""

    async def script(exchange: Exchange) -> None:
        exchange.open_stream()
        for text in texts:
            exchange.send(text)
        while hold:
            exchange.send(": still here\n\n")
            await exchange.writer.drain()
            await asyncio.sleep(BEAT)

    return script


async def take(events: AsyncIterator[object], count: int) -> list[tuple[str, str]]:
    async with asyncio.timeout(10):
        taken = [await anext(events) for _ in range(count)]
    return [(str(event.kind), event.subject) for event in taken]  # type: ignore[attr-defined]


async def test_events_are_read_as_they_happen(service: FakeService) -> None:
    service.script = stream(message(1), message(2, "unplugged"))
    async with Client(service.path, heartbeat=BEAT) as client:
        events = client.events()
        async with asyncio.timeout(5):
            first = await anext(events)
        assert first.kind is EventKind.PLUGGED
        assert (first.subject, dict(first.details)) == ("web1/net0", {"port": "blue"})
        assert first.at == samples.NOW
        assert await take(events, 1) == [("unplugged", "web2/net0")]
    assert service.seen[0].headers["accept"] == "text/event-stream"
    assert "last-event-id" not in service.seen[0].headers


async def test_an_idle_stream_lives_on_heartbeats(service: FakeService) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.open_stream()
        for _ in range(10):
            exchange.send(": still here\n\n")
            await asyncio.sleep(BEAT)
        exchange.send(message(1))
        await exchange.client_left()

    service.script = script
    async with Client(service.path, heartbeat=BEAT) as client:
        assert await take(client.events(), 1) == [("plugged", "web1/net0")]
    assert len(service.seen) == 1


async def test_three_missing_heartbeats_make_a_new_connection_that_goes_on(
    service: FakeService,
) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.open_stream()
        exchange.send(message(len(service.seen)))
        await exchange.client_left()  # silent from here on

    service.script = script
    async with Client(service.path, heartbeat=BEAT) as client:
        assert await take(client.events(), 2) == [
            ("plugged", "web1/net0"),
            ("plugged", "web2/net0"),
        ]
    assert service.seen[1].headers["last-event-id"] == "e1-1"


@pytest.mark.parametrize(("announced", "connections"), [("60", 1), ("0.05", 2), ("never", 2)])
async def test_the_service_says_how_often_its_heart_beats(
    service: FakeService, announced: str, connections: int
) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.open_stream(f"linkmgr-heartbeat: {announced}")
        await exchange.client_left()

    service.script = script
    async with Client(service.path, heartbeat=BEAT) as client:
        events = client.events()
        await asyncio.sleep(5 * BEAT)
        assert len(service.seen) >= connections if connections > 1 else len(service.seen) == 1
        events.close()


async def test_a_restart_of_the_service_is_survived_and_its_reset_is_told(
    service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service.script = stream(message(7))
    async with Client(service.path, patience=0, heartbeat=BEAT) as client:
        events = client.events()
        await take(events, 1)
        await service.stop()
        await asyncio.sleep(0.3)  # longer than the patience for a verb
        service.script = stream(message(1, "reset", "e2"), message(2, epoch="e2"))
        await service.start()
        assert await take(events, 2) == [("reset", "web1/net0"), ("plugged", "web2/net0")]
    assert service.seen[-1].headers["last-event-id"] == "e1-7"
    assert "waiting for it" in caplog.text


async def test_with_nothing_to_resume_from_a_reset_is_told_all_the_same(
    service: FakeService,
) -> None:
    service.script = stream()
    async with Client(service.path, heartbeat=BEAT) as client:
        events = client.events()
        async with asyncio.timeout(5):
            await events.settled.wait()
        await service.stop()
        service.script = stream(message(1))
        await service.start()
        assert await take(events, 2) == [("reset", ""), ("plugged", "web1/net0")]


async def test_half_a_message_is_forgotten_with_its_connection(service: FakeService) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.open_stream()
        if len(service.seen) == 1:
            exchange.send(message(1) + message(2)[:40])
        else:
            exchange.send(message(2))
            await exchange.client_left()

    service.script = script
    async with Client(service.path, heartbeat=BEAT) as client:
        assert await take(client.events(), 2) == [
            ("plugged", "web1/net0"),
            ("plugged", "web2/net0"),
        ]
    assert service.seen[1].headers["last-event-id"] == "e1-1"


async def test_a_change_that_is_asked_for_after_events_is_heard(service: FakeService) -> None:
    listening = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.request.target == "/v1/events":
            await asyncio.sleep(0.2)  # the service is slow to answer
            exchange.open_stream()
            listening.set()
            await exchange.client_left()
        else:
            assert listening.is_set()
            exchange.answer(samples.outcome())

    service.script = script
    async with Client(service.path) as client:
        client.events()
        assert (await client.plug("web1/net0", "blue")).changed


async def test_no_service_from_the_beginning_is_an_error_of_the_iterator(tmp_path: Path) -> None:
    async with Client(tmp_path / "none.sock", patience=0.1) as client:
        events = client.events()
        with pytest.raises(ServiceUnreachable):
            await anext(events)
        assert [event async for event in events] == []


async def test_a_service_that_refuses_is_not_asked_again(service: FakeService) -> None:
    service.script = lambda exchange: exchange.refuse(500, code="error", what="no more streams")
    async with Client(service.path) as client:
        with pytest.raises(LinkmgrError, match="no more streams"):
            await anext(client.events())
    assert len(service.seen) == 1


async def test_closing_ends_the_iteration_after_what_was_read(service: FakeService) -> None:
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        exchange.open_stream()
        exchange.send(message(1) + message(2) + message(3))
        await exchange.client_left()
        left.set()

    service.script = script
    async with Client(service.path) as client:
        events = client.events()
        await take(events, 1)
        events.close()
        assert [event.subject async for event in events] == ["web2/net0", "web3/net0"]
        async with asyncio.timeout(5):
            await left.wait()


async def test_closing_the_client_wakes_who_waits_for_an_event(service: FakeService) -> None:
    service.script = stream()
    async with asyncio.TaskGroup() as group:
        client = Client(service.path, heartbeat=BEAT)
        waiting = group.create_task(_all(client))
        await asyncio.sleep(0.2)
        await client.close()
    assert waiting.result() == []


async def _all(client: Client) -> list[object]:
    return [event async for event in client.events()]


async def test_events_that_nobody_takes_are_left_to_the_service(service: FakeService) -> None:
    texts = [message(number) for number in range(SUBSCRIPTION_LIMIT * 20)]
    stuck = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        exchange.open_stream()
        exchange.writer.transport.set_write_buffer_limits(high=0)
        for text in texts:
            exchange.send(text)
            try:
                async with asyncio.timeout(0.5):
                    await exchange.writer.drain()
            except TimeoutError:
                stuck.set()
                await exchange.writer.drain()
        await exchange.client_left()

    service.script = script
    async with Client(service.path) as client:
        events = client.events()
        async with asyncio.timeout(20):
            await stuck.wait()
        assert len(events._waiting) == SUBSCRIPTION_LIMIT
        taken = await take(events, len(texts))
    assert [subject for _, subject in taken] == [f"web{n}/net0" for n in range(len(texts))]


async def test_a_client_can_close_while_nobody_takes_its_events(service: FakeService) -> None:
    service.script = stream(*(message(number) for number in range(SUBSCRIPTION_LIMIT * 2)))
    async with Client(service.path) as client:
        events = client.events()
        async with asyncio.timeout(10):
            while len(events._waiting) < SUBSCRIPTION_LIMIT:  # noqa: ASYNC110 - there is nothing to wait for
                await asyncio.sleep(0.01)


async def test_a_kind_that_only_a_newer_service_knows_is_left_out(service: FakeService) -> None:
    service.script = stream(message(1, "teleported"), message(2))
    async with Client(service.path) as client:
        assert await take(client.events(), 1) == [("plugged", "web2/net0")]


async def test_an_event_of_the_wrong_form_ends_the_stream_with_a_reason(
    service: FakeService,
) -> None:
    service.script = stream('event: plugged\ndata: {"subject": 7}\n\n')
    async with Client(service.path) as client:
        with pytest.raises(LinkmgrError, match="subject: should be a text"):
            await anext(client.events())


# ---------------------------------------------------------------------- the stream's form

STREAM = (
    ": hello\n\nid: 1\r\nevent: a\r\ndata: x\r\ndata: ü\r\n\r\n"
    "data:no space\rid\r\rretry: 5\nid: 3\n\ndata\n\n"
)
MESSAGES = [
    Message("a", "x\nü", "1"),
    Message("message", "no space", None),
    Message("message", "", "3"),
]


@given(st.lists(st.integers(0, len(STREAM.encode()))))
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    data, parser = STREAM.encode(), Parser()
    edges = [0, *sorted(cuts), len(data)]
    read = [m for a, b in pairwise(edges) for m in parser.feed(data[a:b])]
    assert read == MESSAGES
    assert parser.last_id == "3"


@given(st.binary(max_size=200))
def test_no_stream_breaks_the_parser(data: bytes) -> None:
    Parser().feed(data)


def test_a_message_without_an_end_is_refused() -> None:
    parser = Parser()
    line = b"data: " + b"x" * (MAX_MESSAGE // 10) + b"\n"
    for _ in range(9):
        parser.feed(line)
    with pytest.raises(SseError, match="longer"):
        parser.feed(line)
