"""The event stream tells everything once, resumes, and costs little."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr.events import EventKind
from linkmgr.service import event_log
from linkmgr.service.auth.peer import Peer
from linkmgr.service.config.schema import Config, Limits
from linkmgr.service.http import schemas
from linkmgr.testing.process import until
from tests.unit.service_lab import Lab, request, running


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    limits = Limits(heartbeat_seconds=0.2, events=20, streams=210)
    async with running(tmp_path, Config(limits=limits)) as made:
        yield made


class Listener:
    """A client of the stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, lab: Lab, last_id: str = "") -> Listener:
        reader, writer = await lab.connect()
        writer.write(request("GET", "/v1/events", headers={"Last-Event-ID": last_id}))
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head, head
        assert b"text/event-stream" in head
        return cls(reader, writer)

    async def block(self) -> dict[str, str]:
        """The next block, a comment as the member ``""``."""
        async with asyncio.timeout(5):
            size = int(await self.reader.readline(), 16)
            text = (await self.reader.readexactly(size + 2)).decode()
        self.waiting = [each for each in text.strip("\r\n").split("\n\n") if each]
        return self._read(self.waiting.pop(0))

    waiting: list[str]

    def _read(self, text: str) -> dict[str, str]:
        pairs = (line.partition(": ") for line in text.split("\n"))
        return {name.strip(":"): value for name, _, value in pairs}

    async def event(self) -> dict[str, Any]:
        """The next event."""
        while True:
            waiting = getattr(self, "waiting", [])
            block = self._read(waiting.pop(0)) if waiting else await self.block()
            if "data" in block:
                data = json.loads(block["data"])
                schemas.EventForm.model_validate(data)
                assert data["kind"] == block["event"]
                return {**data, "id": block["id"]}


def tell(lab: Lab, *subjects: str) -> None:
    for subject in subjects:
        lab.api.bus.publish(EventKind.LINK, subject)


async def test_events_come_as_they_happen(lab: Lab) -> None:
    tell(lab, "before")
    await asyncio.sleep(0)
    listener = await Listener.open(lab)
    await listener.block()
    tell(lab, "web1/net0")
    event = await listener.event()
    assert (event["kind"], event["subject"]) == ("link", "web1/net0")
    assert event["id"] == f"{lab.context.epoch}-2"


async def test_a_client_that_comes_back_gets_what_it_missed(lab: Lab) -> None:
    listener = await Listener.open(lab)
    await listener.block()
    tell(lab, "one")
    last = (await listener.event())["id"]
    listener.writer.transport.abort()
    tell(lab, "two", "three")
    again = await Listener.open(lab, last)
    assert [(await again.event())["subject"] for _ in range(2)] == ["two", "three"]


async def test_a_client_that_had_no_event_yet_can_resume_too(lab: Lab) -> None:
    first = await (await Listener.open(lab)).block()
    assert first["id"] == f"{lab.context.epoch}-0"
    tell(lab, "one")
    again = await Listener.open(lab, first["id"])
    assert (await again.event())["subject"] == "one"


@pytest.mark.parametrize(
    "last_id", ["0-0", "x", "EPOCH-7", "EPOCH--1", "EPOCH-1e3", "-", "EPOCH-" + "9" * 5000]
)
async def test_an_id_that_is_not_known_begins_with_one_reset(lab: Lab, last_id: str) -> None:
    tell(lab, "one")
    await asyncio.sleep(0.01)
    listener = await Listener.open(lab, last_id.replace("EPOCH", lab.context.epoch))
    reset = await listener.event()
    assert (reset["kind"], reset["id"]) == ("reset", f"{lab.context.epoch}-1")
    tell(lab, "two")
    assert (await listener.event())["subject"] == "two"


async def test_what_is_not_kept_any_more_is_a_reset(lab: Lab) -> None:
    tell(lab, *(str(number) for number in range(30)))
    await asyncio.sleep(0.01)
    assert (await (await Listener.open(lab, f"{lab.context.epoch}-9")).event())["kind"] == "reset"
    kept = await Listener.open(lab, f"{lab.context.epoch}-10")
    assert [(await kept.event())["subject"] for _ in range(20)] == [
        str(number) for number in range(10, 30)
    ]


async def test_an_idle_stream_gives_a_sign_of_life(lab: Lab) -> None:
    listener = await Listener.open(lab)
    await listener.block()
    begun = asyncio.get_running_loop().time()
    assert await listener.block() == {"": "alive"}
    assert 0.1 < asyncio.get_running_loop().time() - begun < 2


async def test_a_client_that_does_not_read_costs_no_more_than_its_socket(lab: Lab) -> None:
    slow = await Listener.open(lab)
    slow.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket of asyncio
    quick = await Listener.open(lab)
    heard = 0
    for number in range(400):
        lab.api.bus.publish(EventKind.LINK, f"vm/{number}", padding="x" * 4000)
        while (await quick.event())["subject"] != f"vm/{number}":
            pass
        heard += 1
    assert heard == 400, "others are not held up"
    held = sum(
        connection.transport.get_write_buffer_size()
        for connection in lab.service._server.server_state.connections
    )
    assert held < 150_000, "of 1.6 MB that it was to get"
    slow.writer.transport.resume_reading()  # type: ignore[attr-defined]  # a socket of asyncio
    kinds: list[str] = []
    while not kinds or kinds[-1] != "reset":
        kinds.append((await slow.event())["kind"])
    assert 1 < len(kinds) < 400, "it gets what was on the way, and then a reset"


async def test_two_hundred_idle_streams_cost_little_and_hold_nobody_up(lab: Lab) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    listeners = [await Listener.open(lab) for _ in range(200)]
    for listener in listeners:
        await listener.block()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000, f"{grown} KiB for 200 streams and their clients"
    assert lab.context.event_log.places.total == 200
    begun = asyncio.get_running_loop().time()
    assert (await lab.ask("GET", "/healthz")).status == 200
    assert asyncio.get_running_loop().time() - begun < 1
    tell(lab, "all")
    for listener in listeners:
        assert (await listener.event())["subject"] == "all"
    for listener in listeners:
        listener.writer.transport.abort()

    async def nobody() -> bool:
        return not lab.context.event_log.places.total

    await until(nobody, timeout=5, what="all streams are forgotten")


async def test_there_are_only_so_many_streams(lab: Lab) -> None:
    root = Peer(0, 0, 1, frozenset())
    held = [lab.context.event_log.places.enter(root) for _ in range(lab.context.limits().streams)]
    answer = await lab.ask("GET", "/v1/events")
    assert (answer.status, answer.json["code"]) == (429, "too-many")
    for leave in held:
        leave()


async def test_past_events_take_only_so_many_bytes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "MAX_RING_BYTES", 10_000)
    first = await (await Listener.open(lab)).block()
    for number in range(10):
        lab.api.bus.publish(EventKind.LINK, str(number), padding="x" * 3000)
        await asyncio.sleep(0)
    again = await Listener.open(lab, first["id"])
    assert (await again.event())["kind"] == "reset"


async def test_streams_end_when_the_service_stops_and_nobody_waits_for_a_slow_one(
    tmp_path: Path,
) -> None:
    begun = asyncio.get_running_loop().time()
    async with running(tmp_path) as lab:
        listener = await Listener.open(lab)
        slow = await Listener.open(lab)
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket of asyncio
        reading = asyncio.create_task(listener.reader.read())
        for number in range(200):
            lab.api.bus.publish(EventKind.LINK, str(number), padding="x" * 8000)
            await asyncio.sleep(0)
        lab.service.stop()
        async with asyncio.timeout(5):
            rest = await reading
        assert rest.endswith(b"0\r\n\r\n"), "the stream has an end"
    assert asyncio.get_running_loop().time() - begun < 10
