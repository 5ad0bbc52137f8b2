"""Stands between linkmgr and a real QEMU's monitor; cuts or holds it up at a chosen command."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Self


class Cut(StrEnum):
    """Where in the life of a command the connection ends or stands still."""

    BEFORE = "before"  #: QEMU has not got the command
    AFTER = "after"  #: QEMU has executed it, but its answer is on the way


class _EndedError(Exception):
    """One side hung up, or the connection is to be cut."""


class MonitorProxy:
    """Passes everything on, descriptors too, command by command. ``async with`` owns it.

    It serves one client at a time, and each gets a connection of its own to QEMU.

    :param path: of the socket to listen on.
    :param target: QEMU's own monitor socket.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._target = target
        self.commands: list[str] = []  #: names, since `watch`, `cut` or `hold`
        self._cut: tuple[int, Cut] | None = None
        self._holds = False
        self._go_on = asyncio.Event()
        self._server: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None

    def watch(self) -> None:
        """Begin a new list of commands, and pass all of them on."""
        self.commands.clear()
        self._cut = None
        self.go_on()

    def cut(self, number: int, where: Cut) -> None:
        """Cut the connection once, at the command with this number, 0 for the next one."""
        self.commands.clear()
        self._cut, self._holds = (number, where), False

    def hold(self, number: int, where: Cut) -> None:
        """Let nothing pass from the command with this number on, until `go_on`."""
        self.commands.clear()
        self._cut, self._holds = (number, where), True
        self._go_on.clear()

    def go_on(self) -> None:
        """Let everything pass again, what was held up first."""
        self._go_on.set()

    async def stop(self) -> None:
        """End the connection, or wait for `go_on`; for a session at the chosen command.

        :raise _EndedError: the former.
        """
        if not self._holds:
            raise _EndedError
        await self._go_on.wait()

    @property
    def armed(self) -> bool:
        """Whether a cut or hold is still to come."""
        return self._cut is not None

    async def __aenter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen(5)
        self._server = asyncio.create_task(self._serve(self._listener))
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        assert self._listener is not None
        self._server.cancel()
        await asyncio.gather(self._server, return_exceptions=True)
        self._listener.close()
        self.path.unlink()

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            with client, socket.socket(socket.AF_UNIX) as qemu:
                qemu.setblocking(False)
                try:
                    await loop.sock_connect(qemu, os.fspath(self._target))
                    async with asyncio.TaskGroup() as both:
                        session = _Session(self, client, qemu)
                        both.create_task(session.upward())
                        both.create_task(session.downward())
                except* (_EndedError, OSError):
                    pass

    def meets(self, name: str) -> Cut | None:
        """Note a command; say whether the connection is to end or stand still there."""
        number = len(self.commands)
        self.commands.append(name)
        if self._cut is None or self._cut[0] != number:
            return None
        where, self._cut = self._cut[1], None
        return where


class _Session:
    """One client's connection."""

    def __init__(self, proxy: MonitorProxy, client: socket.socket, qemu: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._qemu = qemu
        self._unanswered: deque[Cut | None] = deque()
        self._news = asyncio.Event()

    async def upward(self) -> None:
        """From linkmgr to QEMU, one command at a time."""
        text = ""
        while True:
            data, fds = await self._receive()
            text += data.decode()
            if fds:
                # linkmgr sends a descriptor with a blank, when nothing else is on its way.
                socket.send_fds(self._qemu, [b" "], fds)
                for fd in fds:
                    os.close(fd)
            commands = list(_messages(text))
            text = text[commands[-1][1] :] if commands else text
            for command, _ in commands:
                await self._pass_on(command)

    async def downward(self) -> None:
        """From QEMU to linkmgr, one message at a time."""
        loop = asyncio.get_running_loop()
        buffer = b""
        while True:
            data = await loop.sock_recv(self._qemu, 1 << 20)
            if not data:
                raise _EndedError
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                # QEMU answers in order; besides answers there are the greeting and events.
                answer = not {"return", "error"}.isdisjoint(json.loads(line))
                # One that nobody waits for is to the client before: it goes to whoever is here.
                ours = answer and bool(self._unanswered)
                if ours and self._unanswered[0] is Cut.AFTER:
                    await self._proxy.stop()
                await loop.sock_sendall(self._client, line + b"\n")
                if ours:
                    self._unanswered.popleft()
                    self._news.set()

    async def _pass_on(self, command: dict[str, Any]) -> None:
        where = self._proxy.meets(command["execute"])
        if where is Cut.BEFORE:
            await self._all_answered()
            await self._proxy.stop()
        self._unanswered.append(where)
        await asyncio.get_running_loop().sock_sendall(self._qemu, json.dumps(command).encode())

    async def _all_answered(self) -> None:
        while self._unanswered:
            self._news.clear()
            await self._news.wait()

    async def _receive(self) -> tuple[bytes, list[int]]:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._client, 1 << 16, 16)
            except BlockingIOError:
                readable = loop.create_future()
                loop.add_reader(self._client, readable.set_result, None)
                try:
                    await readable
                finally:
                    loop.remove_reader(self._client)
                continue
            if not data:
                raise _EndedError
            return data, fds


def _messages(text: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Read the whole messages at the beginning of `text`, each with where it ends."""
    at = 0
    while True:
        at += len(text[at:]) - len(text[at:].lstrip())
        try:
            message, at = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            return
        yield message, at
