"""The socket that QEMUs dial: one for all guests, which are known by who they are, not by a path.

A prepared domain has a monitor that dials this socket, and again each second while nobody listens
(`linkmgr.libvirt.xml.monitor`). So a guest boots and runs without the service, and is there by
itself when the service is. What a QEMU says of itself is checked against what libvirt says of its
process (`linkmgr.libvirt.monitor.peer_identity`); the connection of any other process is closed
unread.

Each connection has a task of its own: a guest that is slow, or says nothing, keeps nobody waiting.

QEMU dials long before its main loop runs: until then it allocates its memory, which takes minutes
if all of it is preallocated. Closing the connection in this time ends QEMU by SIGSEGV (7.2 and
10.0), and its domain does not start. Its greeting says that the time is over, so nothing is closed
before its greeting: not a slow QEMU's connection, and a refused one's not for some seconds. Three
are closed at once all the same: one of a process that has another that is kept, one beyond
`MAX_REFUSED` or `MAX_REFUSED_PER_USER`, and a guest's third that has not greeted
(`MAX_NEGOTIATING`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

from linkmgr.aio.log_limit import LogLimit
from linkmgr.aio.token_bucket import TokenBucket
from linkmgr.aio.unix_sockets import UnixSocket, accept_connections
from linkmgr.errors import LinkmgrError, MonitorError, MonitorUnreachable
from linkmgr.hypervisors.qemu.qmp import Monitor
from linkmgr.hypervisors.qemu.qmp.connector import inbound_address
from linkmgr.libvirt.monitor.peer_identity import ConnectedQemu, UntrustedPeer, peer_pid, peer_uid
from linkmgr.model import MonitorTransport
from linkmgr.state.journal import started_at

__all__ = ["MonitorListener", "ConnectedQemu"]  # noqa: RUF022 - most important first

log = logging.getLogger(__name__)

ANNOUNCE_INTERVAL_S = 1.0  #: seconds until a connection that nobody has taken is offered again
REFUSED_PAUSE_S = 0.2  #: seconds in which a process that was refused is not looked at again
#: Seconds of the loop's time that one user's connections may take at once: all QEMUs of libvirt are
#: one user's, and some hundreds dial when the service starts.
LOOP_BURST_S = 0.5
MAX_NEGOTIATING = 2  #: connections of one process that may be in the negotiation at once
#: Connections a second that are taken, for as long as it goes on, and at once: 200 guests dial when
#: the service starts, and each costs the loop a third of a millisecond.
CONNECTIONS_PER_SECOND, CONNECTIONS_BURST = 100.0, 400.0
#: The same of one process, which need not dial more often than once a second.
PROCESS_CONNECTIONS_PER_SECOND, PROCESS_CONNECTIONS_BURST = 1.0, 20.0
MAX_IDENTIFYING = 16  #: processes that are looked at at once; the others wait in the kernel
#: Different refusals of one process that are told of: it says what they say.
MAX_LOGGED_REFUSALS = 5
#: Seconds for which a refused connection that has said nothing is kept: a QEMU that starts greets
#: within them. At most so many are kept, one of each process: a stranger may be silent for ever.
REFUSED_GRACE_S, MAX_REFUSED = 5.0, 64
#: The same of one user, so that nobody else's keep out the QEMUs that libvirt starts: it starts 20
#: domains at once (its max_workers).
MAX_REFUSED_PER_USER = 20
_MAX_REMEMBERED = 1000  # processes, so that each refusal is told of once

Identify = Callable[[socket.socket], ConnectedQemu]
OnUnclaimed = Callable[[ConnectedQemu], Awaitable[None]]
_Process = tuple[int, int | None]  # pid, and when it began


@dataclass(eq=False)
class _PendingConnection:
    """A connection that nobody has taken yet."""

    qemu: ConnectedQemu
    monitor: Monitor
    taken: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _GuestConnections:
    """One uuid.

    :param used: the connection that was last taken.
    :param waiting: those who want the next one, in the order in which they came.
    """

    pending: _PendingConnection | None = None
    used: Monitor | None = None
    waiting: deque[asyncio.Future[Monitor]] = field(default_factory=deque)

    @property
    def idle(self) -> bool:
        return not (self.pending or self.waiting or (self.used and not self.used.closed))


class MonitorListener:
    """Accepts the connections of QEMUs. ``async with`` owns the socket and all that nobody takes.

    A connection goes to the task that waits for its uuid (of a `QemuProcess` that connects again,
    or of a recovery). Else `on_unclaimed` is called, and again each second for as long as nobody
    takes it; a connection that is refused would only be made again by QEMU, each second. Its
    `LinkmgrError` is logged.

    :param sock: listening.
    :param identify: says which domain's QEMU is at the other end; called in a thread.
    :param on_unclaimed: has the guest added, as ``inbound:UUID``.
    :param timeout: seconds that a QEMU may take for its greeting, and for each answer.
    """

    def __init__(
        self,
        sock: UnixSocket,
        identify: Identify,
        on_unclaimed: OnUnclaimed,
        *,
        timeout: float = 5.0,
    ) -> None:
        self._sock = sock
        self._identify = identify
        self._on_unclaimed = on_unclaimed
        self._timeout = timeout
        self._guests: dict[str, _GuestConnections] = {}
        self._negotiating: Counter[int] = Counter()  # by pid
        self._identifying = asyncio.Semaphore(MAX_IDENTIFYING)
        self._limit = LogLimit(__name__)
        self._refused: dict[_Process, float] = {}  # when
        self._kept_open: dict[int, int] = {}  # pid -> uid, of refused connections
        self._buckets: dict[_Process, TokenBucket] = {}  # of those that have connected lately
        self._logged: OrderedDict[_Process, set[str]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._accepting = asyncio.create_task(self._accept(), name="monitor listener")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._sock.close()
        await asyncio.sleep(0)  # a task that has not begun would leave its socket open
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def connector(self, address: str) -> ListenerConnector:
        """Make the `Connector` of ``inbound:UUID``."""
        return ListenerConnector(self, address.partition(":")[2])

    async def wait_for(self, domain: str, name: str, timeout: float) -> Monitor:
        """Take the connection that a QEMU has made, or the next one that it makes.

        :param domain: its uuid.
        :param timeout: seconds to wait.
        :raise MonitorUnreachable: it has not dialled by then.
        """
        guest = self._guests.setdefault(domain, _GuestConnections())
        try:
            if (pending := guest.pending) is not None and not pending.monitor.closed:
                return self._hand_out(guest, pending)
            waiter: asyncio.Future[Monitor] = asyncio.get_running_loop().create_future()
            guest.waiting.append(waiter)
            try:
                async with asyncio.timeout(timeout):
                    return await waiter
            except BaseException:
                if waiter.done() and not waiter.cancelled():
                    # Who waited has left in the very moment: QEMU dials again, for the next one.
                    self._start(waiter.result().close(), "close a monitor")
                raise
            finally:
                with contextlib.suppress(ValueError):
                    guest.waiting.remove(waiter)
        except TimeoutError as error:
            raise MonitorUnreachable(
                f"the QEMU {name} has not dialled within {timeout:g} s",
                hint="look whether it runs, and was prepared to dial this service: linkmgr prepare",
            ) from error
        finally:
            self._tidy(domain)

    # ------------------------------------------------------------------ one connection

    async def _accept(self) -> None:
        bucket = TokenBucket(CONNECTIONS_PER_SECOND, CONNECTIONS_BURST)
        async for sock in accept_connections(self._sock, burst=LOOP_BURST_S):
            try:
                await asyncio.sleep(bucket.take(1))
                await self._identifying.acquire()
            except BaseException:
                sock.close()
                raise
            self._start(self._serve(sock), "monitor listener connection")

    async def _serve(self, sock: socket.socket) -> None:
        try:
            qemu = await self._identify_peer(sock)
        except BaseException:
            sock.close()
            raise
        finally:
            self._identifying.release()
        if qemu is None:
            await self._close_refused(sock)
            return
        self._negotiating[qemu.pid] += 1
        try:
            monitor = await self._negotiate(sock, qemu)
        finally:
            self._negotiating -= Counter([qemu.pid])
        if monitor is not None:
            await self._offer(qemu, monitor)

    async def _identify_peer(self, sock: socket.socket) -> ConnectedQemu | None:
        try:
            pid = peer_pid(sock)
        except UntrustedPeer as error:
            self._limit.warning("monitor listener", "an untrusted peer was refused: %s", error)
            return None
        now = asyncio.get_running_loop().time()
        process = (pid, started_at(pid))
        self._refused = {p: at for p, at in self._refused.items() if now - at < REFUSED_PAUSE_S}
        if process in self._refused or not self._may_connect(process):
            return None
        try:
            qemu = await asyncio.to_thread(self._identify, sock)
        except UntrustedPeer as error:
            self._refuse(process, f"uid {peer_uid(sock)}", str(error))
            return None
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this peer only
            about = "monitor listener: pid %d cannot be looked at"
            self._limit.log(logging.ERROR, "monitor listener", about, pid, error=error)
            return None
        return qemu if self._negotiating[pid] < MAX_NEGOTIATING else None

    def _may_connect(self, process: _Process) -> bool:
        """Whether a process may make one more connection now."""
        if len(self._buckets) > MAX_IDENTIFYING:
            self._buckets = {p: bucket for p, bucket in self._buckets.items() if not bucket.full}
        new = TokenBucket(PROCESS_CONNECTIONS_PER_SECOND, PROCESS_CONNECTIONS_BURST)
        return self._buckets.setdefault(process, new).try_take()

    async def _close_refused(self, sock: socket.socket) -> None:
        """Close a refused connection, at once if that cannot hurt a QEMU that starts."""
        try:
            pid, uid = peer_pid(sock), peer_uid(sock)
            if self._may_keep(pid, uid):
                self._kept_open[pid] = uid
                try:
                    await _is_readable(sock, REFUSED_GRACE_S)
                finally:
                    del self._kept_open[pid]
        except UntrustedPeer:
            pass  # it has ended
        finally:
            sock.close()

    def _may_keep(self, pid: int, uid: int) -> bool:
        """Whether a refused connection of a process may stay open for some seconds."""
        of_user = sum(each == uid for each in self._kept_open.values())
        full = len(self._kept_open) >= MAX_REFUSED or of_user >= MAX_REFUSED_PER_USER
        return not full and pid not in self._kept_open

    async def _negotiate(self, sock: socket.socket, qemu: ConnectedQemu) -> Monitor | None:
        """Negotiate, and compare what QEMU says of itself."""
        process = (qemu.pid, started_at(qemu.pid))
        try:
            if not await _is_readable(sock, self._timeout):
                about = f"domain {qemu.name}"
                self._log_once(process, about, f"{about} has dialled and says nothing yet")
                await _is_readable(sock, None)
        except BaseException:
            sock.close()
            raise
        try:
            monitor = await Monitor.from_socket(
                sock, name=f"of VM {qemu.name}", timeout=self._timeout
            )
        except MonitorError as error:
            about = f"domain {qemu.name}"
            self._refuse(process, about, f"{about}: {error}")
            return None
        try:
            said = [await monitor.execute(each) for each in ("query-uuid", "query-name")]
            mismatch = _identity_mismatch(qemu, *said)
            if mismatch is None:
                return monitor
        except MonitorError as error:
            mismatch = f"domain {qemu.name}: {error}"
        except BaseException:
            await monitor.close()
            raise
        self._refuse(process, f"domain {qemu.name}", mismatch)
        await monitor.close()
        return None

    def _refuse(self, process: _Process, key: str, why: str) -> None:
        self._refused[process] = asyncio.get_running_loop().time()
        self._log_once(process, key, f"pid {process[0]} was refused: {why}")

    def _log_once(self, process: _Process, key: str, what: str) -> None:
        """Log it once of each process, for QEMU dials again each second, and seldom of each key.

        :param key: a domain, or an untrusted peer's user, who can have a new process each time.
        """
        logged = self._logged.setdefault(process, set())
        if what not in logged and len(logged) < MAX_LOGGED_REFUSALS:
            logged.add(what)
            self._limit.warning(key, "monitor listener: %s", what)
        self._logged.move_to_end(process)
        if len(self._logged) > _MAX_REMEMBERED:
            self._logged.popitem(last=False)

    # ------------------------------------------------------------------ who takes it

    async def _offer(self, qemu: ConnectedQemu, monitor: Monitor) -> None:
        """Give the connection to who waits for it, or keep it until somebody wants it."""
        guest = self._guests.setdefault(qemu.uuid, _GuestConnections())
        pending = _PendingConnection(qemu, monitor)
        before, guest.pending = guest.pending, pending
        for waiter in guest.waiting:
            if not waiter.done():
                waiter.set_result(self._hand_out(guest, pending))
                break
        try:
            if before is not None:  # QEMU has given that one up, or has two monitors that dial
                await before.monitor.close()
            await self._until_taken(guest, pending)
            if pending.taken.is_set():
                await monitor.wait_closed()
        finally:
            if guest.used is monitor:
                guest.used = None
            if guest.pending is pending:
                guest.pending = None
            self._tidy(qemu.uuid)
            if not pending.taken.is_set():
                await monitor.close()

    async def _until_taken(self, guest: _GuestConnections, pending: _PendingConnection) -> None:
        ends = asyncio.create_task(pending.monitor.wait_closed())
        taken = asyncio.create_task(pending.taken.wait())
        try:
            while not (taken.done() or ends.done() or guest.pending is not pending):
                used = guest.used
                if used is None or used.closed or used.pid != pending.qemu.pid:
                    await self._announce(pending.qemu)
                await asyncio.wait(
                    {ends, taken}, timeout=ANNOUNCE_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for each in (ends, taken):
                each.cancel()
            await asyncio.gather(ends, taken, return_exceptions=True)

    async def _announce(self, qemu: ConnectedQemu) -> None:
        try:
            await self._on_unclaimed(qemu)
        except LinkmgrError as error:
            process = (qemu.pid, started_at(qemu.pid))
            about = f"domain {qemu.name}"
            self._log_once(process, about, f"{about} dialled, and cannot be added: {error}")
        except Exception:
            log.exception("domain %s dialled: a fault while it was added", qemu.name)

    def _hand_out(self, guest: _GuestConnections, pending: _PendingConnection) -> Monitor:
        guest.pending, guest.used = None, pending.monitor
        pending.taken.set()
        return pending.monitor

    def _tidy(self, domain: str) -> None:
        if (guest := self._guests.get(domain)) is not None and guest.idle:
            del self._guests[domain]

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("monitor listener: a fault", exc_info=error)


class ListenerConnector:
    """The `Connector` of a QEMU that connects to us: it waits for that."""

    transport = MonitorTransport.INBOUND

    def __init__(self, listener: MonitorListener, domain: str) -> None:
        self._listener = listener
        self._domain = domain
        self.address = inbound_address(domain)

    async def connect(self, name: str, timeout: float) -> Monitor:
        """See `Connector.connect`."""
        return await self._listener.wait_for(self._domain, name, timeout)

    def proves_absence(self, error: Exception) -> bool:
        """See `Connector.proves_absence`."""
        return isinstance(error, MonitorUnreachable) and isinstance(error.__cause__, TimeoutError)


async def _is_readable(sock: socket.socket, seconds: float | None) -> bool:
    """Wait until something can be read, the end included; return whether it can."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, lambda: None if readable.done() else readable.set_result(None))
    try:
        async with asyncio.timeout(seconds):
            await readable
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(sock)
    return True


def _identity_mismatch(qemu: ConnectedQemu, its_uuid: object, its_name: object) -> str | None:
    """Return how QEMU's own uuid or name contradicts libvirt's, or ``None``."""
    uuid = its_uuid.get("UUID") if isinstance(its_uuid, dict) else None
    if not isinstance(uuid, str) or uuid.lower() != qemu.uuid:
        return f"it is the QEMU of domain {qemu.name}, and says that its uuid is {ascii(uuid)[:60]}"
    name = its_name.get("name") if isinstance(its_name, dict) else None
    if name != qemu.name:
        return f"it is the QEMU of domain {qemu.name}, and says that its name is {ascii(name)[:60]}"
    return None
