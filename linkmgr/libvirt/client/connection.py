"""libvirt, for asyncio: what happens to its domains, and what can be asked of them.

Nothing here is needed for a cable: what libvirt is asked can fail, and be late, without harm. Read
`Libvirt` first; `handle` has one connection, `worker` its thread, `api_calls` what runs in it,
`pool` how many there are.

**Of each domain one call is under way at most.** libvirt can hold a call: while a hook of that
domain runs, and any call that lists domains with it, or while its QEMU does not answer. The call's
own caller leaves after its `timeout`; those who ask about the same domain meanwhile are told at
once that it is busy, and those who ask about others go on over other connections. See
`linkmgr.libvirt.client.pool`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from linkmgr.errors import LibvirtError, LibvirtUnreachable
from linkmgr.libvirt.client import api_calls
from linkmgr.libvirt.client.api_calls import DomainView
from linkmgr.libvirt.client.events import (
    DomainEvent,
    DomainEventBroadcast,
    DomainEventKind,
    DomainEventSubscription,
    lifecycle,
)
from linkmgr.libvirt.client.handle import LibvirtConnection
from linkmgr.libvirt.client.pool import ConnectionPool

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a call waits when nobody says otherwise.
CALL_TIMEOUT_S = 10.0
#: Seconds between two attempts to connect: at first, and at most.
RECONNECT_INTERVAL_S, MAX_RECONNECT_INTERVAL_S = 0.5, 5.0
CONFIG_DIR = Path("/etc/libvirt/qemu")  #: which only a host with libvirt has
SOCKET_DIR = Path("/run/libvirt")  #: where the daemons of ``qemu:///system`` listen


class Libvirt:
    """libvirt at one URI, for as long as `run` runs.

    The connection is made again whenever it is lost. While there is none, each call raises
    `LibvirtUnreachable` at once. Every call that has a `timeout` raises it also when libvirt did
    not answer within that many seconds, with `sent` saying whether it was asked; and
    `LibvirtRefused` when libvirt answered with an error. A domain is named by its uuid or its name.

    :param uri: as for virsh: ``qemu:///system``, ``qemu:///session``. Whether libvirtd answers or
        virtqemud makes no difference.
    :param run_dir: where libvirt keeps its QEMUs' pid files, by default that of the URI.
    """

    def __init__(self, uri: str, *, run_dir: Path | None = None) -> None:
        self.uri = uri
        self.run_dir = run_dir or default_run_dir(uri)
        self.problem: str | None = "it has not been tried yet"  #: why there is no connection
        self._hint: str | None = None  #: what to do about that
        self._broadcast = DomainEventBroadcast()
        self._connection: LibvirtConnection | None = None
        self._pool: ConnectionPool | None = None
        self._up = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None and self._connection.alive

    @property
    def installed(self) -> bool:
        """Whether this host has a libvirt at all, which may be stopped: else nothing is missed."""
        return self.connected or self.uri != "qemu:///system" or CONFIG_DIR.exists()

    def events(self) -> DomainEventSubscription:
        """Subscribe from now on: an async iterator, with `close`.

        Its first event is `CONNECTED` once there is a connection. After each `CONNECTED` whatever
        libvirt says has to be compared: what happened meanwhile was told to nobody. It is told
        after the events are subscribed, so nothing is missed between the two.
        """
        return self._broadcast.subscribe(connected=self.connected)

    async def run(self) -> None:
        """Keep a connection, for ever; to be cancelled. Then all subscriptions end."""
        pause = RECONNECT_INTERVAL_S
        try:
            while True:
                try:
                    _look_for_daemon(self.uri)
                    # For as long as it takes: a libvirtd that is stopped answers when it goes on,
                    # and each further attempt would only add to what waits for it.
                    connection = await LibvirtConnection.open(self.uri, self._subscribe)
                except Exception as error:  # noqa: BLE001 - nobody else would connect again
                    self._note(error)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, MAX_RECONNECT_INTERVAL_S)
                    continue
                pause = RECONNECT_INTERVAL_S
                await self._while_connected(connection)
        finally:
            self._broadcast.close()

    async def wait_connected(self, *, timeout: float = CALL_TIMEOUT_S) -> None:
        """Wait until there is a connection.

        :raise LibvirtUnreachable: there is none within `timeout` seconds.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._up.wait(), timeout)
        if not self.connected:
            raise self._unreachable("waiting for libvirt")

    async def domains(self, *, timeout: float = CALL_TIMEOUT_S) -> list[DomainView]:
        """All domains, by name, running or not."""
        return await self._call(
            "the list of domains",
            "",
            lambda api, conn: api_calls.domains(api, conn, self.run_dir),
            timeout,
        )

    async def domain(self, which: str, *, timeout: float = CALL_TIMEOUT_S) -> DomainView:
        """One domain.

        :raise LibvirtRefused: with `no_domain`, when there is none.
        """
        return await self._call(
            f"domain {which}",
            which,
            lambda _, conn: api_calls.view(api_calls.find_domain(conn, which), self.run_dir),
            timeout,
        )

    async def xml(self, which: str, *, live: bool, timeout: float = CALL_TIMEOUT_S) -> str:
        """A domain's XML, without passwords.

        :param live: what holds now; else what holds for the next start. Of a domain that does not
            run both are the same.
        """
        return await self._call(
            f"the XML of domain {which}",
            which,
            lambda api, conn: api_calls.xml(api, conn, which, live=live),
            timeout,
        )

    async def network_xml(self, name: str, *, timeout: float = CALL_TIMEOUT_S) -> str | None:
        """The XML of a network of libvirt's own; ``None`` if there is none of that name."""
        return await self._call(
            f"network {name} of libvirt",
            "/network",  # no domain is called that; one at a time will do
            lambda api, conn: api_calls.network_xml(api, conn, name),
            timeout,
        )

    async def metadata(
        self, which: str, uri: str, *, live: bool, timeout: float = CALL_TIMEOUT_S
    ) -> str | None:
        """The element of a namespace in a domain's metadata; ``None`` if there is none.

        :param live: of the running domain; else of what holds for the next start.
        :raise LibvirtRefused: also for `live` when the domain does not run, and for the other when
            it is transient.
        """
        return await self._call(
            f"the metadata of domain {which}",
            which,
            lambda api, conn: api_calls.metadata(api, conn, which, uri, live=live),
            timeout,
        )

    async def set_metadata(
        self,
        which: str,
        uri: str,
        key: str,
        xml: str | None,
        *,
        live: bool,
        config: bool,
        timeout: float = CALL_TIMEOUT_S,
    ) -> None:
        """Write the element of a namespace in a domain's metadata. A `METADATA` event follows.

        :param key: the prefix that libvirt gives the namespace.
        :param xml: the element, without a declaration of the namespace's prefix or with it;
            ``None`` removes it, and succeeds also if there is none.
        :param live: of the running domain.
        :param config: of what holds for the next start.
        """
        await self._call(
            f"writing the metadata of domain {which}",
            which,
            lambda api, conn: api_calls.set_metadata(
                api, conn, which, uri=uri, key=key, text=xml, live=live, config=config
            ),
            timeout,
        )

    async def set_link(
        self, which: str, mac: str, up: bool, *, timeout: float = CALL_TIMEOUT_S
    ) -> None:
        """Set the link of a running domain's NIC, as ``virsh domif-setlink`` does.

        libvirt asks QEMU only if its own idea of the link changes by this.

        :raise LibvirtRefused: also when not exactly one NIC has that address.
        """
        await self._call(
            f"the link of {mac} in domain {which}",
            which,
            lambda api, conn: api_calls.set_link(api, conn, which, mac, up=up),
            timeout,
        )

    async def _call(
        self, what: str, domain: str, function: Callable[[Any, Any], T], timeout: float
    ) -> T:
        if self._pool is None:
            raise self._unreachable(what)
        return await self._pool.call(what, domain, function, timeout)

    def _unreachable(self, what: str) -> LibvirtUnreachable:
        at = "" if self.uri in str(self.problem) else f" at {self.uri}"
        return LibvirtUnreachable(
            f"{what}: there is no connection to libvirt{at}: {self.problem}",
            hint=self._hint
            or "it is connected by itself once libvirt is there; see 'linkmgr doctor'",
        )

    async def _while_connected(self, connection: LibvirtConnection) -> None:
        """Use a connection until it is lost."""
        self._connection, self.problem = connection, None
        self._pool = ConnectionPool(connection)
        self._up.set()
        log.info("connected to libvirt at %s", self.uri)
        self._broadcast.publish(DomainEvent(DomainEventKind.CONNECTED))
        try:
            await connection.lost.wait()
            self._note(LibvirtUnreachable("the connection was lost"))
            self._broadcast.publish(DomainEvent(DomainEventKind.LOST))
        finally:
            self._pool.close()
            self._connection = self._pool = None
            self._up.clear()
            self.problem = self.problem or "the service ends"
            await asyncio.shield(
                asyncio.create_task(connection.close(), name=f"libvirt {self.uri}")
            )

    def _note(self, error: Exception) -> None:
        """Say once why there is no connection."""
        known = error if isinstance(error, LibvirtError) else None
        said = known.what if known else str(error)
        if said != self.problem:
            level = logging.WARNING if self.installed or not known else logging.INFO
            trace = None if known else error
            log.log(level, "no libvirt at %s: %s", self.uri, error, exc_info=trace)
        self.problem, self._hint = said, known.hint if known else None

    # --- events -----------------------------------------------------------------------------------
    def _subscribe(self, connection: LibvirtConnection, api: Any, conn: Any) -> None:
        """Ask for all events that there is a kind of; in the thread."""
        lv = api.libvirt
        wanted = (
            (lv.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
            (lv.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot),
            (lv.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._on_device_removed),
            (lv.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._on_metadata),
        )
        for event, callback in wanted:
            with contextlib.suppress(lv.libvirtError):  # the driver has no such event
                number = conn.domainEventRegisterAny(None, event, callback, connection)
                connection.on_close(partial(conn.domainEventDeregisterAny, number))

    def _on_lifecycle(
        self, _: Any, domain: Any, event: int, detail: int, connection: LibvirtConnection
    ) -> None:
        if said := lifecycle(event, detail):
            self._tell(connection, said[0], domain, said[1])

    def _on_reboot(self, _: Any, domain: Any, connection: LibvirtConnection) -> None:
        self._tell(connection, DomainEventKind.REBOOTED, domain, "")

    def _on_device_removed(
        self, _: Any, domain: Any, alias: str, connection: LibvirtConnection
    ) -> None:
        self._tell(connection, DomainEventKind.DEVICE_REMOVED, domain, alias)

    def _on_metadata(
        self, _: Any, domain: Any, kind: int, uri: str | None, connection: LibvirtConnection
    ) -> None:
        del kind
        self._tell(connection, DomainEventKind.METADATA, domain, uri or "")

    def _tell(
        self, connection: LibvirtConnection, kind: DomainEventKind, domain: Any, detail: str
    ) -> None:
        if connection is self._connection:  # before CONNECTED nobody knows of what to compare
            self._broadcast.publish(DomainEvent(kind, domain.UUIDString(), domain.name(), detail))


def _look_for_daemon(uri: str) -> None:
    """Spare a host without libvirt the loading of libvirt-python.

    :raise LibvirtUnreachable: no daemon has made its socket here.
    """
    sockets = ("virtqemud-sock", "libvirt-sock")
    if uri == "qemu:///system" and not any((SOCKET_DIR / name).exists() for name in sockets):
        raise LibvirtUnreachable(
            f"no daemon of libvirt listens in {SOCKET_DIR}",
            hint="'systemctl start libvirtd.socket', or virtqemud.socket, if you use libvirt",
        )


def default_run_dir(uri: str) -> Path:
    """Where the libvirt of a URI keeps its QEMUs' pid files."""
    if uri.partition("?")[0].endswith("/session"):
        base = os.environ.get("XDG_RUNTIME_DIR")
        place = Path(base) if base else Path.home() / ".cache"
        return place / "libvirt/qemu/run"
    return Path("/run/libvirt/qemu")
