"""The service, from start to end.

The order matters: the socket is taken first, so that no second service touches anything; then the
verbs recover what was in flight, the configuration is applied, and only then is anybody answered.
Whoever connects meanwhile waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path

from linkmgr.aio.unix_sockets import UnixSocket
from linkmgr.drivers.fd import FD_NETWORK
from linkmgr.errors import BadConfig
from linkmgr.hypervisors.qemu.qmp.connector import (
    Connector,
    ConnectorFactory,
    inbound_address,
    socket_connector,
    transport_of,
)
from linkmgr.libvirt.client.connection import Libvirt
from linkmgr.libvirt.domains.controller import DomainController
from linkmgr.libvirt.monitor.listener import ConnectedQemu, MonitorListener, OnUnclaimed
from linkmgr.libvirt.monitor.passthrough import LibvirtConnector
from linkmgr.libvirt.monitor.peer_identity import PeerIdentifier
from linkmgr.manager.manager import LinkManager
from linkmgr.model import MonitorTransport, VmState
from linkmgr.paths import ADMIN_SOCKET_NAME
from linkmgr.service import fd_socket, libvirt_support
from linkmgr.service.auth.peer import Peer
from linkmgr.service.config.schema import (
    DEFAULT_PATH,
    AccessSection,
    Config,
    Permission,
    load_config,
    looks_cut_off,
    reload_config,
)
from linkmgr.service.context import ServiceContext
from linkmgr.service.http.app import make_app
from linkmgr.service.http.reading import ReadMeter
from linkmgr.service.http.server import Server, UnreadBytes, connection_quota
from linkmgr.service.listeners import MODE_OWNER, MODE_PUBLIC, listening
from linkmgr.service.systemd.fd_store import (
    ADMIN,
    API,
    HANDOVER,
    MONITORS,
    PassedFds,
    SystemdFdStore,
    passed_fds,
)
from linkmgr.service.systemd.journal_log import log_to_stderr
from linkmgr.service.systemd.notify import (
    SystemdNotifier,
    extend_start_loop,
    watchdog_interval,
    watchdog_loop,
)

log = logging.getLogger(__name__)

FD_SOCKET = "fd.sock"  #: beside the API's socket
WRONG_CONFIGURATION = "its configuration is wrong"  #: the status that systemd shows
#: Seconds before such a start ends: long enough to be seen, and few starts a minute.
WRONG_CONFIGURATION_PAUSE_S = 2.0
QMP_SOCKET = "qmp.sock"  #: where QEMUs dial, beside it too


async def serve(socket: Path, state: Path | None, config: Path | None) -> None:
    """Run the service until SIGTERM or SIGINT; SIGHUP reads the configuration again.

    :param socket: path of the API's unix socket, unless systemd passes one named ``api``.
    :param state: the state directory; ``None`` forgets everything at the end.
    :param config: the configuration file; ``None`` has none. The default one may be missing.
    :raise BadConfig: when the configuration has mistakes.
    :raise Conflict: when a service listens on the socket already.
    :raise StateError: when the state directory cannot be used.
    :raise LinkmgrError: when it cannot start for another reason.
    """
    log_to_stderr()
    # Until it is obeyed: a reload that comes early must not end the service.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    async with contextlib.AsyncExitStack() as stack:
        notifier = SystemdNotifier.from_environment()
        stack.callback(notifier.close)
        try:
            settings = _load(config)
        except BadConfig:
            await _show_wrong_configuration(notifier)
            raise
        _allow_many_files()
        starting = asyncio.create_task(extend_start_loop(notifier), name="more time")
        stack.callback(starting.cancel)
        passed = passed_fds()
        stack.callback(passed.close)
        api = await stack.enter_async_context(_socket(passed, API, socket, MODE_PUBLIC))
        admins = socket.with_name(ADMIN_SOCKET_NAME)
        admin = await stack.enter_async_context(_socket(passed, ADMIN, admins, MODE_OWNER))
        fd_store = SystemdFdStore(notifier, passed) if notifier.connected else None
        if fd_store is not None:
            stack.callback(fd_store.close)
        ready: asyncio.Future[DomainController] = asyncio.get_running_loop().create_future()
        stack.callback(ready.cancel)
        qmp_path = socket.with_name(QMP_SOCKET)
        libvirt = await stack.enter_async_context(libvirt_support.connection(settings.libvirt))
        # Before the verbs: their recovery waits for the guests that dial.
        connectors = await stack.enter_async_context(
            _monitors(passed, qmp_path, settings, libvirt, partial(_discovered, ready))
        )
        timeout = settings.limits.monitor_seconds
        manager = await stack.enter_async_context(
            LinkManager(state=state, fd_store=fd_store, timeout=timeout, connectors=connectors)
        )
        context = ServiceContext(manager, settings, manager.documents)
        await context.declared.apply(settings.networks)
        controller = await stack.enter_async_context(
            libvirt_support.domain_controller(manager, libvirt, settings.libvirt)
        )
        context.domain_controller = controller
        ready.set_result(controller)
        fd_path = socket.with_name(FD_SOCKET)
        await stack.enter_async_context(_fd_socket(passed, manager, context, fd_path))
        starting.cancel()
        await Service(context, notifier, config).run(api, admin)


class Service:
    """What runs between start and end.

    :param notifier: tells systemd.
    :param path: of the configuration file.
    """

    def __init__(
        self, context: ServiceContext, notifier: SystemdNotifier, path: Path | None = None
    ) -> None:
        self.context = context
        self._notifier = notifier
        self._path = path
        places = connection_quota(context.limits, context.rank)
        reading = ReadMeter(context.is_privileged)
        self._server = Server(
            make_app(context), places, UnreadBytes(context.rank), reading, context.limits
        )
        self._reload = asyncio.Event()

    async def run(self, *socks: UnixSocket) -> None:
        """Answer on listening sockets until `stop` or a signal, and finish what is under way."""
        context = self.context
        subscriptions = [context.api.events(), context.api.events()]
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(self._reloads()),
                group.create_task(self._announce()),
                group.create_task(context.declared.retry_failures()),
            ]
            if (seconds := watchdog_interval()) is not None:
                helpers.append(group.create_task(watchdog_loop(self._notifier, seconds)))
            group.create_task(context.event_log.follow(subscriptions[0]))
            group.create_task(context.declared.follow(subscriptions[1]))
            try:
                with self._signals():
                    await self._server.run_on(socks)
                    await context.operations.close()
                    await context.metrics.close()
            finally:
                for helper in helpers:
                    helper.cancel()
                for each in subscriptions:
                    each.close()

    async def listens(self) -> None:
        """Wait until whoever connects is answered."""
        await self._server.listens.wait()

    def stop(self) -> None:
        """End, when what is under way is done."""
        log.info("stopping")
        self._notifier.stopping()
        self.context.operations.stop()
        self.context.api.begin_close()
        self.context.event_log.close()
        self._server.stop()

    def reload(self) -> None:
        """Read the configuration again, soon."""
        self._reload.set()

    async def _announce(self) -> None:
        await self.listens()
        log.info("ready")
        self._notifier.ready()

    async def _reloads(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            if self._path is None:
                log.warning("there is no configuration file to reload")
                continue
            self._notifier.reloading()
            try:
                # In a thread: the file may be on a disk that is slow or away.
                read = partial(reload_config, self._path, self.context.config)
                config = await asyncio.to_thread(read)
                cut = await asyncio.to_thread(looks_cut_off, self._path)
                if cut is not None:
                    log.warning("%s", cut)
                await self.context.use(config)
                log.info("the configuration %s is in force", self._path)
            except BadConfig as error:
                log.error("the configuration in force stays: %s", error)
            except Exception:
                log.exception("a fault while reading the configuration again")
            finally:
                self._notifier.ready()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self.reload,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)


async def _show_wrong_configuration(notifier: SystemdNotifier) -> None:
    """Let the manager show why the start fails, and the next one not follow at once.

    systemd starts the service again for each caller that waits on its socket, whatever Restart=
    says, and forgets the status with each start.
    """
    if notifier.connected:
        notifier.status(WRONG_CONFIGURATION)
        await asyncio.sleep(WRONG_CONFIGURATION_PAUSE_S)


def _load(path: Path | None) -> Config:
    if path is None or (path == DEFAULT_PATH and not path.exists()):
        group = AccessSection().group
        log.info("without a configuration file the members of the group %s may change all", group)
        return Config()
    config = load_config(path)
    if why := looks_cut_off(path):
        log.warning("%s", why)
    return config


@contextlib.asynccontextmanager
async def _socket(passed: PassedFds, name: str, path: Path, mode: int) -> AsyncIterator[UnixSocket]:
    """The one that systemd passed, which stays in place at the end, or one of our own."""
    fd = passed.pop(name)
    if fd is None:
        async with listening(path, mode) as sock:
            log.info("listening on %s", path)
            yield sock
        return
    with UnixSocket.from_fd(fd.detach()) as sock:
        yield sock


@contextlib.asynccontextmanager
async def _fd_socket(
    passed: PassedFds, manager: LinkManager, context: ServiceContext, path: Path
) -> AsyncIterator[None]:
    fd = passed.pop(HANDOVER)
    sock = fd_socket.bind(path) if fd is None else UnixSocket.from_fd(fd.detach())

    def allow(peer: Peer) -> None:
        context.access.check(peer, Permission.PLUG, network=FD_NETWORK.name)

    own = path if fd is None else None
    async with fd_socket.FdSocket(manager.fds, sock, path=own, allow=allow, rank=context.rank):
        yield


@contextlib.asynccontextmanager
async def _monitors(
    passed: PassedFds,
    path: Path,
    settings: Config,
    libvirt: Libvirt | None,
    on_unclaimed: OnUnclaimed,
) -> AsyncIterator[ConnectorFactory]:
    """The ways to reach a monitor; accepts QEMUs' connections, if the configuration says so."""
    async with contextlib.AsyncExitStack() as stack:
        listener = None
        if settings.libvirt.run_dir:
            fd = passed.pop(MONITORS)
            if fd is None:
                sock = await stack.enter_async_context(listening(path))
            else:
                sock = stack.enter_context(UnixSocket.from_fd(fd.detach()))
            identifier = PeerIdentifier(Path(settings.libvirt.run_dir))
            timeout = settings.limits.monitor_seconds
            listener = await stack.enter_async_context(
                MonitorListener(sock, identifier.identify, on_unclaimed, timeout=timeout)
            )

        def connector(address: str) -> Connector:
            if listener is not None and transport_of(address) is MonitorTransport.INBOUND:
                return listener.connector(address)
            if libvirt is not None and transport_of(address) is MonitorTransport.LIBVIRT:
                return LibvirtConnector(libvirt, address.partition(":")[2])
            return socket_connector(address)

        yield connector


async def _discovered(ready: Awaitable[DomainController], qemu: ConnectedQemu) -> None:
    """Add a guest whose QEMU has connected and that nobody waits for.

    :param ready: the controller, once what was known before is recovered.
    """
    controller, address = await asyncio.shield(ready), inbound_address(qemu.uuid)
    for vm in controller.manager.snapshot()[0]:
        if (vm.name, vm.qmp) == (qemu.name, address) and vm.state is not VmState.GONE:
            return  # it takes the connection itself, in a moment
    await controller.on_unclaimed(qemu)
    log.info("VM %s dialled (uuid %s, pid %d) and was added", *astuple(qemu))


def _allow_many_files() -> None:
    """Each connection, guest and cable is an fd; the usual soft limit is for select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
