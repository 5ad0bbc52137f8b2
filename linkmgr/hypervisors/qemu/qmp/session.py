"""What a `linkmgr.hypervisors.qemu.qmp.monitor.Monitor` needs of the session below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from linkmgr.errors import MonitorGone
from linkmgr.hypervisors.qemu.qmp.events import MonitorEvent


class Session(Protocol):
    """A way to one QEMU: its socket (`QmpTransport`), or through libvirt (`PassthroughSession`)."""

    pid: int | None  #: of QEMU, or of the process that made its socket; ``None`` if unknown

    async def open(self, timeout: float, deadline: float) -> None:
        """Begin; everything is freed when this fails.

        :param timeout: seconds that the caller had, for the error.
        :param deadline: when they are over, in the loop's time.
        :raise MonitorUnreachable: QEMU cannot be reached this way.
        """

    @property
    def closed(self) -> bool:
        """Whether the session has ended."""

    async def wait_closed(self) -> None:
        """Wait until the session has ended and everything of it is freed."""

    def closed_error(self, what: str, *, sent: bool) -> MonitorGone:
        """Make the error for a command that the ending cut off."""

    def ensure_open(self, what: str) -> None:
        """Raise unless a command sent now goes out.

        :raise MonitorGone: with `sent` false.
        """

    async def execute(self, name: str, arguments: Mapping[str, object]) -> Any:
        """Send one command and wait for its answer, without a time limit.

        Calls that are started one after another are sent in that order.

        :raise CommandFailed: QEMU's answer is an error.
        :raise MonitorGone: the session ended first.
        """

    def send_fd(self, name: str, fd: int) -> None:
        """Have a borrowed descriptor go with the next command, which is its ``getfd``.

        :raise SendBusyError: nothing was sent, it cannot be taken now.
        :raise MonitorGone: the session has ended, or ends by this.
        """

    async def close(self) -> None:
        """End the session. Idempotent, never raises, never waits for QEMU."""


#: Makes a session that is not open yet; takes the callbacks for events and for its end.
SessionFactory = Callable[[Callable[[MonitorEvent], None], Callable[[], None]], Session]
