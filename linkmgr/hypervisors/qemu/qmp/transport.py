"""One QMP session, with the errors of linkmgr: the module that knows ``qemu.qmp``.

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
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, Runstate
from qemu.qmp.error import QMPError
from qemu.qmp.message import Message
from qemu.qmp.protocol import StateError

from linkmgr.aio.file_threads import NoFreeThread, run_in_file_thread
from linkmgr.aio.unix_sockets import UnixSocket
from linkmgr.errors import CommandFailed, MonitorGone, MonitorUnreachable
from linkmgr.hypervisors.qemu.qmp.admission import peer_credentials
from linkmgr.hypervisors.qemu.qmp.event_budget import (
    MESSAGES_PER_TURN,
    EventRateLimit,
    FloodError,
    MessageRateLimit,
)
from linkmgr.hypervisors.qemu.qmp.events import MonitorEvent
from linkmgr.hypervisors.qemu.qmp.inbound import (
    MAX_ANSWER_BYTES,
    MAX_ANSWER_ITEMS,
    MAX_MESSAGE_BYTES,
    MAX_MESSAGE_ITEMS,
    UNMETERED_ANSWER_BYTES,
    NotQmpError,
    check_shape,
    decode,
    event_of,
    is_unwanted,
)
from linkmgr.text.untrusted import printable

#: Seconds between two attempts at something that the kernel cannot take right now.
SEND_RETRY_INTERVAL_S = 0.01
#: Seconds between two attempts to connect to a monitor whose backlog is full. Each takes a thread:
#: 200 such monitors cost 2,000 threads a second, which take 0.2 s of CPU time.
BACKLOG_RETRY_INTERVAL_S = 0.1
#: Seconds that `QmpTransport.close` waits for its own tasks; local work only, so never reached.
CLOSE_TIMEOUT_S = 2.0
#: Bytes of a message that are worth a line in a debug log.
_MAX_LOGGED_BYTES = 500
#: Characters of the class of an error, of which QEMU has five.
MAX_ERROR_CLASS_CHARS = 40
#: Bytes that are taken from the socket at once.
_READ_BYTES = 64 << 10
#: A send buffer that is full, or too many descriptors on their way for this user: both pass.
_TRANSIENT_ERRNOS = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_GONE_HINT = "look whether QEMU still runs, and what the guest's NIC is on now"


class _Demote(logging.Filter):
    """Everything that the library says, at debug level: the same is raised to our caller."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


class _Client(QMPClient):
    """A client that measures what it is sent before it decodes it.

    The library decodes whatever comes, up to 10 MB, goes on to the next without a pause, and
    formats each message for its log and each wrong one for its error: a QEMU that was taken over
    stops the loop with a few of them. So the one method that reads a message is ours; a limit per
    message, a pause between two, and a log and errors that are formatted when they are shown would
    make that unnecessary.

    :param on_event: called with each event that somebody wants, in order.
    """

    def __init__(self, on_event: Callable[[MonitorEvent], None]) -> None:
        # One name for all, for a logger lives as long as the process.
        super().__init__("linkmgr", readbuflen=_READ_BYTES)
        if not any(isinstance(each, _Demote) for each in self.logger.filters):
            self.logger.addFilter(_Demote())
        self._unsent = b""
        self._on_event = on_event
        self.rate_limit = MessageRateLimit()
        self._owed = 0.0  # seconds in which nothing is read
        self.hung_up = asyncio.Event()  #: nothing more is to be read
        self._begun = bytearray()  # messages that have come, the last one in part
        self._looked = 0  # bytes of it that have no line end
        self._asked: list[str] = []  # the commands under way
        self._turn = 0

    @contextlib.contextmanager
    def asking(self, command: str) -> Iterator[None]:
        """While the command is under way, an answer to it may be as long as its kind can be."""
        self._asked.append(command)
        try:
            yield
        finally:
            self._asked.remove(command)

    async def _do_recv(self) -> Message:
        while True:
            await self._rest()
            line = await self._line()
            if is_unwanted(line):
                self._owed = self.rate_limit.take(len(line))
                continue
            said = decode(
                line,
                items=max([MAX_MESSAGE_ITEMS, *(MAX_ANSWER_ITEMS.get(c, 0) for c in self._asked)]),
            )
            if self._is_expected(said):
                if len(line) > self._free_bytes():
                    self._owed = self.rate_limit.take(len(line))
                return Message(said, eager=False)
            self._owed = self.rate_limit.take(len(line))
            if "event" in said and (event := event_of(said)) is not None:
                self._on_event(event)

    async def _rest(self) -> None:
        """Leave the loop to others: as long as the limit says, and every now and then anyway."""
        self._turn += 1
        if self._owed or self._turn >= MESSAGES_PER_TURN:
            self._turn, owed, self._owed = 0, self._owed, 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(owed):
                    await self.hung_up.wait()
        if self.hung_up.is_set():
            raise EOFError  # what is still to be read is nothing to anybody

    async def _line(self) -> bytes:
        """The next message, which is a line.

        :raise NotQmpError: it is too long, or ends in the middle.
        :raise EOFError: there is no other.
        """
        assert self._reader is not None
        while (end := self._begun.find(b"\n", self._looked)) < 0:
            self._looked = len(self._begun)
            self._check_length(self._looked)
            data = await self._reader.read(_READ_BYTES)
            if not data:
                if self._begun:
                    raise NotQmpError("a message that ends in the middle")
                raise EOFError
            self._begun += data
        self._check_length(end)
        line = bytes(self._begun[: end + 1])
        del self._begun[: end + 1]
        self._looked = 0
        return line

    def _check_length(self, length: int) -> None:
        limit = max([MAX_MESSAGE_BYTES, *(MAX_ANSWER_BYTES.get(each, 0) for each in self._asked)])
        if length > limit:
            raise NotQmpError(f"a message of more than {limit >> 10} KiB")

    def _free_bytes(self) -> int:
        """Bytes of an answer that cost nothing. The schema is asked for once."""
        return (
            MAX_ANSWER_BYTES["query-qmp-schema"]
            if "query-qmp-schema" in self._asked
            else UNMETERED_ANSWER_BYTES
        )

    def _is_expected(self, said: Mapping[str, Any]) -> bool:
        """Whether the library waits for this message.

        QEMU writes the answer to a command that it was executing when its client left to the
        next client, even before the greeting. The answer to our negotiation is an empty object
        without an id.

        :raise NotQmpError: it is neither an event nor an answer.
        """
        if "event" in said:
            return False
        if self.runstate is not Runstate.RUNNING:
            if not ("return" in said or "error" in said):
                return True  # a greeting, or what ends this
            to_us = self._greeting is not None and "id" not in said
            return to_us and said.get("return", {}) == {}
        check_shape(said)
        if "id" not in said and "error" in said:
            raise NotQmpError(f"it did not understand a command: {printable(said, 80)}")
        ident = said.get("id")
        return isinstance(ident, str) and ident in self._pending

    def _do_send(self, msg: Message) -> None:
        """Write what was queued together in one piece: each write wakes a QEMU that sleeps."""
        assert self._writer is not None
        self._unsent += bytes(msg)
        if self.runstate is not Runstate.RUNNING or self._outgoing.empty():
            data, self._unsent = self._unsent, b""
            self._writer.write(data)

    def _cb_outbound(self, msg: Message) -> Message:
        return self._logged("-->", msg)

    def _cb_inbound(self, msg: Message) -> Message:
        return self._logged("<--", msg)

    def _logged(self, arrow: str, msg: Message) -> Message:
        if self.logger.isEnabledFor(logging.DEBUG):
            shown = bytes(msg)[:_MAX_LOGGED_BYTES].decode(errors="replace")
            self.logger.debug("%s %s", arrow, printable(shown, _MAX_LOGGED_BYTES))
        return msg


class SendBusyError(Exception):
    """The kernel cannot take a descriptor right now; nothing was sent, try again."""


class QmpTransport:
    """A negotiated QMP session that owns its socket, its tasks and its ending.

    :param sock: connected, owned from here on.
    :param name: which monitor, for errors: ``of VM web1``, or its path.
    :param on_event: called with each event, in order; must not raise or block.
    :param on_closed: called once, when the session has ended.
    """

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        on_event: Callable[[MonitorEvent], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._sock = sock
        self.name = name
        self._on_closed = on_closed
        self._events = EventRateLimit(on_event)
        self._client = _Client(self._events)
        self._closed = asyncio.Event()
        self._reason: str | None = None
        self._closed_by_us = False
        self._watcher: asyncio.Task[None] | None = None
        peer = peer_credentials(sock)
        self.pid = peer.pid if peer else None

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
        self._watcher = asyncio.create_task(self._watch(), name=f"monitor {self.name}")

    @property
    def closed(self) -> bool:
        """Whether the session has ended."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Wait until the session has ended and everything of it is freed."""
        await self._closed.wait()

    def closed_error(self, what: str, *, sent: bool) -> MonitorGone:
        """Make the error for a command that the ending cut off."""
        done = "got no answer" if sent else "was not sent"
        return MonitorGone(
            f"{what} {done}: the monitor {self.name} is gone ({self._reason or 'it is ending'})",
            hint=_GONE_HINT,
            sent=sent,
        )

    def ensure_open(self, what: str) -> None:
        """Raise unless a command written now goes out.

        :raise MonitorGone: with `sent` false.
        """
        if self._client.runstate is not Runstate.RUNNING:
            raise self.closed_error(what, sent=False)

    async def execute(self, name: str, arguments: Mapping[str, object]) -> Any:
        """Send one command and wait for its answer, without a time limit.

        Calls that are started one after another are written in that order, back to back.

        :raise CommandFailed: QEMU's answer is an error.
        :raise MonitorGone: the session ended first. Everything of it is freed by then.
        """
        try:
            with self._client.asking(name):
                return await self._client.execute(name, dict(arguments) or None)
        except ExecuteError as err:
            raise CommandFailed(
                f"QEMU refused {name}: {printable(str(err))}",
                command=name,
                error_class=printable(err.error_class, MAX_ERROR_CLASS_CHARS),
            ) from None  # which holds all that QEMU said
        except StateError:
            sent = False
        except ExecInterruptedError:
            sent = True
        # The reason is known, and the descriptors are freed, when the watcher is through.
        await self._closed.wait()
        raise self.closed_error(name, sent=sent)

    def send_fd(self, name: str, fd: int) -> None:
        """Send a borrowed descriptor; only with nothing queued, for it overtakes what is.

        :param name: what it is for, for errors.
        :raise SendBusyError: nothing was sent, the kernel cannot take it now.
        :raise MonitorGone: the session has ended, or ends by this.
        """
        try:
            self._client.send_fd_scm(fd)
        except StateError:
            raise self.closed_error(name, sent=False) from None
        except OSError as err:
            if err.errno in _TRANSIENT_ERRNOS:
                raise SendBusyError from err
            self._reason = f"sending a descriptor failed: {err.strerror}"
            self._hang_up()
            raise self.closed_error(name, sent=False) from err

    async def close(self) -> None:
        """End the session. Idempotent, never raises, never waits for the peer."""
        if not self.closed:
            self._closed_by_us = True
            self._hang_up()
        if self._watcher:
            await asyncio.wait({self._watcher}, timeout=CLOSE_TIMEOUT_S)

    def _hang_up(self) -> None:
        # Shutting the socket down rather than asking the library to disconnect: that one first
        # flushes what is queued, which a stopped QEMU never reads. An end-of-file takes the
        # library's error path, which flushes nothing.
        self._client.hung_up.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

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
            self._closed.set()
            self._on_closed()

    async def _tear_down(self) -> Exception | None:
        """Free the library's tasks and the socket; return why the session ended."""
        self._hang_up()
        self._events.close()
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
                f"the monitor {self.name} sent no {missing} within {timeout:g} s", hint=busy
            )
        if isinstance(cause, EOFError | ConnectionError | AssertionError):
            when = "during the negotiation" if greeted else "before it sent a greeting"
            return MonitorUnreachable(
                f"the monitor {self.name} hung up {when}", hint="look whether QEMU still runs"
            )
        if isinstance(cause, QMPError | ValueError | RecursionError):
            return MonitorUnreachable(
                f"what answers as the monitor {self.name} does not speak QMP: {_said(cause)}",
                hint="name the socket of a monitor in control mode (-qmp, or -mon mode=control)",
            )
        return MonitorUnreachable(
            f"the monitor {self.name} cannot be used: {_said(cause)}",
            hint="look whether QEMU still runs",
        )


class MonitorFile(NamedTuple):
    """The very file that was connected to, whatever its path leads to by now."""

    owner: int
    device: int
    inode: int


async def connect_socket(
    path: str | Path, name: str, timeout: float, *, uid: int | None = None
) -> tuple[socket.socket, MonitorFile | None]:
    """Connect to the unix socket of a monitor, in a thread: its file system may never answer.

    Without /proc it is not known which file that was.

    :param timeout: seconds, for the file system and for a place in the backlog.
    :param uid: of the user who named the path; ``None`` for this process's own.
    :raise MonitorUnreachable: no socket, nobody listens, no permission, no place in time.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + timeout
    owner = os.geteuid() if uid is None else uid
    full: BlockingIOError | None = None
    while True:
        try:
            return await run_in_file_thread(
                owner,
                partial(_connect_once, path),
                timeout=max(deadline - now(), SEND_RETRY_INTERVAL_S),
                discard=lambda made: made[0].close(),
            )
        except BlockingIOError as err:
            full = err
        except (OSError, ValueError) as err:  # TimeoutError is an OSError
            if full is None or not isinstance(err, TimeoutError):
                raise _connect_error(err, path, name, timeout) from err
        if now() >= deadline:
            raise _connect_error(full, path, name, timeout) from full
        # Not in the thread: its user has few, and other monitors that may be free.
        await asyncio.sleep(min(BACKLOG_RETRY_INTERVAL_S, max(deadline - now(), 0)))


def _connect_once(path: str | Path) -> tuple[socket.socket, MonitorFile | None]:
    """Try once to connect as `connect_socket`. Waits for the file system.

    :raise BlockingIOError: the backlog is full.
    """
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        place, found = Path(f"/proc/self/fd/{file}"), None
        if place.exists():
            seen = os.fstat(file)
            found = MonitorFile(seen.st_uid, seen.st_dev, seen.st_ino)
        sock = UnixSocket.make()
        try:
            sock.connect(os.fspath(place if found else path))
        except BaseException:
            sock.close()
            raise
        return sock, found
    finally:
        os.close(file)


def file_timeout_error(err: TimeoutError, what: str, timeout: float) -> MonitorUnreachable:
    """Make the error for a monitor whose file could not be looked at in time."""
    if isinstance(err, NoFreeThread):
        return MonitorUnreachable(
            f"{what} was not looked at within {timeout:g} s: its user, or all users but root "
            "together, have as many files as may be at once on file systems that do not answer",
            hint="see whether their servers run (NFS, FUSE), and try again",
        )
    return MonitorUnreachable(
        f"the file system of {what} has not answered within {timeout:g} s",
        hint="see whether its server runs (NFS, FUSE), or have the socket elsewhere",
    )


def _connect_error(
    err: OSError | ValueError, path: str | Path, name: str, timeout: float
) -> MonitorUnreachable:
    named = name if str(path) in name else f"{name} ({path})"
    start = "look whether the guest runs, and has -qmp unix:PATH,server=on,wait=off or the like"
    match err:
        case TimeoutError():
            return file_timeout_error(err, f"the monitor {named}", timeout)
        case BlockingIOError():
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
            return err.strerror or printable(str(err))
        case FloodError():
            return str(err)
        case _:
            return f"it sent what is not QMP: {_said(err)}"


def _said(err: BaseException) -> str:
    return printable(str(err) or type(err).__name__)
