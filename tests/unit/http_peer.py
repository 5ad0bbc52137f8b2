"""A scripted service on a unix socket: answers as the test says, and can go away at any point."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any

    def __str__(self) -> str:
        return f"{self.method} {self.target}"


@dataclass
class Exchange:
    """One request, and the means to answer it."""

    request: Request
    writer: asyncio.StreamWriter

    def answer(self, value: object, status: int = 200, kind: str = "application/json") -> None:
        """Answer with JSON, or with a text as it is."""
        data = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n"
            "connection: close\r\n\r\n".encode()
            + data
        )

    def refuse(self, status: int, **problem: object) -> None:
        """Answer with a problem document."""
        self.answer(problem, status, "application/problem+json")

    def open_stream(self, *more: str) -> None:
        """Begin an answer without an end, with more header lines."""
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", *more, "", ""]
        self.writer.write("\r\n".join(lines).encode())

    def send(self, text: str) -> None:
        """Go on with it."""
        self.writer.write(text.encode())

    async def client_left(self) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            await self.reader.read()

    reader: asyncio.StreamReader = field(kw_only=True)


Script = Callable[[Exchange], Awaitable[None] | None]


class FakeService:
    """The server; `script` is called for each request, and the connection is closed after it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[Request] = []
        self.script: Script = lambda exchange: exchange.answer({})
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def answers(self, value: object, status: int = 200) -> None:
        """Answer every request so from now on."""
        self.script = lambda exchange: exchange.answer(value, status)

    async def start(self) -> None:
        """Listen; where a dead service left its socket, too."""
        self.path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(self.path))
        # Not start_unix_server(): from Python 3.13 on it removes the path when it ends.
        self._server = await asyncio.start_server(self._serve, sock=listening)

    async def stop(self, *, leave_socket: bool = False) -> None:
        """Go away at once, like a service that is killed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not leave_socket:
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            request = await _request(reader)
            self.seen.append(request)
            waits = self.script(Exchange(request, writer, reader=reader))
            if waits is not None:
                await waits
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            pass  # killed, or the client has left
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.rstrip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    data = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, json.loads(data) if data else None)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[FakeService]:
    """A service that listens; it is stopped at the end."""
    service = FakeService(folder / "lm.sock")
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
