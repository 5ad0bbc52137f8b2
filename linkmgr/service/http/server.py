"""Under the application: uvicorn with h11 on unix sockets, and who is at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from linkmgr.aio.log_limit import LogLimit
from linkmgr.aio.unix_sockets import UnixSocket, accept_connections
from linkmgr.errors import BadRequest
from linkmgr.service.auth.peer import Peer, peer_of
from linkmgr.service.auth.quota import Quota, Rank
from linkmgr.service.config.schema import Limits
from linkmgr.service.http.reading import MAX_READ_BYTES, ReadMeter
from linkmgr.service.problems import MEDIA_TYPE, ServiceProblem, problem

_limit = LogLimit(__name__)

_MAX_HEAD_BYTES = 16 << 10  # bytes of a request's line and headers
_WRITE_BUFFER_BYTES = 32 << 10  # bytes that may wait for a slow client
_SMALL_UNREAD_BYTES = 64 << 10  # bytes that a client may leave unread for as long as it likes
_KEEP_ALIVE_TIMEOUT_S = 15  # seconds that an idle connection is kept
_SHUTDOWN_TIMEOUT_S = 15  # seconds that requests under way get at the end
_SLOW_CLIENT_TIMEOUT_S = 2  # seconds that a client gets then to read what it has not read yet


#: Part of all descriptors that may be connections of callers: the others are guests and cables.
CONNECTION_FD_SHARE = 0.5


#: Bytes of answers that one user's clients, and those of all users but root together, may leave
#: unread. An answer about a thousand guests has one megabyte; the service may have 768.
MAX_UNREAD_PER_UID = 8 << 20
MAX_UNREAD = 64 << 20


class UnreadBytes:
    """Counts the bytes of answers that wait for slow clients, by user.

    :param rank: of a user; root's clients may be as slow as they like.
    """

    def __init__(self, rank: Callable[[Peer], Rank]) -> None:
        self._rank = rank
        self._bytes: Counter[int] = Counter()

    def add(self, peer: Peer, size: int) -> bool:
        """Count bytes; false when it is too much."""
        if self._rank(peer) is Rank.PRIVILEGED:
            return True
        self._bytes[peer.uid] += size
        own, together = self._bytes[peer.uid], self._bytes.total()
        return own <= MAX_UNREAD_PER_UID and together <= MAX_UNREAD

    def remove(self, peer: Peer, size: int) -> None:
        """Count no longer what has been read, or dropped."""
        self._bytes -= Counter({peer.uid: size})


def connection_quota(limits: Callable[[], Limits], rank: Callable[[Peer], Rank]) -> Quota:
    """Make the count of connections; one user may have as many as the configuration says."""

    def most() -> int:
        return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * CONNECTION_FD_SHARE)

    return Quota(most, rank, lambda: limits().connections)


class PeerAwareH11(H11Protocol):
    """One connection. The application finds its peer as ``scope["state"]["peer"]``."""

    def __init__(
        self,
        places: Quota,
        unread: UnreadBytes,
        reading: ReadMeter,
        limits: Callable[[], Limits],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._places = places
        self._unread = unread
        self._reading = reading
        self._waiting = 0  # bytes that are counted there
        self._does_not_read: asyncio.TimerHandle | None = None
        self._limits = limits
        self._leave: Callable[[], None] = _nothing
        self._peer: Peer | None = None
        self._too_slow: asyncio.TimerHandle | None = None

    # As in uvicorn's class, which narrows what asyncio declares.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Ask the kernel who it is."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        try:
            self._peer = peer_of(transport.get_extra_info("socket"))
        except OSError as error:
            about = "a connection is dropped, because its peer cannot be had: %s"
            _limit.warning("API socket", about, error)
            transport.abort()
            return
        self.app_state = {**self.app_state, "peer": self._peer}
        why = self._places.refusal(self._peer)
        self._leave = self._places.enter(self._peer)
        self._reading.add(self._peer, self)
        if why is None:
            self._watch()
        else:
            what = f"no more connections now: {why}"
            self._last_words(problem(ServiceProblem("too-many", what, "close some")))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self._too_slow is not None:
            self._too_slow.cancel()
        self._leave()
        self._reads_again()
        if self._peer is not None:
            self._reading.remove(self._peer, self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """A client reads more slowly than its answer is written."""
        super().pause_writing()
        if self._peer is None:
            return
        self._waiting = self.transport.get_write_buffer_size()
        seconds = self._limits().request_seconds
        self._does_not_read = self.loop.call_later(seconds, self._give_up)
        if not self._unread.add(self._peer, self._waiting):
            text = "%s is hung up on: its answers wait unread"
            _limit.warning(f"uid {self._peer.uid}", text, self._peer)
            self.transport.abort()

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        self._reads_again()

    def _reads_again(self) -> None:
        if self._does_not_read is not None:
            self._does_not_read.cancel()
            self._does_not_read = None
        if self._peer is not None and self._waiting:
            self._unread.remove(self._peer, self._waiting)
        self._waiting = 0

    def _give_up(self) -> None:
        """Hang up on a client that leaves an answer unread; a slow event stream has less."""
        self._does_not_read = None
        if self.transport.get_write_buffer_size() > _SMALL_UNREAD_BYTES:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take in a part of a request."""
        if self.transport.is_closing() or self._peer is None:
            return
        with self._reading.spending(self._peer, self):
            super().data_received(data)
        self._watch()

    def pause_reading(self) -> None:
        """Read no further for now; see `ReadMeter`."""
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again, unless the application is to take in first what was read."""
        if not self.flow.read_paused:
            self.transport.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        if self._peer is not None:
            _limit.warning(f"uid {self._peer.uid}", "%s sent what is not HTTP", self._peer)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not (
            self.cycle and self.cycle.response_started and not self.cycle.response_complete
        ):
            self._last_words(problem(BadRequest(msg.rstrip("."), hint="speak HTTP/1.1")))
        else:
            self.transport.close()  # in the middle of an answer there is no other way to say it

    def shutdown(self) -> None:
        """The service stops: end when what is under way is answered."""
        super().shutdown()
        if self.flow.write_paused:
            # A client that does not read holds nothing up.
            self.loop.call_later(_SLOW_CLIENT_TIMEOUT_S, self.transport.abort)

    def _watch(self) -> None:
        """Give a request line and its headers only so much time."""
        if self._too_slow is not None:
            if self.cycle is None or self.cycle.response_complete:
                return
            self._too_slow.cancel()
            self._too_slow = None
        elif self.cycle is None or self.cycle.response_complete:
            self._too_slow = self.loop.call_later(self._limits().request_seconds, self._late)

    def _late(self) -> None:
        self._too_slow = None
        if self.cycle is None or self.cycle.response_complete:
            seconds = self._limits().request_seconds
            what = f"the request did not arrive within {seconds:g} s"
            self._last_words(problem(ServiceProblem("too-slow", what, "send it again")))

    def _last_words(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        head = (
            f"HTTP/1.1 {document['status']} \r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
            self.transport.close()


def _nothing() -> None:
    pass


class _Acceptor:
    """Takes connections, in place of asyncio's server: that one floods the log without fds."""

    def __init__(self, sock: UnixSocket, make: Callable[[], asyncio.Protocol]) -> None:
        self._sock = sock
        self._task = asyncio.create_task(self._accept(make), name="API socket")

    async def _accept(self, make: Callable[[], asyncio.Protocol]) -> None:
        loop = asyncio.get_running_loop()
        async for sock in accept_connections(self._sock):
            sock.recv_max = MAX_READ_BYTES
            await loop.connect_accepted_socket(make, sock)

    def close(self) -> None:
        """Take no more, and close the socket."""
        self._task.cancel()
        self._sock.close()

    async def wait_closed(self) -> None:
        """Wait until none can be taken any more."""
        await asyncio.gather(self._task, return_exceptions=True)


class Server(uvicorn.Server):
    """uvicorn without its tick of ten a second, and without its signal handlers."""

    def __init__(
        self,
        app: Any,
        places: Quota,
        unread: UnreadBytes,
        reading: ReadMeter,
        limits: Callable[[], Limits],
    ) -> None:
        def protocol(**options: Any) -> PeerAwareH11:
            return PeerAwareH11(places, unread, reading, limits, **options)

        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,  # type: ignore[arg-type]  # any maker of protocols will do
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                backlog=1024,
                h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
                timeout_keep_alive=_KEEP_ALIVE_TIMEOUT_S,
                timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
            )
        )
        self.listens = asyncio.Event()  #: set when connections are answered
        self._stop = asyncio.Event()

    async def run_on(self, socks: Sequence[UnixSocket]) -> None:
        """Answer on listening sockets, which are closed at the end, until `stop`."""
        self._socks = socks
        await self.serve()

    # With uvicorn's parameter, which is for its own sockets.
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Begin to answer."""
        await self.lifespan.startup()
        self.servers = [
            # uvicorn wants asyncio's own servers, and uses what an _Acceptor has of them.
            _Acceptor(sock, self._protocol)  # type: ignore[misc]
            for sock in self._socks
        ]
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        # PeerAwareH11, which the configuration was given; uvicorn declares any asyncio.Protocol.
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def stop(self) -> None:
        """Answer what is under way, and end."""
        self.should_exit = True
        self._stop.set()

    async def main_loop(self) -> None:
        """Wait for the end."""
        self.listens.set()
        await self._stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the service's."""
        yield
