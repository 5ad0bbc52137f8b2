"""A scripted QEMU monitor on one end of a socketpair.

Nothing is answered unless the test says so: either step by step (`next`, then `answer` or
`refuse`), or by `serve`, which plays a QEMU that keeps named descriptors. `timeline` has everything
that arrived in the order of its bytes: ``"fd"`` for a descriptor, else the command's name and, for
``getfd`` and ``closefd``, the name of the descriptor.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from linkmgr.hypervisors.qemu.qmp import Monitor

GREETING: dict[str, Any] = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": ["oob"]}
}


@dataclass(frozen=True)
class Received:
    """A command as it came in."""

    name: str
    arguments: dict[str, Any]
    id: object

    def __str__(self) -> str:
        return " ".join([self.name, *filter(None, [self.arguments.get("fdname")])])


Script = Callable[[Received], object]


class Refusal(Exception):
    """What a `serve` script raises to answer with an error."""


class FakeMonitor:
    """QEMU's end of a monitor's socket, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.timeline: list[str] = []
        self.named: dict[str, int] = {}  # like QEMU's, filled by `serve`
        self.pending_fds: list[int] = []  # arrived, not yet given a name
        self._commands: asyncio.Queue[Received] = asyncio.Queue()
        self._text = ""
        self._server: asyncio.Task[None] | None = None
        self.resume()

    @classmethod
    def pair(cls) -> tuple[socket.socket, Self]:
        """Return the client's end, for the caller to own, and the peer."""
        ours, theirs = socket.socketpair()
        return theirs, cls(ours)

    def stop(self) -> None:
        """Read no more, like a QEMU under SIGSTOP."""
        asyncio.get_running_loop().remove_reader(self.sock)

    def resume(self) -> None:
        """Read on."""
        asyncio.get_running_loop().add_reader(self.sock, self._readable)

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 65536, 16)
        except OSError:
            data, fds = b"", []
        if not data:
            self.stop()
            return
        self._text = (self._text + data.decode()).lstrip()
        while self._text:
            try:
                message, end = json.JSONDecoder().raw_decode(self._text)
            except ValueError:
                break  # the rest is on its way
            self._text = self._text[end:].lstrip()
            command = Received(message["execute"], message.get("arguments", {}), message.get("id"))
            self.timeline.append(str(command))
            self._commands.put_nowait(command)
        # A read ends with the bytes that carry descriptors: what it has before them came before.
        for fd in fds:
            self.timeline.append("fd")
            self.pending_fds.append(fd)

    async def next(self, expected: str | None = None) -> Received:
        """Wait for the next command."""
        async with asyncio.timeout(2):
            command = await self._commands.get()
        assert expected in (None, str(command)), f"{command}, not {expected}"
        return command

    async def quiet(self, seconds: float = 0.05) -> None:
        """Make sure that no command is here or comes within a while."""
        await asyncio.sleep(seconds)
        assert self._commands.empty(), self.timeline

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def send(self, message: object) -> None:
        """Send one message."""
        self.raw(json.dumps(message).encode() + b"\r\n")

    def answer(self, command: Received, value: object = None) -> None:
        """Answer with success."""
        self._reply(command, {"return": {} if value is None else value})

    def refuse(self, command: Received, text: str = "no", kind: str = "GenericError") -> None:
        """Answer with an error."""
        self._reply(command, {"error": {"class": kind, "desc": text}})

    def _reply(self, command: Received, reply: dict[str, object]) -> None:
        # As QEMU does it: who gave no id gets none.
        self.send(reply if command.id is None else {**reply, "id": command.id})

    def event(self, name: str, /, **data: object) -> None:
        """Send an event."""
        self.send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}})

    async def handshake(self) -> None:
        """Greet and take the negotiation."""
        self.send(GREETING)
        self.answer(await self.next("qmp_capabilities"))
        self.timeline.clear()

    def serve(self, script: Script | None = None) -> None:
        """Answer everything from here on.

        :param script: gives the return value of a command, ``None`` for the default, or raises
            `Refusal`.
        """
        self._server = asyncio.create_task(self._serve(script or (lambda _: None)))

    async def _serve(self, script: Script) -> None:
        while True:
            command = await self._commands.get()
            try:
                value = script(command)
                self.answer(command, self._default(command) if value is None else value)
            except Refusal as err:
                self.refuse(command, str(err))
            except OSError:
                return

    def _default(self, command: Received) -> object:
        name = command.arguments.get("fdname", "")
        if command.name == "getfd":
            if not self.pending_fds:
                raise Refusal("No file descriptor supplied via SCM_RIGHTS")
            self.named[name] = self.pending_fds.pop(0)
        if command.name == "closefd":
            if name not in self.named:
                raise Refusal(f"File descriptor named '{name}' not found")
            os.close(self.named.pop(name))
        return {}

    def hang_up(self) -> None:
        """Close the connection."""
        self.stop()
        self.sock.close()

    async def close(self) -> None:
        """Free everything."""
        if self._server:
            self._server.cancel()
            await asyncio.gather(self._server, return_exceptions=True)
        if self.sock.fileno() >= 0:
            self.hang_up()
        for fd in (*self.pending_fds, *self.named.values()):
            with suppress(OSError):
                os.close(fd)


@asynccontextmanager
async def connected(timeout: float = 5.0) -> AsyncIterator[tuple[Monitor, FakeMonitor]]:
    """A monitor and the peer that it has negotiated with."""
    sock, peer = FakeMonitor.pair()
    shaking = asyncio.create_task(peer.handshake())
    monitor = await Monitor.from_socket(sock, name="web1", timeout=timeout)
    await shaking
    try:
        yield monitor, peer
    finally:
        await monitor.close()
        await peer.close()


def open_fds() -> dict[int, str]:
    """This process's descriptors and what they are."""
    found = {}
    for path in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # the one of the listing itself
            found[int(path.name)] = str(path.readlink())
    return found


@contextmanager
def opened(path: str = "/dev/null") -> Iterator[int]:
    """A descriptor to lend to a call; the block may close it early."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        with suppress(OSError):
            os.close(fd)


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """Fail a test that leaves a task or a descriptor. Import it to use it."""
    fds, tasks = open_fds(), asyncio.all_tasks()
    yield
    for _ in range(20):  # transports close themselves one loop iteration later
        left = asyncio.all_tasks() - tasks - {asyncio.current_task()}
        if open_fds() == fds and not left:
            return
        await asyncio.sleep(0.01)
    assert open_fds() == fds, open_fds().items() ^ fds.items()
    assert not left
