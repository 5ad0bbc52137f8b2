"""The hook as libvirt runs it, beside a service that does what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hook_copy import write_hook

#: What a service does with one connection.
Manner = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
XML = b"<domain type='kvm'>\n  <name>web1</name>\n</domain>\n"


@dataclass(frozen=True)
class Ran:
    """How a run of the hook ended."""

    status: int
    out: bytes
    err: str
    seconds: float


@dataclass
class HookLab:
    """The hook, its configuration, and what its service heard."""

    folder: Path
    heard: list[Any] = field(default_factory=list)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def socket(self) -> Path:
        return self.folder / "lm.sock"

    def hook(self, config: str | None = None, name: str = "hook") -> Path:
        """The hook with this configuration; without a file when it is ``None``."""
        path = self.folder / "linkmgr.toml"
        path.unlink(missing_ok=True)
        if config is not None:
            path.write_text(config)
        program = self.folder / "linkmgr"
        program.touch()
        return write_hook(self.folder / name, socket=self.socket, config=path, program=program)

    async def run(
        self,
        *words: str | bytes,
        config: str | None = None,
        xml: bytes = XML,
        before: Sequence[str] = (),
        name: str = "hook",
    ) -> Ran:
        """Run it, with the environment that libvirt gives."""
        begun = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *before, self.hook(config, name), *words,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        )  # fmt: skip
        async with asyncio.timeout(20):
            out, err = await process.communicate(xml)
        seconds = time.monotonic() - begun
        assert process.returncode is not None
        return Ran(process.returncode, out, err.decode(), seconds)

    @contextlib.asynccontextmanager
    async def service(self, manner: Manner, name: str = "lm.sock") -> AsyncIterator[None]:
        """Serve like this, on a socket of that name; what hangs at the end is let go."""
        path = self.folder / name
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await manner(reader, writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        server = await asyncio.start_unix_server(serve, path)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.close()
            path.unlink(missing_ok=True)

    async def hear(self, reader: asyncio.StreamReader) -> None:
        """Take in one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("POST /v1/libvirt/hook HTTP/1.1\r\n"), head
        length = next(
            int(line.split(":")[1])
            for line in head.split("\r\n")
            if line.lower().startswith("content-length")
        )
        self.heard.append(json.loads(await reader.readexactly(length)))
        self._heard.set()

    async def something_heard(self) -> None:
        """Wait until a request has come."""
        async with asyncio.timeout(5):
            await self._heard.wait()

    def answering(self, answer: bytes, after: float = 0.0) -> Manner:
        """A service that hears a request and gives this answer."""

        async def manner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.hear(reader)
            await asyncio.sleep(after)
            writer.write(answer)

        return manner


def http(body: object, status: str = "200 OK") -> bytes:
    """An answer, as the service writes it."""
    raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw


@contextlib.contextmanager
def full(path: Path) -> Any:
    """A listening socket that accepts nobody, where as many wait as may."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        while True:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(str(path))
            except BlockingIOError:
                break
        yield
