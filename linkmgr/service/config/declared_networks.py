"""The networks and ports that the configuration declares, reconciled with those there are.

They are made through the same verbs as any other, so what is ours is written down: the names only,
beside the state of the verbs. Nothing here touches a cable. What the configuration no longer
describes, or describes otherwise, stays while it is in use and goes with its last unplug.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from linkmgr.api import EventStream, LinkApi
from linkmgr.errors import AlreadyExists, LinkmgrError, NetworkInUse, PortInUse, ReadOnly
from linkmgr.events import EventKind
from linkmgr.model import Finding, Port
from linkmgr.service.config.schema import NetworkSection
from linkmgr.state.codec import JsonReader
from linkmgr.state.directory import SavedDocument, StateDirectory

log = logging.getLogger(__name__)

DOCUMENT_NAME = "configuration"
#: Seconds until a network that could not be made is tried again: on a disk that was full, say.
RETRY_INTERVAL_S = 5.0
#: After these a network may be out of use.
_RELEASING_EVENTS = {
    EventKind.UNPLUGGED,
    EventKind.REPLUGGED,
    EventKind.VM_REMOVED,
    EventKind.VM_GONE,
    EventKind.NIC_GONE,
    EventKind.OVERFLOW,
}
_HINT = "change it in the configuration file, and reload the service"


class DeclaredNetworks:
    """Reconciles networks and ports with what the configuration declares.

    :param documents: the state directory, in a document of which are the names of ours.
    """

    def __init__(self, api: LinkApi, documents: StateDirectory) -> None:
        self._api = api
        self._documents = documents
        self._wanted: Mapping[str, NetworkSection] = {}
        self._ours: dict[str, set[str]] = {}  # networks of the configuration, and their ports
        self._saved = SavedDocument(
            documents, DOCUMENT_NAME, "which networks are the configuration's", self._content
        )
        self._is_read = False
        self._pending = False
        self._waiting: dict[str, str] = {}  # what is in use -> by what, as it was logged
        self._failures: dict[str, LinkmgrError] = {}  # networks that could not be made
        self._lock = asyncio.Lock()

    def check_network(self, name: str) -> None:
        """Let a change through the API pass.

        :raise ReadOnly: when the network is the configuration's.
        """
        if name in self._wanted:
            raise ReadOnly(f"network {name} is described by the configuration", hint=_HINT)
        self.check_stays(name)

    def check_port(self, network: str, name: str) -> None:
        """Let a change through the API pass.

        :raise ReadOnly: when the port is the configuration's.
        """
        self.check_stays(network)
        wanted = self._wanted.get(network)
        if name in self._ours.get(network, ()) or (wanted and name in wanted.ports):
            raise ReadOnly(f"port {network}:{name} is described by the configuration", hint=_HINT)

    def check_stays(self, network: str) -> None:
        """Let a change through the API pass that only makes sense on a network that stays.

        :raise ReadOnly: when it was the configuration's, and only waits for its last unplug.
        """
        if network in self._ours and network not in self._wanted:
            raise ReadOnly(
                f"network {network} is no longer in the configuration: it stays with its ports "
                "until its last unplug",
                hint="unplug its NICs, or describe it again",
            )

    async def apply(self, wanted: Mapping[str, NetworkSection]) -> None:
        """Bring about what a configuration describes. What cannot be is logged."""
        async with self._lock:
            if not self._is_read:
                self._ours = await self._documents.read(DOCUMENT_NAME, _read) or {}
                self._saved.is_written()
                self._is_read = True
            self._wanted = wanted
            self._waiting.clear()
            await self._reconcile()

    async def retry(self) -> None:
        """Remove or change what was in use, if it is no longer."""
        async with self._lock:
            if self._pending:
                await self._reconcile()

    def findings(self) -> list[Finding]:
        """The networks of the configuration that could not be made, and why."""
        return [
            Finding(
                error.code, f"network:{name}", f"it is not as configured: {error.what}",
                error.hint or "see the log",
            )
            for name, error in self._failures.items()
        ]  # fmt: skip

    async def retry_failures(self) -> None:
        """Try again and again to make networks that could not be, until cancelled."""
        while True:
            await asyncio.sleep(RETRY_INTERVAL_S)
            if self._failures:
                async with self._lock:
                    await self._reconcile()

    async def follow(self, events: EventStream) -> None:
        """Try again whenever a network may be out of use, until the events end."""
        try:
            async for event in events:
                if event.kind in _RELEASING_EVENTS:
                    await self.retry()
        finally:
            events.close()

    async def _reconcile(self) -> None:
        self._pending = False
        before, self._failures = self._failures, {}
        there = {network.name for network in await self._api.networks()}
        self._ours = {name: ports for name, ports in self._ours.items() if name in there}
        for name in [name for name in self._ours if name not in self._wanted]:
            await self._remove(name)
        for name in self._wanted.keys() - there:
            self._ours[name] = set()
        await self._saved.save()  # before they are made: after a crash they are known to be ours
        for name, section in self._wanted.items():
            try:
                await self._create(name, section)
            except LinkmgrError as error:
                self._failures[name] = error
                if str(error) != str(before.get(name)):
                    log.error("network %s of the configuration: %s", name, error)
        await self._saved.save()

    async def _create(self, name: str, section: NetworkSection) -> None:
        async def create() -> None:
            await self._api.create_network(
                name, section.driver, drift=section.drift, **section.options
            )

        try:
            await create()
        except AlreadyExists:
            if name not in self._ours:
                raise  # made through the API, otherwise
            others = await self._remove(name)
            if others is None:
                return
            self._ours[name] = set()
            await create()
            await self._put_back(name, [port for port in others if port.name not in section.ports])
            log.info("network %s is now what the configuration says", name)
        ports = self._ours.setdefault(name, set())
        for port in [port for port in ports if port not in section.ports]:
            await self._remove_port(name, port)
        for port, options in section.ports.items():
            try:
                await self._api.create_port(name, port, **options)
            except AlreadyExists:
                if port not in ports:
                    raise
                if not await self._remove_port(name, port):
                    continue
                await self._api.create_port(name, port, **options)
            ports.add(port)

    async def _remove(self, name: str) -> list[Port] | None:
        """Delete a network of ours with all its ports.

        :return: the ports that were made through the API; ``None`` when the network is in use, so
            that it must wait with all of them.
        """
        if any(each.network == name for each in await self._api.connections()):
            self._wait(f"network {name}", "a NIC is plugged into it")
            return None
        deleted = []
        try:
            for port in await self._api.ports(name):
                await self._api.delete_port(name, port.name)
                deleted.append(port)
            await self._api.delete_network(name)
        except (NetworkInUse, PortInUse) as error:
            self._wait(f"network {name}", error.what)
        except LinkmgrError as error:
            self._pending = True
            log.error("network %s cannot be deleted: %s", name, error)
        else:
            log.info("network %s, which the configuration no longer has, is deleted", name)
            ours = self._ours.pop(name)
            return [port for port in deleted if port.name not in ours]
        await self._put_back(name, deleted)
        return None

    async def _put_back(self, network: str, ports: Iterable[Port]) -> None:
        for port in ports:
            try:
                await self._api.create_port(network, port.name, **port.options)
            except LinkmgrError as error:
                log.error("port %s:%s is lost: %s", network, port.name, error)

    async def _remove_port(self, network: str, port: str) -> bool:
        try:
            await self._api.delete_port(network, port)
        except PortInUse as error:
            self._wait(f"port {network}:{port}", error.what)
            return False
        except LinkmgrError as error:
            self._pending = True
            log.error("port %s:%s cannot be deleted: %s", network, port, error)
            return False
        self._ours[network].discard(port)
        return True

    def _wait(self, what: str, why: str) -> None:
        self._pending = True
        if self._waiting.get(what) != why:
            self._waiting[what] = why
            log.warning("%s stays as it is until its last unplug: %s", what, why)

    def _content(self) -> dict[str, object]:
        names = {name: {"ports": sorted(ports)} for name, ports in sorted(self._ours.items())}
        return {"networks": names} if names else {}


def _read(reader: JsonReader) -> dict[str, set[str]]:
    return reader.children("networks", lambda network: set(network.texts("ports")))
