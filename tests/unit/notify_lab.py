"""The service manager's end of the socket that systemd is told over, and a notifier on ours."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkmgr.service.systemd.notify import SystemdNotifier


class FakeServiceManager:
    """systemd, as far as it listens."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(self.path)

    def heard(self) -> list[str]:
        """The messages so far; fds that came with them are closed."""
        return [message for message, _ in self.received()]

    def received(self) -> list[tuple[str, int]]:
        """The messages so far, and how many fds came with each."""
        found: list[tuple[str, int]] = []
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(4 * 16))
            except BlockingIOError:
                return found
            passed = array.array("i")
            for _, _, rights in ancillary:
                passed.frombytes(rights)
            for fd in passed:
                os.close(fd)
            found.append((data.decode(), len(passed)))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[FakeServiceManager]:
    made = FakeServiceManager(tmp_path / "notify")
    yield made
    made.socket.close()


@pytest.fixture
def notifier(manager: FakeServiceManager) -> Iterator[SystemdNotifier]:
    made = SystemdNotifier(manager.path)
    yield made
    made.close()
