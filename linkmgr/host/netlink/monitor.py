"""Hears when any network device of this host changes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from typing import Self

_RTMGRP_LINK = 1  # linux/rtnetlink.h
_RTM_NEWLINK, _AF_BRIDGE = 16, 7
_START = struct.Struct("=IHHIIB")  # struct nlmsghdr, and the family of struct ifinfomsg


class NetDeviceChanges:
    """Wakes up after changes of network devices, all changes of a while at once.

    What has changed is not told: whoever wakes looks at what is now, so a message that the kernel
    dropped under load loses nothing. An async context manager; one waiter.

    :param debounce: seconds in which changes are gathered, counted from the first.
    """

    def __init__(self, debounce: float = 0.2) -> None:
        self._debounce = debounce
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

    async def __aexit__(self, *exc: object) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    async def wait(self) -> None:
        """Wait until something has changed since the last time that this returned."""
        await self._changed.wait()
        await asyncio.sleep(self._debounce)
        self._changed.clear()

    def _drain(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):  # then the loop has its turn
                try:
                    message = sock.recv(1 << 16)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # some were dropped; that is a change, too
                        raise
                    self._changed.set()
                else:
                    if not _is_bridge_port_notice(message):
                        self._changed.set()


def _is_bridge_port_notice(message: bytes) -> bool:
    """Whether it says no more than how a bridge sees its port.

    A bridge says so for each port whenever a timer of it ends. That a device became its port or
    went up is told in another message; only that it is its port no more is believed from here.
    """
    if len(message) < _START.size:
        return False
    length, kind, _, _, _, family = _START.unpack_from(message)
    return bool(kind == _RTM_NEWLINK and family == _AF_BRIDGE and length >= len(message))
