"""Hears when any network device of this host changes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from types import TracebackType
from typing import Self

_RTMGRP_LINK = 1  # linux/rtnetlink.h


class LinkChanges:
    """Wakes up after changes of network devices, all changes of a while at once.

    What has changed is not told: whoever wakes looks at what is now, so a message that the kernel
    dropped under load loses nothing. An async context manager; one waiter.

    :param pause: seconds in which changes are gathered, counted from the first.
    """

    def __init__(self, pause: float = 0.2) -> None:
        self._pause = pause
        self._changed = asyncio.Event()
        self._sock: socket.socket | None = None

    async def __aenter__(self) -> Self:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            sock.setblocking(False)
            sock.bind((0, _RTMGRP_LINK))
            asyncio.get_running_loop().add_reader(sock, self._drain, sock)
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    async def wait(self) -> None:
        """Wait until something has changed since the last time that this returned."""
        await self._changed.wait()
        await asyncio.sleep(self._pause)
        self._changed.clear()

    def _drain(self, sock: socket.socket) -> None:
        self._changed.set()
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):  # then the loop has its turn
                try:
                    sock.recv(1 << 16)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # some were dropped; that is a change, too
                        raise
