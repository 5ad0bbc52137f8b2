"""HTTP over the service's unix socket: sent again when it surely was not received, never else.

Every request has a connection of its own. On a unix socket that costs next to nothing, and no
request can be lost in a kept connection that the service is just about to close.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

import httpx

from linkmgr.client.errors import error_from
from linkmgr.errors import BadOption, LinkmgrError, ServiceGone, ServiceUnreachable
from linkmgr.paths import ADMIN_SOCKET_NAME, admin_socket_path
from linkmgr.state.codec import DecodeError, JsonReader, to_json

CONNECT_TIMEOUT_S = 5.0  #: for a connection to be taken; the answer may take as long as it needs
MISSED_HEARTBEATS = 3  #: heartbeats that may be missing before a connection counts as broken
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0  #: seconds between two attempts to connect

_MAX_HEARTBEAT_S = 86400.0  # seconds

T = TypeVar("T")


class Backoff:
    """Exponential backoff: pauses between attempts, each longer than the last, until a deadline."""

    def __init__(self, patience: float) -> None:
        self._now = asyncio.get_running_loop().time
        self._deadline = self._now() + patience
        self._interval = MIN_BACKOFF_S

    async def wait(self) -> bool:
        """Wait for the next interval and return true; return false when the time is up."""
        left = self._deadline - self._now()
        if left <= 0:
            return False
        await asyncio.sleep(min(self._interval, left))
        self._interval = min(2 * self._interval, MAX_BACKOFF_S)
        return True


class _SocketTransport(httpx.AsyncBaseTransport):
    """Sends on the admin socket where this user may connect to it, else on the public one.

    Strangers can fill the backlog of the latter.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._public = _over_uds(socket)
        self._admin = _over_uds(socket.with_name(ADMIN_SOCKET_NAME))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, on the other socket only if nobody listens on the first."""
        if admin_socket_path(self._socket) is not None:
            with contextlib.suppress(httpx.ConnectError):
                return await self._admin.handle_async_request(request)
        return await self._public.handle_async_request(request)

    async def aclose(self) -> None:
        """Close both."""
        await self._admin.aclose()
        await self._public.aclose()


def _over_uds(socket: Path) -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(
        uds=str(socket),
        # Loads no certificates: there is no TLS on a unix socket.
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )


class HttpTransport:
    """Speaks HTTP with the service.

    :param patience: seconds for which a request that was not sent is tried again.
    """

    def __init__(self, socket: Path, patience: float) -> None:
        self.socket = socket
        self.patience = patience
        self._http = httpx.AsyncClient(
            transport=_SocketTransport(socket),
            base_url="http://linkmgr",
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def get(
        self, path: str, read: Callable[[JsonReader], T], *, query: Mapping[str, str] | None = None
    ) -> T:
        """Ask for something. Asked again when the service goes away meanwhile.

        :param read: makes the result of the answer.
        :raise LinkmgrError: what the service raised.
        :raise ServiceUnreachable: nobody listens.
        :raise ServiceGone: the service goes away each time.
        """
        request = self._http.build_request("GET", path, params=query)
        return _read(await self._sent(request, repeatable=True), read)

    async def change(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        read: Callable[[JsonReader], T],
    ) -> T:
        """Ask for a change. Sent once: never again when it may have been received.

        :raise LinkmgrError: what the service raised.
        :raise ServiceUnreachable: nobody listens; nothing was done.
        :raise ServiceGone: the service went away before it answered; it may have been done.
        """
        try:
            content = None if body is None else json.dumps(to_json(body))
        except TypeError as error:
            raise BadOption(
                f"an option cannot be sent to the service: {error}",
                hint="give texts, numbers, true or false, lists or mappings",
            ) from None
        headers = {"content-type": "application/json"} if content else None
        request = self._http.build_request(method, path, content=content, headers=headers)
        return _read(await self._sent(request, repeatable=False), read)

    async def text(self, path: str) -> str:
        """Ask for something that is not JSON."""
        request = self._http.build_request("GET", path)
        return (await self._sent(request, repeatable=True)).text

    @asynccontextmanager
    async def stream(
        self, path: str, headers: Mapping[str, str], *, heartbeat: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an answer without an end, and give its bytes as they come. Tried once.

        :param heartbeat: seconds between two signs of life; what the service announces goes first.
            When three are missing it counts as gone.
        :raise LinkmgrError: what the service raised.
        :raise ServiceUnreachable: nobody listens.
        :raise ServiceGone: it went away, or is silent; also while the bytes are read.
        """
        request = self._http.build_request("GET", path, headers=headers)
        silence = MISSED_HEARTBEATS * heartbeat
        try:
            async with asyncio.timeout(silence):
                response = await self._http.send(request, stream=True)
            try:
                if response.is_error:
                    async with asyncio.timeout(silence):
                        raise error_from(response.status_code, await response.aread())
                silence = MISSED_HEARTBEATS * _heartbeat(response, heartbeat)
                yield _until_silent(response.aiter_bytes(), silence)
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._unreachable(error) from error
        except (httpx.TransportError, TimeoutError) as error:
            raise self._gone() from error

    async def _sent(self, request: httpx.Request, *, repeatable: bool) -> httpx.Response:
        backoff = Backoff(self.patience)
        while True:
            try:
                response = await self._http.send(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if not self._may_pass(error) or not await backoff.wait():
                    raise self._unreachable(error) from error
            except httpx.TransportError as error:
                if not repeatable or not await backoff.wait():
                    raise self._gone() from error
            else:
                if not response.is_error:
                    return response
                problem = error_from(response.status_code, response.content)
                if not isinstance(problem, ServiceUnreachable) or not await backoff.wait():
                    raise problem

    def _may_pass(self, error: Exception) -> bool:
        """Whether it may be because the service is just starting again."""
        number = _errno(error)
        if number in (errno.EACCES, errno.EPERM):
            with contextlib.suppress(OSError):
                return not self.socket.stat().st_mode & 0o777  # it is opened when it listens
        return number in (None, errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)

    def _unreachable(self, error: Exception) -> ServiceUnreachable:
        match _errno(error):
            case errno.ENOENT:
                why = "there is no such socket"
            case errno.ECONNREFUSED:
                why = "nobody listens there"
            case errno.EAGAIN:
                why = "the connections that wait there are too many already"
            case errno.EMFILE | errno.ENFILE:
                return ServiceUnreachable(
                    f"the service at {self.socket} cannot be reached: too many files are open here",
                    hint="close some, or raise the limit ('ulimit -n')",
                )
            case errno.EACCES | errno.EPERM:
                return ServiceUnreachable(
                    f"the service at {self.socket} cannot be reached: permission denied",
                    hint="see the modes of the socket and of its directory",
                )
            case _:
                why = str(error) or type(error).__name__
        return ServiceUnreachable(
            f"the service at {self.socket} cannot be reached: {why}",
            hint="start it with 'systemctl start linkmgr', or name another socket with --socket "
            "or LINKMGR_SOCKET",
        )

    def _gone(self) -> ServiceGone:
        return ServiceGone(
            f"the service at {self.socket} went away before it answered, so it may or may not "
            "have done what it was asked",
            hint="look with 'linkmgr status' when it is back; every verb can be repeated",
        )


def _errno(error: BaseException | None) -> int | None:
    """The operating system's reason, wherever in the chain of causes it is."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _heartbeat(response: httpx.Response, default: float) -> float:
    try:
        announced = float(response.headers.get("linkmgr-heartbeat", default))
    except ValueError:
        return default
    return announced if 0 < announced < _MAX_HEARTBEAT_S else default


def _read(response: httpx.Response, read: Callable[[JsonReader], T]) -> T:
    try:
        return read(JsonReader(response.json(), lenient=True))
    except ValueError as error:  # a DecodeError is one
        what = str(error) if isinstance(error, DecodeError) else "it is not JSON"
        raise LinkmgrError(
            f"the answer of the service cannot be read: {what}",
            hint="see whether client and service are of the same version; what was asked is done",
        ) from error


async def _until_silent(chunks: AsyncIterator[bytes], silence: float) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(silence):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        yield chunk
