"""What systemd is told: ready, reloading, stopping, alive (sd_notify(3)), and fds for its store."""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping, Sequence
from typing import Self

from linkmgr.host import Fd

log = logging.getLogger(__name__)

_MAX_QUEUED = 256  # messages; systemd takes them within milliseconds, or is in trouble itself

#: Seconds that a start may take while the event loop turns: a thousand guests of which a few do not
#: answer take two minutes.
MAX_START_S = 600.0
_EXTEND_INTERVAL_S = 10.0
_EXTEND_S = 30.0  # from then on; TimeoutStartSec= counts as long as it is more


class SystemdNotifier:
    """Sends messages to the service manager, or nowhere when there is none.

    Nothing here blocks or raises: no cable may wait for systemd. A message for which its queue has
    no room is kept, and sent before the next one; `watchdog_loop` makes sure that there is one.

    :param address: the value of NOTIFY_SOCKET: a path, or ``@`` and an abstract name.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = _address(address)
        self._waiting: deque[tuple[bytes, list[Fd]]] = deque()
        self._socket: socket.socket | None = None
        if self._address is not None:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """Make the one that the environment names, and take the name out: no child may use it."""
        return cls(environ.pop("NOTIFY_SOCKET", None))

    @property
    def connected(self) -> bool:
        """Whether there is a service manager to tell."""
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """Say that the service answers; also at the end of a reload."""
        self.send("READY=1", *_status(status))

    def reloading(self, status: str = "") -> None:
        """Say that the configuration is being read anew; `ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000  # Type=notify-reload wants it
        self.send("RELOADING=1", f"MONOTONIC_USEC={now}", *_status(status))

    def stopping(self, status: str = "") -> None:
        """Say that the service is about to end."""
        self.send("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self.send(*_status(text))

    def watchdog(self) -> None:
        """Say that the event loop turns."""
        self.send("WATCHDOG=1")

    def send(self, *lines: str, fds: Sequence[int] = ()) -> None:
        """Send assignments, one a line, with `fds`, which stay the caller's."""
        if self._socket is None:
            return
        message = "\n".join(lines).encode()
        self._flush()
        if self._waiting or not self._sent(message, fds):
            self._wait(message, fds)

    def close(self) -> None:
        """Send what waits, if it can be; close everything. Repeats freely."""
        if self._socket is None:
            return
        self._flush()
        while self._waiting:
            _discard(self._waiting.popleft()[1])
        self._socket.close()
        self._socket = None

    def _flush(self) -> None:
        while self._waiting:
            message, fds = self._waiting[0]
            if not self._sent(message, [fd.number for fd in fds]):
                return
            self._waiting.popleft()
            _discard(fds)

    def _sent(self, message: bytes, fds: Sequence[int]) -> bool:
        """Send one message; false when there is no room for it now."""
        assert self._socket is not None
        assert self._address is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([message], rights, socket.MSG_NOSIGNAL, self._address)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("cannot tell systemd %s: %s", message.decode().split("\n"), error)
        return True

    def _wait(self, message: bytes, fds: Sequence[int]) -> None:
        if len(self._waiting) >= _MAX_QUEUED:
            log.warning("systemd takes no messages; not told: %s", message.decode().split("\n"))
            return
        copies: list[Fd] = []
        try:
            copies += [Fd(os.dup(fd)) for fd in fds]
        except OSError as error:
            _discard(copies)
            log.warning("cannot keep an fd for systemd until it takes messages: %s", error)
            return
        self._waiting.append((message, copies))


def watchdog_interval(environ: MutableMapping[str, str] = os.environ) -> float | None:
    """Return how often systemd wants to hear of us: half of WATCHDOG_USEC, in seconds.

    ``None`` when it does not, or when it wants to hear of another process. The variables are taken
    out of the environment.
    """
    usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 2_000_000


async def watchdog_loop(notifier: SystemdNotifier, seconds: float) -> None:
    """Tell systemd every `seconds` that the event loop turns, until cancelled."""
    while True:
        notifier.watchdog()
        await asyncio.sleep(seconds)


async def extend_start_loop(notifier: SystemdNotifier) -> None:
    """Ask for more time while the service starts, until cancelled or `MAX_START_S` are over."""
    for _ in range(int(MAX_START_S / _EXTEND_INTERVAL_S)):
        await asyncio.sleep(_EXTEND_INTERVAL_S)
        notifier.send(f"EXTEND_TIMEOUT_USEC={int(_EXTEND_S * 1_000_000)}")


def _address(text: str | None) -> str | bytes | None:
    if not text:
        return None
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    if text.startswith("/"):
        return text
    log.warning("NOTIFY_SOCKET=%s is neither a path nor an abstract socket: not used", text)
    return None


def _status(text: str) -> list[str]:
    return [f"STATUS={' '.join(text.split())}"] if text else []


def _discard(fds: Sequence[Fd]) -> None:
    for fd in fds:
        fd.close()
