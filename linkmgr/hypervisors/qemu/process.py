"""One running QEMU: a monitor that is connected again for as long as the process lives."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import select
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from linkmgr.errors import CommandFailed, MonitorError, MonitorGone
from linkmgr.hypervisors.qemu.qmp.connector import Connector, SocketConnector
from linkmgr.hypervisors.qemu.qmp.features import Features, probe_features
from linkmgr.hypervisors.qemu.qmp.info_network import NetTopology, parse_info_network
from linkmgr.hypervisors.qemu.qmp.monitor import Monitor, MonitorEvent, QmpCommand
from linkmgr.model import MonitorTransport

log = logging.getLogger(__name__)

RECONNECT_INTERVAL_S = 0.2
#: Seconds after which a connection is stable. The next one is made at once when a stable one is
#: lost, and after one that was not; more of these in a row double the interval, up to the longest,
#: for every subscriber gets each.
STABLE_CONNECTION_S = 2.0
MAX_RECONNECT_INTERVAL_S = 5.0
_PIDFD_GETFD = 438  # the same number on all architectures
#: Without a pid to watch: connects in a row that prove absence, after which QEMU is dead.
MAX_REFUSED_CONNECTS = 5

EventHandler = Callable[[MonitorEvent], None]


class QemuProcess:
    """A QEMU process behind a monitor.

    A lost connection is not a lost guest: the process is watched by pidfd, and while it lives the
    monitor is connected again. The handler gets QEMU's events and, in between, ``DISCONNECTED``,
    ``RECONNECTED`` and, once and last, ``DEAD``.

    :param connector: makes the connections.
    :param timeout: seconds that a command may take.
    """

    def __init__(
        self, connector: Connector, *, name: str, timeout: float, handler: EventHandler
    ) -> None:
        self._connector = connector
        self.name = name
        self.timeout = timeout
        self._handler = handler
        self._monitor: Monitor | None = None
        self._connected = asyncio.Event()
        self._dead = asyncio.Event()
        self._pid: int | None = None
        self._pidfd: int | None = None
        self._process_gone = asyncio.Event()
        self._reconnecting: asyncio.Timeout | None = None
        self._closed = False
        self._supervisor: asyncio.Task[None] | None = None
        self.features: Features

    @classmethod
    async def connect(
        cls, connector: Connector, *, name: str, timeout: float, handler: EventHandler
    ) -> Self:
        """Connect and begin to hand events to `handler`.

        :raise MonitorUnreachable: when nobody answers there as QEMU does.
        """
        qemu = cls(connector, name=name, timeout=timeout, handler=handler)
        try:
            monitor = qemu._adopt(await qemu._connect_monitor())
            qemu._watch_process(monitor.pid)
            qemu.features = await probe_features(monitor)
        except BaseException:
            await qemu.close()
            raise
        qemu._supervisor = asyncio.create_task(qemu._supervise(monitor), name=f"qemu {name}")
        return qemu

    @property
    def address(self) -> str:
        """Of the monitor; see `linkmgr.hypervisors.qemu.qmp.connector`."""
        return self._connector.address

    @property
    def transport(self) -> MonitorTransport:
        """How the monitor is reached."""
        return self._connector.transport

    @property
    def alive(self) -> bool:
        """Whether QEMU may still run. A dead one holds no fd and no backend."""
        return not self._dead.is_set()

    @property
    def pid(self) -> int | None:
        """Of QEMU, or of the process that made its socket; ``None`` in another pid namespace."""
        return self._pid

    @property
    def owner(self) -> int | None:
        """Uid of the process that listens on its socket; ``None`` if it is reached otherwise."""
        peer = self._connector.admit.peer if isinstance(self._connector, SocketConnector) else None
        return peer.uid if peer else None

    @property
    def closed(self) -> bool:
        """Whether we have let go of it."""
        return self._closed

    @property
    def disconnected(self) -> bool:
        """Whether there is no connection to the monitor now."""
        return self._monitor is None or self._monitor.closed

    async def execute(
        self,
        name: str,
        arguments: Mapping[str, object] | None = None,
        *,
        fds: Mapping[str, int] | None = None,
    ) -> Any:
        """Run a command, with fds if need be; see `Monitor.execute`.

        :raise MonitorError: of the kind that happened.
        """
        try:
            return await self._live().execute(name, arguments, fds=fds, timeout=self.timeout)
        except CommandFailed as error:
            error.hint = error.hint or f"try again; if it persists, see QEMU's log of {self.name}"
            raise

    async def batch(self, commands: Sequence[QmpCommand]) -> list[object | CommandFailed]:
        """Run commands back to back; see `Monitor.batch`."""
        return await self._live().batch(commands, timeout=self.timeout)

    async def query_network(self) -> NetTopology:
        """Query the backends, hubs and NICs, and which is plugged into which."""
        return parse_info_network(await self._live().hmp("info network", timeout=self.timeout))

    async def wait_responsive(self) -> None:
        """Wait, for as long as it takes, until QEMU answers, is dead, or we have let go of it."""
        while self.alive and not self._closed:
            await self._connected.wait()
            monitor = self._monitor
            try:
                if monitor is not None:
                    await monitor.wait_responsive()
                return
            except MonitorGone:
                # `_supervise` may not have seen it yet: asking again at once would never let it.
                if monitor is self._monitor and not self._closed:
                    self._connected.clear()

    def dup_fd(self, number: int) -> int | None:
        """A copy of an fd of the process (pidfd_getfd(2)); ``None`` when the kernel refuses.

        It needs the right to trace the process.
        """
        if self._pidfd is None:
            return None
        copy = ctypes.CDLL(None).syscall(_PIDFD_GETFD, self._pidfd, number, 0)
        return copy if copy >= 0 else None

    async def confirm_exit(self) -> bool:
        """Whether QEMU has ended. A dying one may close its socket first, or end first.

        Waits until it is known if one of the two has happened, at most as long as for a command.
        """
        if not self.disconnected and not self._process_ending():
            return False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._dead_or_back(), self.timeout)
        return not self.alive

    async def _dead_or_back(self) -> None:
        while self.alive and (self.disconnected or self._process_ending()):  # noqa: ASYNC110 - of several
            await asyncio.sleep(RECONNECT_INTERVAL_S / 10)

    def _process_ending(self) -> bool:
        if self._pidfd is None:
            return self._process_gone.is_set()
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    async def close(self) -> None:
        """Let go of the monitor and the process. The guest runs on. Repeats freely."""
        self._closed = True
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        if self._monitor is not None:
            await self._monitor.close()
            self._monitor = None
        self._connected.set()  # nobody needs to wait for it any more
        self._forget_process()

    def _live(self) -> Monitor:
        """The connected monitor.

        :raise MonitorGone: when there is none now; nothing was sent.
        """
        if self._monitor is None or self._monitor.closed:
            word = "has lost its monitor connection" if self.alive else "is gone"
            raise MonitorGone(
                f"the QEMU of {self.name} {word}",
                hint="try again when it is back" if self.alive else "start the guest again",
                sent=False,
            )
        return self._monitor

    @property
    def file(self) -> tuple[int, int] | None:
        """Device and inode of the socket that was last connected to, if it was one."""
        found = self._monitor.file if self._monitor else None
        return found and (found.device, found.inode)

    async def _connect_monitor(self) -> Monitor:
        return await self._connector.connect(f"of {self.name}", self.timeout)

    def _adopt(self, monitor: Monitor) -> Monitor:
        self._monitor = monitor
        self._connected.set()
        return monitor

    async def _supervise(self, monitor: Monitor) -> None:
        """Hand on events; connect again after each disconnect, until QEMU is dead."""
        loop, short = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            async with monitor.events() as events:
                async for event in events:
                    if event.name == "DISCONNECTED":
                        self._connected.clear()
                    self._call_handler(event)
            try:
                async with asyncio.timeout(self.timeout):
                    await monitor.close()
            except Exception:
                log.exception("%s: the lost monitor connection was not closed", self.name)
            short = min(short + 1, 10) if loop.time() - began < STABLE_CONNECTION_S else 0
            pause = (
                min(MAX_RECONNECT_INTERVAL_S, RECONNECT_INTERVAL_S * 2**short) if short > 1 else 0.0
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process_gone.wait(), pause)
            again = await self._reconnect()
            if again is None:
                break
            monitor = again
            self._call_handler(MonitorEvent("RECONNECTED", {}))
        self._dead.set()
        self._connected.set()  # nobody needs to wait for a dead process
        self._call_handler(MonitorEvent("DEAD", {}))

    def _call_handler(self, event: MonitorEvent) -> None:
        try:
            self._handler(event)
        except Exception:
            log.exception("%s: the event %s was not handled", self.name, event.name)

    async def _reconnect(self) -> Monitor | None:
        """Connect again; ``None`` once QEMU is dead.

        It is dead when its process has ended. For a socket that alone does not tell, for the
        process is the one that made the socket, which need not be QEMU: it is dead when nobody
        listens there either. And it is dead when another process is there in its place.
        """
        refusals = 0
        while not self._has_ended:
            try:
                monitor = await self._reconnect_once()
                if monitor.pid == self._pid:
                    return self._adopt(monitor)
                await monitor.close()
                return None
            except Exception as error:  # whatever it is: nobody else would connect again
                if self._has_ended:
                    break
                if not isinstance(error, MonitorError):
                    log.exception("%s: cannot connect to the monitor again", self.name)
                if self._connector.proves_absence(error):
                    refusals += 1
                    watched = self._pidfd is not None
                    if self._process_gone.is_set() or (
                        not watched and refusals >= MAX_REFUSED_CONNECTS
                    ):
                        return None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process_gone.wait(), RECONNECT_INTERVAL_S)
                await asyncio.sleep(RECONNECT_INTERVAL_S / 10)
        return None

    async def _reconnect_once(self) -> Monitor:
        try:
            # A timeout of our own: a second attempt is better than a monitor lost for good.
            async with asyncio.timeout(self.timeout + 1) as self._reconnecting:
                return await self._connect_monitor()
        finally:
            self._reconnecting = None

    @property
    def _has_ended(self) -> bool:
        return self._process_is_qemu and self._process_gone.is_set()

    @property
    def _process_is_qemu(self) -> bool:
        return self._connector.transport is not MonitorTransport.SOCKET

    def _watch_process(self, pid: int | None) -> None:
        """Learn when the process ends. A pidfd cannot be fooled by a pid used again."""
        self._pid = pid
        if pid is None:
            return
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:  # already gone, or of another pid namespace
            if isinstance(error, ProcessLookupError) and self._process_is_qemu:
                self._process_gone.set()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)

    def _process_ended(self) -> None:
        self._forget_process()
        self._process_gone.set()
        reconnecting = self._reconnecting
        if self._process_is_qemu and reconnecting is not None and not reconnecting.expired():
            reconnecting.reschedule(0)  # nobody is there to be waited for

    def _forget_process(self) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
