"""QEMU through libvirt's own monitor: for a guest that has no monitor for us.

libvirt hands on any command and its descriptors (``virDomainQemuMonitorCommandWithFiles``), QEMU's
answer, errors included, and QEMU's events. It costs 0.9 ms more for each command, does not work
while libvirtd is away or a hook of the domain runs, and libvirt marks the domain as tainted,
*custom-monitor*, until it is stopped. So it is the last of the three ways.

Each session has a connection to libvirt and a thread of its own. A QEMU that does not answer holds
the thread, for as long as it does not, and nobody else's.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from linkmgr.errors import (
    CommandFailed,
    LibvirtError,
    LibvirtRefused,
    LibvirtUnreachable,
    MonitorError,
    MonitorGone,
    MonitorUnreachable,
)
from linkmgr.hypervisors.qemu.qmp.event_budget import EventRateLimit, FloodError, MessageRateLimit
from linkmgr.hypervisors.qemu.qmp.events import HANDLED_EVENTS, MonitorEvent
from linkmgr.hypervisors.qemu.qmp.inbound import (
    MAX_ANSWER_BYTES,
    MAX_ANSWER_ITEMS,
    MAX_MESSAGE_BYTES,
    MAX_MESSAGE_ITEMS,
    NotQmpError,
    check_shape,
    decode,
    event_of,
)
from linkmgr.hypervisors.qemu.qmp.monitor import Monitor
from linkmgr.hypervisors.qemu.qmp.transport import MAX_ERROR_CLASS_CHARS
from linkmgr.libvirt.client.api_calls import find_domain
from linkmgr.libvirt.client.connection import Libvirt
from linkmgr.libvirt.client.events import DomainEventKind, lifecycle
from linkmgr.libvirt.client.handle import LibvirtConnection
from linkmgr.libvirt.xml.status_file import pid_of
from linkmgr.model import MonitorTransport
from linkmgr.text.untrusted import printable

_NOT_RUNNING = 55  # VIR_ERR_OPERATION_INVALID
_GONE_HINT = "look whether the guest and libvirtd still run, and what the guest's NIC is on now"
#: VIR_DOMAIN_EVENT_ID_LIFECYCLE
_LIFECYCLE = 0
_REGEX = 1  # VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX


class LibvirtConnector:
    """Reaches the QEMU of a domain through libvirt.

    :param libvirt: while it is not connected, nothing is tried.
    :param which: the domain's uuid or name.
    """

    transport = MonitorTransport.LIBVIRT

    def __init__(self, libvirt: Libvirt, which: str) -> None:
        self.address = f"{MonitorTransport.LIBVIRT}:{which}"
        self._libvirt = libvirt
        self._which = which

    async def connect(self, name: str, timeout: float) -> Monitor:
        """See `linkmgr.hypervisors.qemu.qmp.connector.Connector.connect`.

        :raise MonitorUnreachable: libvirt is not there, does not answer, or has no such domain
            that runs.
        """
        begun = asyncio.get_running_loop().time()
        try:
            # One that is stopped, or was never there, is not to be asked again and again.
            await self._libvirt.wait_connected(timeout=timeout)
        except LibvirtError as error:
            raise _unreachable(name, error) from error
        left = max(0.0, timeout - (asyncio.get_running_loop().time() - begun))

        def make(
            on_event: Callable[[MonitorEvent], None], on_closed: Callable[[], None]
        ) -> PassthroughSession:
            return PassthroughSession(
                self._libvirt, self._which, name, on_event=on_event, on_closed=on_closed
            )

        monitor = await Monitor.from_session(make, name=name, timeout=left)
        monitor.timeout = timeout
        return monitor

    def proves_absence(self, error: Exception) -> bool:
        """See `Connector.proves_absence`: libvirt says that the domain does not run."""
        cause = error.__cause__
        return isinstance(cause, LibvirtRefused) and (
            cause.no_domain or cause.number == _NOT_RUNNING
        )


class _FdCopy:
    """A copy of a descriptor that goes with one command; whoever takes it closes it."""

    def __init__(self, fd: int) -> None:
        self._held = [os.dup(fd)]

    def detach(self) -> int | None:
        """The copy, for the first who asks; in any thread."""
        try:
            return self._held.pop()
        except IndexError:
            return None

    def drop(self) -> None:
        """Close it unless it was taken."""
        if (fd := self.detach()) is not None:
            os.close(fd)


class PassthroughSession:
    """A session with the QEMU of a running domain; see `linkmgr.hypervisors.qemu.qmp.session`.

    It ends with the connection to libvirt and with the domain: not with QEMU's answer being late.
    """

    def __init__(
        self,
        libvirt: Libvirt,
        which: str,
        name: str,
        *,
        on_event: Callable[[MonitorEvent], None],
        on_closed: Callable[[], None],
    ) -> None:
        self.pid: int | None = None
        self.name = name
        self._uri, self._run_dir, self._which = libvirt.uri, libvirt.run_dir, which
        self._events = EventRateLimit(on_event)
        self._rate_limit = MessageRateLimit()
        self._on_closed = on_closed
        self._connection: LibvirtConnection
        self._domain: Any = None  # libvirt-python's; touched in the thread only
        self._ending = asyncio.Event()
        self._closed = asyncio.Event()
        self._reason: str | None = None
        self._descriptor: _FdCopy | None = None
        self._commands: set[asyncio.Task[Any]] = set()
        self._watcher: asyncio.Task[None] | None = None

    async def open(self, timeout: float, deadline: float) -> None:
        """Connect to libvirt and follow the domain's events.

        :raise MonitorUnreachable: libvirt is not there, or has no such domain that runs; caused by
            what libvirt said.
        """
        left = min(timeout, max(0.0, deadline - asyncio.get_running_loop().time()))
        try:
            self._connection = await LibvirtConnection.open(self._uri, self._begin, timeout=left)
        except LibvirtError as error:
            raise _unreachable(self.name, error) from error
        self._watcher = asyncio.create_task(self._watch(), name=f"monitor {self.name}")

    @property
    def closed(self) -> bool:
        """Whether the session has ended."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Wait until the session has ended."""
        await self._closed.wait()

    def closed_error(self, what: str, *, sent: bool) -> MonitorGone:
        """Make the error for a command that the ending cut off."""
        done = "got no answer" if sent else "was not sent"
        return MonitorGone(
            f"{what} {done}: the monitor {self.name} through libvirt is gone "
            f"({self._reason or 'it is ending'})",
            hint=_GONE_HINT,
            sent=sent,
        )

    def ensure_open(self, what: str) -> None:
        """Raise unless a command sent now goes out.

        :raise MonitorGone: with `sent` false.
        """
        if self._ending.is_set() or not self._connection.alive:
            raise self.closed_error(what, sent=False)

    async def execute(self, name: str, arguments: Mapping[str, object]) -> Any:
        """Send one command and wait for its answer, without a time limit.

        :raise CommandFailed: QEMU's answer is an error, or libvirt did not hand the command on.
        :raise MonitorGone: the session ended first.
        """
        self.ensure_open(name)
        text = json.dumps({"execute": name, "arguments": dict(arguments)})
        descriptor, self._descriptor = self._descriptor, None
        task = asyncio.create_task(
            self._connection.call(name, lambda api, _: self._command(api, text, descriptor))
        )
        self._commands.add(task)
        try:
            await asyncio.wait({task})
            text = await self._outcome(name, task)
        finally:
            self._commands.discard(task)
            task.cancel()
            if descriptor is not None:
                descriptor.drop()
        return _read(name, text)

    def send_fd(self, name: str, fd: int) -> None:
        """Have a borrowed descriptor go with the next command, which is its ``getfd``.

        :raise MonitorGone: the session has ended.
        """
        self.ensure_open(name)
        self._descriptor = _FdCopy(fd)

    async def close(self) -> None:
        """End the session. Idempotent, never raises, never waits for QEMU."""
        self._end("linkmgr closed it")
        if self._watcher is not None:
            await asyncio.wait({self._watcher})

    # --- in the thread ----------------------------------------------------------------------------
    def _begin(self, connection: LibvirtConnection, api: Any, conn: Any) -> None:
        """Find the domain, then follow its events; so it did run when the first can come."""
        domain = find_domain(conn, self._which)
        end = conn.domainEventRegisterAny(domain, _LIFECYCLE, self._on_lifecycle, None)
        connection.on_close(lambda: conn.domainEventDeregisterAny(end))
        # The daemon keeps back what nobody needs.
        events = api.qemu.qemuMonitorEventRegister(
            conn, domain, f"^({'|'.join(HANDLED_EVENTS)})$", self._on_qemu_event, None, _REGEX
        )
        connection.on_close(lambda: api.qemu.qemuMonitorEventDeregister(conn, events))
        if not domain.isActive():
            raise LibvirtRefused(
                f"domain {domain.name()} does not run", number=_NOT_RUNNING, hint="start it"
            )
        self.pid = pid_of(domain.name(), self._run_dir)
        self._domain = domain
        connection.on_close(self._forget)

    def _forget(self) -> None:
        self._domain = None

    def _command(self, api: Any, text: str, descriptor: _FdCopy | None) -> str:
        """Run one command."""
        fd = descriptor.detach() if descriptor is not None else None
        try:
            # QEMU's answers have no descriptors.
            files = [] if fd is None else [fd]
            answer, _ = api.qemu.qemuMonitorCommandWithFiles(self._domain, text, files, 0)
            return str(answer)
        finally:
            if fd is not None:
                os.close(fd)

    # --- in the loop ------------------------------------------------------------------------------
    async def _outcome(self, name: str, task: asyncio.Task[str]) -> str:
        """What libvirt handed on.

        :raise CommandFailed: libvirt did not hand the command on.
        :raise MonitorGone: the session ended first.
        """
        if task.cancelled():  # by the ending
            sent = True
        else:
            try:
                return task.result()
            except LibvirtRefused as error:
                if error.number != _NOT_RUNNING:
                    raise CommandFailed(
                        error.what, command=name, error_class="libvirt", hint=error.hint
                    ) from None
                sent = False
                self._end("the domain does not run any more")
            except LibvirtUnreachable as error:
                sent = error.sent
                self._end("libvirt is gone")
        await self._closed.wait()
        raise self.closed_error(name, sent=sent)

    def _on_qemu_event(
        self, _: Any, __: Any, name: str, ___: int, ____: int, details: str | None, _____: Any
    ) -> None:
        if self._ending.is_set():
            return
        try:
            # The daemon cannot be asked to pause for this guest alone.
            self._rate_limit.take(len(details or ""))
            data = decode(details or "{}", limit=MAX_MESSAGE_BYTES)
            event = event_of({"event": name, "data": data})
        except (FloodError, NotQmpError) as error:
            self._end(f"QEMU went too far: {error}")
            return
        if event is not None:
            self._events(event)

    def _on_lifecycle(self, _: Any, __: Any, event: int, detail: int, ___: Any) -> None:
        said = lifecycle(event, detail)
        if said is not None and said[0] is DomainEventKind.STOPPED:
            self._end(f"the domain has stopped: {said[1]}")

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._ending.set()

    async def _watch(self) -> None:
        """Wait for the ending, whoever caused it, and clean up after it."""
        lost = asyncio.create_task(self._connection.lost.wait())
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait({lost, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._events.close()
            self._end("libvirt is gone")
            for task in (lost, ending, *self._commands):
                task.cancel()
            if self._descriptor is not None:
                self._descriptor.drop()
            if self._connection.busy:
                self._connection.retire()  # it is closed when libvirt lets go of the thread
            else:
                await self._connection.close()
            self._closed.set()
            self._on_closed()


def _unreachable(name: str, error: LibvirtError) -> MonitorUnreachable:
    return MonitorUnreachable(
        f"the monitor {name} cannot be reached through libvirt: {error.what}", hint=error.hint
    )


def _read(name: str, text: str) -> Any:
    """QEMU's answer.

    :raise CommandFailed: it is an error.
    :raise MonitorError: it is too long, or none.
    """
    try:
        limit = MAX_ANSWER_BYTES.get(name, MAX_MESSAGE_BYTES)
        answer = decode(text, items=MAX_ANSWER_ITEMS.get(name, MAX_MESSAGE_ITEMS), limit=limit)
        check_shape(answer)
    except NotQmpError as wrong:
        raise MonitorError(
            f"QEMU answered {name} through libvirt with {wrong}",
            hint="look which program answers on its monitor",
        ) from None
    if "error" in answer:
        error = answer["error"]
        raise CommandFailed(
            f"QEMU refused {name}: {printable(error['desc'])}",
            command=name,
            error_class=printable(error["class"], MAX_ERROR_CLASS_CHARS),
        )
    return answer["return"]
