"""Events of the service on a connection of their own, which is made anew whenever it breaks."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from types import MappingProxyType

from linkmgr.client.http import Backoff, HttpTransport
from linkmgr.client.sse import Message, Parser, SseError
from linkmgr.errors import LinkmgrError, ServiceGone, ServiceUnreachable
from linkmgr.events import SUBSCRIPTION_LIMIT, Event, EventKind
from linkmgr.state.codec import JsonReader

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0  #: seconds between two heartbeats of a service that does not announce it
_NO_DEADLINE = float("inf")


class RemoteEvents:
    """A subscription to the events of the service, from now on; see `Client.events`.

    Read on by a task of its own. When nobody iterates it stops reading after some events, and the
    service drops the oldest and tells how many.
    """

    def __init__(
        self, transport: HttpTransport, *, heartbeat: float, ended: Callable[[RemoteEvents], None]
    ) -> None:
        self._transport = transport
        self._heartbeat = heartbeat
        self._parser = Parser()
        self._waiting: deque[Event] = deque()
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._error: LinkmgrError | None = None
        self._was_connected = False  #: at least once
        self._heard = False  #: anything, on this connection
        self.settled = asyncio.Event()  #: connected for the first time, or given up
        self.task = asyncio.create_task(self._listen())
        self.task.add_done_callback(lambda _: self._over())
        self.task.add_done_callback(lambda _: ended(self))

    def __aiter__(self) -> RemoteEvents:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self.task.done():
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        self._room.set()
        return self._waiting.popleft()

    def close(self) -> None:
        """Unsubscribe. What waits can still be read."""
        self.task.cancel()

    def _over(self) -> None:
        self.settled.set()
        self._wake.set()

    async def _listen(self) -> None:
        backoff = Backoff(self._transport.patience)
        while True:
            trouble: LinkmgrError = ServiceGone("the service ends its stream of events at once")
            self._heard = False
            connected_before = self._was_connected
            try:
                await self._connection()
            except (ServiceUnreachable, ServiceGone) as error:
                trouble = error
            except LinkmgrError as error:  # it refuses, and would do so again
                self._error = error
                return
            if self._heard or self._was_connected != connected_before:
                log.warning("the events of the service have stopped; waiting for it")
                backoff = Backoff(_NO_DEADLINE)
            if not await backoff.wait():
                self._error = trouble
                return

    async def _connection(self) -> None:
        """Read one connection to its end."""
        self._parser = Parser(self._parser.last_id)  # half a message is lost with its connection
        headers = {"accept": "text/event-stream"}
        if self._parser.last_id is not None:
            headers["last-event-id"] = self._parser.last_id
        async with self._transport.stream(
            "/v1/events", headers, heartbeat=self._heartbeat
        ) as chunks:
            if self._was_connected and self._parser.last_id is None:
                # There is nothing to resume from, so nobody knows what has been missed.
                await self._put(Event(EventKind.RESET, ""))
            self._was_connected = True
            self.settled.set()
            async for chunk in chunks:
                self._heard = True
                for message in self._feed(chunk):
                    event = _event(message)
                    if event is not None:
                        await self._put(event)

    def _feed(self, chunk: bytes) -> list[Message]:
        try:
            return self._parser.feed(chunk)
        except SseError as error:
            raise _unreadable(str(error)) from error

    async def _put(self, event: Event) -> None:
        while len(self._waiting) >= SUBSCRIPTION_LIMIT:
            self._room.clear()
            await self._room.wait()
        self._waiting.append(event)
        self._wake.set()


def _event(message: Message) -> Event | None:
    """Read an event; none when it is of a kind that only a newer service knows."""
    if message.kind not in set(EventKind):
        log.debug("an event of the unknown kind %r was left out", message.kind)
        return None
    try:
        reader = JsonReader(json.loads(message.data))
        return Event(
            kind=EventKind(message.kind),
            subject=reader.text("subject"),
            details=MappingProxyType(dict(reader.mapping("details"))),
            at=reader.time("at"),
        )
    except ValueError as error:  # a DecodeError is one
        raise _unreadable(str(error)) from error


def _unreadable(why: str) -> LinkmgrError:
    return LinkmgrError(
        f"the events of the service cannot be read: {why}",
        hint="see whether client and service are of the same version",
    )
