"""A QEMU monitor: one call runs a command together with its file descriptors.

Three rules, and the reasons (QMP: docs/interop/qmp-spec, SCM_RIGHTS: unix(7)):

- One call at a time. A descriptor is written past the library's queue, and QEMU keeps only the
  last one that it received, so a descriptor and its ``getfd`` need the connection for themselves.
- The work is a task of its own. QEMU executes what it has read, whether the caller is still there
  or not; the task stays until the answer, and holds the connection for as long.
- What was not sent when its caller left is never sent. So ``sent=False`` in an error, and only
  that, means that nothing was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

from linkmgr.errors import BadRequest, CommandFailed, MonitorError, MonitorGone, MonitorTimeout
from linkmgr.hypervisors.qemu.qmp.admission import Admission, peer_credentials
from linkmgr.hypervisors.qemu.qmp.events import (
    DEFAULT_QUEUE_LENGTH,
    EventBroadcast,
    MonitorEvent,
    MonitorEvents,
)
from linkmgr.hypervisors.qemu.qmp.session import Session, SessionFactory
from linkmgr.hypervisors.qemu.qmp.transport import (
    CLOSE_TIMEOUT_S,
    SEND_RETRY_INTERVAL_S,
    MonitorFile,
    QmpTransport,
    SendBusyError,
    connect_socket,
)

__all__ = ["Monitor", "QmpCommand", "MonitorEvent"]  # noqa: RUF022 - most important first

T = TypeVar("T")

#: Seconds that a call waits when nobody says otherwise.
DEFAULT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class QmpCommand:
    """A QMP command and its arguments."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


class _Call:
    """What a caller and the task that works for it tell each other."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.wanted = True  # the caller still waits
        self.sent = False  # the command itself was handed to the connection


class _CallerLeftError(Exception):
    """The caller left before the command was sent; seen by nobody."""


class Monitor:
    """A connection to one QEMU. Use it as a context, or call `close`.

    Every call can raise `MonitorGone` (the connection ended) and `MonitorTimeout` (no answer within
    `timeout` seconds, time spent waiting for other calls included). Their `sent` says whether the
    command was, or may have been, handed to QEMU. Cancelling a call has the same meaning as its
    timing out.

    Made by `connect`, `from_socket` or `from_session`, not by hand.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self.name = name
        self.timeout = timeout  #: seconds, for calls that do not say
        self._session: Session
        self.file: MonitorFile | None = None  #: that was connected to, if there was one
        self._broadcast = EventBroadcast()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def connect(
        cls,
        path: str | Path,
        *,
        name: str = "",
        timeout: float = DEFAULT_TIMEOUT_S,
        admit: Admission | None = None,
        uid: int | None = None,
    ) -> Monitor:
        """Connect to the unix socket of a monitor in control mode.

        :param name: which monitor, for errors: ``of VM web1``; by default the path.
        :param timeout: seconds, for connecting and then for every call that does not say.
        :param admit: raises if this is not a monitor to be used; nothing was sent to it then.
        :param uid: of the user who named the path, see `connect_socket`.
        :raise MonitorUnreachable: there is no such socket, nobody listens, no permission, no
            greeting in time (``server=on`` serves one client at a time), or it does not speak QMP.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        sock, file = await connect_socket(path, name or str(path), timeout, uid=uid)
        if admit is not None:
            try:
                admit(str(path), peer_credentials(sock), file and file.owner)
            except BaseException:
                sock.close()
                raise
        monitor = await cls._open_socket(sock, name or str(path), timeout, deadline)
        monitor.file = file
        return monitor

    @classmethod
    async def from_socket(
        cls, sock: socket.socket, *, name: str = "", timeout: float = DEFAULT_TIMEOUT_S
    ) -> Monitor:
        """Speak QMP over a connected unix socket: of a listener, or one half of a pair.

        :param sock: owned from here on; closed also when this fails.
        :param timeout: as in `connect`.
        :raise MonitorUnreachable: no greeting in time, it hung up, or it does not speak QMP.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        return await cls._open_socket(
            sock, name or f"on descriptor {sock.fileno()}", timeout, deadline
        )

    @classmethod
    async def from_session(
        cls, make: SessionFactory, *, name: str, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Monitor:
        """Work over a session of another kind, such as libvirt's passthrough.

        :param timeout: as in `connect`.
        :raise MonitorUnreachable: QEMU cannot be reached this way.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        return await cls._open_session(make, name, timeout, deadline)

    @classmethod
    async def _open_socket(
        cls, sock: socket.socket, name: str, timeout: float, deadline: float
    ) -> Monitor:
        def make(
            on_event: Callable[[MonitorEvent], None], on_closed: Callable[[], None]
        ) -> Session:
            return QmpTransport(sock, name, on_event, on_closed)

        return await cls._open_session(make, name, timeout, deadline)

    @classmethod
    async def _open_session(
        cls, make: SessionFactory, name: str, timeout: float, deadline: float
    ) -> Monitor:
        monitor = cls(name, timeout)
        session = make(monitor._broadcast.publish, monitor._broadcast.end)
        await session.open(timeout, deadline)
        monitor._session = session
        return monitor

    @property
    def pid(self) -> int | None:
        """Process at the other end, ``None`` if it cannot be told: of another pid namespace.

        For a socket that QEMU inherited as a listener it is the process that made the socket.
        """
        return self._session.pid

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, by whichever side."""
        return self._session.closed

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await self._session.wait_closed()

    def events(self, limit: int = DEFAULT_QUEUE_LENGTH) -> MonitorEvents:
        """Subscribe: an async iterator of `MonitorEvent`, to be used as a context if left early.

        The last event is ``DISCONNECTED``, also for a subscriber that comes after the end.

        :param limit: events kept for a slow subscriber; then the oldest are dropped and an
            ``OVERFLOW`` event tells how many.
        """
        return self._broadcast.subscribe(limit)

    async def execute(
        self,
        name: str,
        arguments: Mapping[str, object] | None = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Run one command, together with the descriptors that it uses.

        :param fds: QEMU's name for it -> borrowed descriptor. Duplicated before the first await, so
            the caller may close its own at any time after. QEMU is asked to close them again when
            the command fails or is not sent.
        :param timeout: seconds, by default that of the monitor.
        :return: the ``return`` value of QEMU.
        :raise CommandFailed: QEMU refused the command, or the ``getfd`` before it.
        :raise MonitorGone: the connection ended.
        :raise MonitorTimeout: no answer in time.
        :raise BadRequest: the arguments have no JSON form, or a descriptor is not open.
        """
        command = _checked(QmpCommand(name, arguments or {}))
        with contextlib.ExitStack() as stack:
            held = {key: _duplicate(key, fd, stack) for key, fd in (fds or {}).items()}

            async def send(call: _Call) -> Any:
                return await self._with_fds(call, command, held)

            return await self._call(_Call(name), send, timeout, stack)

    async def batch(
        self, commands: Sequence[QmpCommand], *, timeout: float | None = None
    ) -> list[object | CommandFailed]:
        """Write commands back to back, then collect the answers.

        QEMU executes them in order, and every one of them also when an earlier one failed.

        :return: in order, what each returned, or the `CommandFailed` that it ended in.
        :raise MonitorGone: the connection ended before the last answer.
        :raise MonitorTimeout: no last answer in time; `sent` holds for all of them.
        """
        checked = [_checked(command) for command in commands]
        if not checked:
            return []

        async def send_all(call: _Call) -> list[object | CommandFailed]:
            self._about_to_send(call)
            answers: list[Any] = await asyncio.gather(
                *(self._session.execute(each.name, each.arguments) for each in checked),
                return_exceptions=True,
            )
            gone = [each for each in answers if isinstance(each, MonitorGone)]
            if gone:  # what holds for one of them holds for all
                gone[0].sent = len(gone) < len(answers) or any(each.sent for each in gone)
            for answer in answers:
                if isinstance(answer, BaseException) and not isinstance(answer, CommandFailed):
                    raise answer
            return answers

        return await self._call(_Call(" + ".join(c.name for c in checked)), send_all, timeout)

    async def hmp(self, line: str, *, timeout: float | None = None) -> str:
        """Run a line of the human monitor; QEMU reports its errors in the text.

        :raise CommandFailed, MonitorGone, MonitorTimeout: as `execute`.
        """
        text = await self.execute("human-monitor-command", {"command-line": line}, timeout=timeout)
        if not isinstance(text, str):
            raise MonitorError(f"the monitor {self.name} answered {line!r} with something else")
        return text

    async def wait_responsive(self) -> None:
        """Wait, without a time limit, until QEMU has answered everything that was sent.

        What is known to be unknown after a timeout can be looked up from here on.

        :raise MonitorGone: the connection ended first.
        """

        async def query_status(call: _Call) -> None:
            self._about_to_send(call)
            with contextlib.suppress(CommandFailed):  # a refusal is an answer, too
                await self._session.execute("query-status", {})

        await self._call(_Call("query-status"), query_status, math.inf)

    async def close(self) -> None:
        """End the connection. Idempotent, does not wait for QEMU, leaves no task and no fd.

        Calls under way fail with `MonitorGone`. Does not undo: QEMU still executes what it was
        sent.
        """
        await self._session.close()
        while self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
            if late:  # pragma: no cover - all of them wait for the connection only
                break

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _call(
        self,
        call: _Call,
        send: Callable[[_Call], Coroutine[Any, Any, T]],
        timeout: float | None,
        resources: contextlib.ExitStack | None = None,
    ) -> T:
        """Run `send` under the lock in its own task, which a cancelled caller does not cancel.

        :param resources: freed when the task has ended, not when the caller leaves.
        """
        loop = asyncio.get_running_loop()
        limit = self.timeout if timeout is None else timeout
        deadline = None if math.isinf(limit) else loop.time() + limit
        try:
            async with asyncio.timeout_at(deadline):
                await self._lock.acquire()
        except TimeoutError:
            raise self._late(call, limit, "others wait for their answers") from None
        if self.closed:
            self._lock.release()
            raise self._session.closed_error(call.what, sent=False)

        async def run_send() -> T:
            try:
                return await send(call)
            except MonitorGone as err:
                await self.wait_closed()  # only then is the reason known and everything freed
                sent = err.sent and call.sent
                raise self._session.closed_error(call.what, sent=sent) from None

        task = loop.create_task(run_send(), name=f"monitor {self.name}: {call.what}")
        self._tasks.add(task)
        kept = resources.pop_all() if resources else contextlib.ExitStack()

        def finished(task: asyncio.Task[T]) -> None:
            # A callback and not a ``finally`` in the task: a task that is cancelled before its
            # first step has no ``finally``.
            self._tasks.discard(task)
            kept.close()
            self._lock.release()
            if not task.cancelled():
                task.exception()  # nobody else looks, if the caller has left

        task.add_done_callback(finished)
        try:
            await asyncio.wait({task}, timeout=deadline and max(0.0, deadline - loop.time()))
        finally:
            call.wanted = task.done()
        if not call.wanted:
            raise self._late(call, limit, "QEMU does not answer")
        return task.result()

    async def _with_fds(self, call: _Call, command: QmpCommand, fds: Mapping[str, int]) -> Any:
        given: list[str] = []  # names that QEMU may hold
        try:
            for name, fd in fds.items():
                await self._send_fd(call, name, fd)
                given.append(name)
                # No check for the caller here: a descriptor without its getfd would stay in QEMU.
                await self._session.execute("getfd", {"fdname": name})
            self._about_to_send(call)
            return await self._session.execute(command.name, command.arguments)
        except MonitorGone:
            raise
        except Exception:
            for name in given:
                # Not found is usual: most commands take the descriptor also when they fail.
                with contextlib.suppress(MonitorError):
                    await self._session.execute("closefd", {"fdname": name})
            raise

    async def _send_fd(self, call: _Call, name: str, fd: int) -> None:
        # The library owns the socket's place in the event loop, so a full socket is polled.
        while True:
            if not call.wanted:
                raise _CallerLeftError
            try:
                return self._session.send_fd(name, fd)
            except SendBusyError:
                await asyncio.sleep(SEND_RETRY_INTERVAL_S)

    def _about_to_send(self, call: _Call) -> None:
        """Pass the point of no return; nothing may be awaited between it and the command."""
        if not call.wanted:
            raise _CallerLeftError
        self._session.ensure_open(call.what)
        call.sent = True

    def _late(self, call: _Call, limit: float, why: str) -> MonitorTimeout:
        done = "was sent, but not answered" if call.sent else "was not sent"
        return MonitorTimeout(
            f"{call.what} {done} within {limit:g} s: {why} (monitor {self.name})",
            hint="look whether QEMU is stopped or the host is overloaded",
            sent=call.sent,
        )


def _checked(command: QmpCommand) -> QmpCommand:
    """Return a copy of the command whose arguments certainly have a JSON form.

    An argument that has none would otherwise end the connection, from inside the library.
    """
    try:
        arguments = dict(command.arguments)
        json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as err:
        raise BadRequest(f"the arguments of {command.name} have no JSON form: {err}") from err
    return QmpCommand(command.name, arguments)


def _duplicate(name: str, fd: int, stack: contextlib.ExitStack) -> int:
    try:
        copy = os.dup(fd)
    except OSError as err:
        raise BadRequest(f"the descriptor {fd} for {name} cannot be sent: {err.strerror}") from err
    stack.callback(os.close, copy)
    return copy
