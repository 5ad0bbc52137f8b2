"""One QMP session, with the errors of linkmgr: the only module that knows ``qemu.qmp``.

``qemu.qmp`` does the greeting, the negotiation and the matching of replies to commands. What it
leaves to its user is here: a raw asyncio or protocol error from anywhere becomes one ending of the
connection with one reason, everything is torn down without being asked, and tearing down never
waits for a peer that has stopped reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, Runstate
from qemu.qmp.error import ProtocolError, QMPError
from qemu.qmp.message import Message
from qemu.qmp.protocol import StateError

from linkmgr.errors import CommandFailed, MonitorGone, MonitorUnreachable
from linkmgr.qmp.admission import listener_of
from linkmgr.qmp.events import MonitorEvent
from linkmgr.unix_sockets import UnixSocket

#: Seconds between two attempts at something that the kernel cannot take right now.
RETRY_INTERVAL = 0.01
#: Seconds that `Connection.close` waits for its own tasks; local work only, so never reached.
CLOSE_LIMIT = 2.0
#: Bytes of a message that are worth a line in a debug log.
_LOGGED = 500
#: A send buffer that is full, or too many descriptors on their way for this user: both pass.
_PASSING = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_GONE_HINT = "look whether QEMU still runs, and what the guest's NIC is on now"


class _Demote(logging.Filter):
    """Everything that the library says, at debug level: the same is raised to our caller."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


class _Client(QMPClient):
    """A client whose log costs nothing while nobody reads it.

    The library formats every message for its log, 1.3 MB of schema included, whether it is logged
    or not: about a second with the loop at a standstill.
    """

    def __init__(self) -> None:
        super().__init__("linkmgr")  # one name for all: a logger lives as long as the process
        if not any(isinstance(each, _Demote) for each in self.logger.filters):
            self.logger.addFilter(_Demote())
        self._unsent = b""

    async def _recv(self) -> Message:
        while True:
            msg = await super()._recv()
            if not self._is_stale(msg):
                return msg

    def _do_send(self, msg: Message) -> None:
        """Write what was queued together in one piece: each write wakes a QEMU that sleeps."""
        assert self._writer is not None
        self._unsent += bytes(msg)
        if self.runstate is not Runstate.RUNNING or self._outgoing.empty():
            data, self._unsent = self._unsent, b""
            self._writer.write(data)

    def _is_stale(self, msg: Message) -> bool:
        """Whether it is an answer to the client before us.

        QEMU writes the answer to a command that it was executing when its client left to whoever
        is connected by then, be it before its greeting. The answer to our negotiation is an empty
        object without an id.
        """
        if self.runstate is Runstate.RUNNING or not ("return" in msg or "error" in msg):
            return False
        return self._greeting is None or "id" in msg or msg.get("return", {}) != {}

    def _cb_outbound(self, msg: Message) -> Message:
        return self._logged("-->", msg)

    def _cb_inbound(self, msg: Message) -> Message:
        return self._logged("<--", msg)

    def _logged(self, arrow: str, msg: Message) -> Message:
        if self.logger.isEnabledFor(logging.DEBUG):
            self.logger.debug("%s %s", arrow, bytes(msg)[:_LOGGED])
        return msg


class SendBusyError(Exception):
    """The kernel cannot take a descriptor right now; nothing was sent, try again."""


class Connection:
    """A negotiated QMP session that owns its socket, its tasks and its ending.

    :param sock: connected, owned from here on.
    :param who: which monitor, for errors: ``of VM web1``, or its path.
    :param on_event: called with each event, in order; must not raise or block.
    :param on_gone: called once, when the session has ended.
    """

    def __init__(
        self,
        sock: socket.socket,
        who: str,
        on_event: Callable[[MonitorEvent], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._sock = sock
        self.who = who
        self._on_event = on_event
        self._on_gone = on_gone
        self._client = _Client()
        # The library's own listener keeps every event for ever and cannot be removed; a filter that
        # never accepts keeps it empty and is handed every event.
        self._client.events.event_filter = self._take_event
        self._gone = asyncio.Event()
        self._reason: str | None = None
        self._closed_by_us = False
        self._watcher: asyncio.Task[None] | None = None
        listener = listener_of(sock)
        self.pid = listener.pid if listener else None

    async def open(self, timeout: float, deadline: float) -> None:
        """Greet and negotiate; everything is freed when this fails.

        :param timeout: seconds that the caller had, for the error.
        :param deadline: when they are over, in the loop's time.
        :raise MonitorUnreachable: no greeting in time, not QMP, or the peer hung up.
        """
        try:
            self._sock.setblocking(False)
            async with asyncio.timeout_at(deadline):
                await self._client.connect(self._sock)
        except BaseException as err:
            await asyncio.shield(asyncio.create_task(self._tear_down()))
            if isinstance(err, Exception):
                raise self._unreachable(err, timeout) from err
            raise
        self._watcher = asyncio.create_task(self._watch(), name=f"monitor {self.who}")

    @property
    def gone(self) -> bool:
        """Whether the session has ended."""
        return self._gone.is_set()

    async def wait_gone(self) -> None:
        """Wait until the session has ended and everything of it is freed."""
        await self._gone.wait()

    def gone_error(self, what: str, *, sent: bool) -> MonitorGone:
        """Make the error for a command that the ending cut off."""
        done = "got no answer" if sent else "was not sent"
        return MonitorGone(
            f"{what} {done}: the monitor {self.who} is gone ({self._reason or 'it is ending'})",
            hint=_GONE_HINT,
            sent=sent,
        )

    def check(self, what: str) -> None:
        """Raise unless a command written now goes out.

        :raise MonitorGone: with `sent` false.
        """
        if self._client.runstate is not Runstate.RUNNING:
            raise self.gone_error(what, sent=False)

    async def ask(self, name: str, arguments: Mapping[str, object]) -> Any:
        """Send one command and wait for its answer, without a time limit.

        Calls that are started one after another are written in that order, back to back.

        :raise CommandFailed: QEMU's answer is an error.
        :raise MonitorGone: the session ended first. Everything of it is freed by then.
        """
        try:
            return await self._client.execute(name, dict(arguments) or None)
        except ExecuteError as err:
            raise CommandFailed(
                f"QEMU refused {name}: {err}", command=name, error_class=err.error_class
            ) from err
        except StateError:
            sent = False
        except ExecInterruptedError:
            sent = True
        except ProtocolError as err:
            # An answer that is no answer: nothing that follows can be trusted.
            sent = True
            self._reason = f"it sent what is not QMP: {_one_line(err)}"
            self._hang_up()
        # The reason is known, and the descriptors are freed, when the watcher is through.
        await self._gone.wait()
        raise self.gone_error(name, sent=sent)

    def send_fd(self, name: str, fd: int) -> None:
        """Send a borrowed descriptor; only with nothing queued, for it overtakes what is.

        :param name: what it is for, for errors.
        :raise SendBusyError: nothing was sent, the kernel cannot take it now.
        :raise MonitorGone: the session has ended, or ends by this.
        """
        try:
            self._client.send_fd_scm(fd)
        except StateError:
            raise self.gone_error(name, sent=False) from None
        except OSError as err:
            if err.errno in _PASSING:
                raise SendBusyError from err
            self._reason = f"sending a descriptor failed: {err.strerror}"
            self._hang_up()
            raise self.gone_error(name, sent=False) from err

    async def close(self) -> None:
        """End the session. Idempotent, never raises, never waits for the peer."""
        if not self.gone:
            self._closed_by_us = True
            self._hang_up()
        if self._watcher:
            await asyncio.wait({self._watcher}, timeout=CLOSE_LIMIT)

    def _hang_up(self) -> None:
        # Shutting the socket down rather than asking the library to disconnect: that one first
        # flushes what is queued, which a stopped QEMU never reads. An end-of-file takes the
        # library's error path, which flushes nothing.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _take_event(self, message: Message) -> bool:
        name, data = message["event"], message.get("data", {})
        if not isinstance(name, str) or not isinstance(data, dict):
            raise ProtocolError(f"malformed event {str(dict(message))[:_LOGGED]}")
        self._on_event(MonitorEvent(name, data))
        return False

    async def _watch(self) -> None:
        """Wait for the ending, whoever caused it, and clean up after it."""
        try:
            while self._client.runstate is Runstate.RUNNING:
                await self._client.runstate_changed()
        finally:
            error = await self._tear_down()
            if self._closed_by_us:
                self._reason = "linkmgr closed it"
            else:
                self._reason = self._reason or _reason(error)
            self._gone.set()
            self._on_gone()

    async def _tear_down(self) -> Exception | None:
        """Free the library's tasks and the socket; return why the session ended."""
        self._hang_up()
        try:
            await self._client.disconnect()
        except Exception as err:  # noqa: BLE001 - it re-raises whatever ended its tasks
            return err
        finally:
            self._sock.close()
        return None

    def _unreachable(self, err: Exception, timeout: float) -> MonitorUnreachable:
        cause = err.exc if isinstance(err, ConnectError) else err
        greeted = self._client.greeting is not None
        busy = (
            "a monitor serves one client at a time: end the other client (libvirt, a shell), "
            "or look whether QEMU is stopped"
        )
        if isinstance(cause, TimeoutError):
            missing = "answer to the negotiation" if greeted else "greeting"
            return MonitorUnreachable(
                f"the monitor {self.who} sent no {missing} within {timeout:g} s", hint=busy
            )
        if isinstance(cause, EOFError | ConnectionError | AssertionError):
            when = "during the negotiation" if greeted else "before it sent a greeting"
            return MonitorUnreachable(
                f"the monitor {self.who} hung up {when}", hint="look whether QEMU still runs"
            )
        if isinstance(cause, QMPError | ValueError | RecursionError):
            return MonitorUnreachable(
                f"what answers as the monitor {self.who} does not speak QMP: {_one_line(cause)}",
                hint="name the socket of a monitor in control mode (-qmp, or -mon mode=control)",
            )
        return MonitorUnreachable(
            f"the monitor {self.who} cannot be used: {_one_line(cause)}",
            hint="look whether QEMU still runs",
        )


async def dial(path: str | Path, who: str, timeout: float) -> socket.socket:
    """Connect to the unix socket of a monitor.

    Not asyncio's own connect: a full backlog is EAGAIN on a unix socket, and asyncio takes that for
    a connection that is about to be made.

    :param timeout: seconds to wait for a place in the backlog.
    :raise MonitorUnreachable: no socket, nobody listens, no permission, no place in time.
    """
    sock: socket.socket | None = None
    try:
        sock = UnixSocket.make()
        async with asyncio.timeout(timeout):
            while True:
                try:
                    sock.connect(os.fspath(path))
                    return sock
                except BlockingIOError:
                    await asyncio.sleep(RETRY_INTERVAL)
    except BaseException as err:
        if sock is not None:
            sock.close()
        if isinstance(err, OSError | ValueError):  # TimeoutError is an OSError
            raise _no_dial(err, path, who, timeout) from err
        raise


def _no_dial(
    err: OSError | ValueError, path: str | Path, who: str, timeout: float
) -> MonitorUnreachable:
    named = who if str(path) in who else f"{who} ({path})"
    start = "look whether the guest runs, and has -qmp unix:PATH,server=on,wait=off or the like"
    match err:
        case TimeoutError():
            return MonitorUnreachable(
                f"the monitor {named} took no connection within {timeout:g} s: others wait for it",
                hint="a monitor serves one client at a time: end the other clients",
            )
        case FileNotFoundError():
            return MonitorUnreachable(f"there is no monitor socket {named}", hint=start)
        case ConnectionRefusedError():
            return MonitorUnreachable(
                f"nobody listens at the monitor socket {named}",
                hint="the QEMU that made it is gone, or it is no socket: start the guest",
            )
        case PermissionError():
            return MonitorUnreachable(
                f"no permission to connect to the monitor socket {named}",
                hint="run linkmgr as a user who may write to the socket and enter its directory",
            )
        case _:
            why = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
            return MonitorUnreachable(
                f"cannot connect to the monitor socket {named}: {why}",
                hint="a socket's path has at most 107 bytes and names a stream socket",
            )


def _reason(err: Exception | None) -> str:
    match err:
        case None | EOFError():
            return "QEMU closed it"
        case OSError():
            return err.strerror or str(err)
        case _:
            return f"it sent what is not QMP: {_one_line(err)}"


def _one_line(err: BaseException) -> str:
    text = " ".join(str(err).split()) or type(err).__name__
    return text if len(text) <= 200 else text[:197] + "..."
