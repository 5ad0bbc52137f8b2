"""The event stream: server-sent events (WHATWG HTML, section 9.2) that a client can resume.

One task subscribes to the verbs and keeps the last events, ready to be sent, in a ring. A stream is
only a place in that ring, so a slow client costs nothing but what its socket holds; one that falls
behind the ring is told so with a ``reset``, as is one that comes back with an id that is not known.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from linkmgr.api import EventStream
from linkmgr.events import Event
from linkmgr.service.auth.peer import Peer
from linkmgr.service.auth.quota import Quota
from linkmgr.service.config.schema import Limits
from linkmgr.service.http.rules import HEAD
from linkmgr.service.problems import ServiceProblem
from linkmgr.state.codec import to_json

RESET = "reset"  #: what a stream is told when it has missed events
#: Bytes of events that are kept, however many there are: ten times what a thousand usually have.
MAX_RING_BYTES = 4 << 20
_BATCH_BYTES = 16 << 10  # bytes that are sent at once


@dataclass(frozen=True)
class _Entry:
    number: int
    data: bytes


class EventLog:
    """The last events, in a ring that each client reads from a position of its own.

    :param epoch: of this run of the service; ids are ``EPOCH-NUMBER``.
    :param limits: says how many events are kept, and how often an idle stream gets a comment line.
    :param watcher: is told of each event.
    :param places: says who may have one more stream.
    """

    def __init__(
        self,
        epoch: str,
        limits: Callable[[], Limits],
        watcher: Callable[[Event], None],
        places: Quota,
    ) -> None:
        self.epoch = epoch
        self.limits = limits
        self.closed = False
        self.places = places
        self._watcher = watcher
        self._ring: deque[_Entry] = deque()
        self._bytes = 0
        self._last = 0
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def follow(self, events: EventStream) -> None:
        """Take in events until they end."""
        try:
            async for event in events:
                self._watcher(event)
                self.add(event)
        finally:
            events.close()

    def add(self, event: Event) -> None:
        """Take in one event, and wake all streams."""
        self._last += 1
        text = json.dumps(to_json(event), separators=(",", ":"))
        data = f"id: {self._id(self._last)}\nevent: {event.kind}\ndata: {text}\n\n".encode()
        self._ring.append(_Entry(self._last, data))
        self._bytes += len(data)
        while len(self._ring) > self.limits().events or self._bytes > MAX_RING_BYTES:
            self._bytes -= len(self._ring.popleft().data)
        self._wake()

    def close(self) -> None:
        """End all streams."""
        self.closed = True
        self._wake()

    def open(self, last_id: str | None, peer: Peer) -> EventsResponse:
        """Begin a stream.

        :param last_id: of the last event that the client has; ``None`` begins now.
        :raise ServiceProblem: when there are too many streams.
        """
        if why := self.places.refusal(peer):
            raise ServiceProblem("too-many", f"no more event streams now: {why}", "close some")
        place, first = self._last, b""
        if last_id is None:
            first = self._hello(place)
        elif (found := self._place(last_id)) is not None:
            place, first = found, self._hello(found)
        else:
            first = self.reset()
        return EventsResponse(self, peer, place, first)

    def reset(self) -> bytes:
        """Say that events were missed: the client must look at everything again."""
        now = datetime.now(UTC).isoformat()
        text = json.dumps({"kind": RESET, "subject": "", "details": {}, "at": now})
        return f"id: {self._id(self._last)}\nevent: {RESET}\ndata: {text}\n\n".encode()

    def after(self, place: int) -> tuple[int, bytes]:
        """Return what comes after a place, up to a batch, and the place behind it."""
        if place >= self._last:
            return place, b""
        behind = self._last - len(self._ring)
        if place < behind:
            return self._last, self.reset()
        chunks, size = [], 0
        for at in range(place - behind, len(self._ring)):
            entry = self._ring[at]
            chunks.append(entry.data)
            place, size = entry.number, size + len(entry.data)
            if size > _BATCH_BYTES:
                break
        return place, b"".join(chunks)

    def news(self) -> asyncio.Future[None]:
        """Is done when there is more, or the end. One for all streams."""
        return self._news

    def _hello(self, place: int) -> bytes:
        # An id without data is no event, but a client that is cut off now resumes from here.
        return f": linkmgr\nid: {self._id(place)}\n\n".encode()

    def _wake(self) -> None:
        self._news.set_result(None)
        self._news = self._news.get_loop().create_future()

    def _id(self, number: int) -> str:
        return f"{self.epoch}-{number}"

    def _place(self, last_id: str) -> int | None:
        epoch, dash, number = last_id.rpartition("-")
        if not dash or epoch != self.epoch or not number.isascii() or not number.isdigit():
            return None
        if len(number) > 18:
            return None
        oldest = self._last - len(self._ring)
        return int(number) if oldest <= int(number) <= self._last else None


class EventsResponse(Response):
    """One client's stream, until it goes away or the service stops."""

    media_type = "text/event-stream"

    def __init__(self, event_log: EventLog, peer: Peer, place: int, first: bytes) -> None:
        beats = {"linkmgr-heartbeat": str(event_log.limits().heartbeat_seconds)}  # for `Client`
        super().__init__(headers={"cache-control": "no-store"} | beats)
        del self.headers["content-length"]
        self._log = event_log
        self._peer = peer
        self._place = place
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        if scope.get(HEAD):
            await send(start)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        leave = self._log.places.enter(self._peer)
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await send(start)
            data = self._first
            while not gone.done():
                await send({"type": "http.response.body", "body": data, "more_body": True})
                data = await self._next(gone)
                if not data:
                    break
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leave()
            gone.cancel()

    async def _next(self, gone: asyncio.Task[None]) -> bytes:
        """What to send next; a comment when nothing happens; nothing at the end."""
        event_log = self._log
        news = event_log.news()
        self._place, data = event_log.after(self._place)
        if data or event_log.closed:
            return data
        seconds = event_log.limits().heartbeat_seconds
        await asyncio.wait({news, gone}, timeout=seconds, return_when="FIRST_COMPLETED")
        if gone.done():
            return b""
        self._place, data = event_log.after(self._place)
        return data if data or event_log.closed else b": alive\n\n"


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
