"""The networks and ports that the configuration describes, kept true in the verbs.

They are made through the same verbs as any other, so what is ours is written down: the names only,
beside the state of the verbs. Nothing here touches a cable. What the configuration no longer
describes, or describes otherwise, stays while it is in use and goes with its last unplug.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from linkmgr.errors import AlreadyExists, LinkmgrError, NetworkInUse, PortInUse, ReadOnly
from linkmgr.events import EventKind
from linkmgr.protocol import EventStream, Links
from linkmgr.service.config import NetworkSection

log = logging.getLogger(__name__)

#: After these a network may be out of use.
_FREEING = {
    EventKind.UNPLUGGED,
    EventKind.REPLUGGED,
    EventKind.VM_REMOVED,
    EventKind.VM_GONE,
    EventKind.NIC_GONE,
    EventKind.OVERFLOW,
}
_HINT = "change it in the configuration file, and reload the service"


class Configured:
    """Brings the networks and ports of the configuration about.

    :param record: the file with the names of those that are ours; ``None`` keeps none.
    """

    def __init__(self, links: Links, record: Path | None = None) -> None:
        self._links = links
        self._record = record
        self._wanted: Mapping[str, NetworkSection] = {}
        self._ours: dict[str, set[str]] = {}  # networks of the configuration, and their ports
        self._written: dict[str, set[str]] | None = None
        self._pending = False
        self._lock = asyncio.Lock()

    def check_network(self, name: str) -> None:
        """Let a change through the API pass.

        :raise ReadOnly: when the network is the configuration's.
        """
        if name in self._ours or name in self._wanted:
            raise ReadOnly(f"network {name} is described by the configuration", hint=_HINT)

    def check_port(self, network: str, name: str) -> None:
        """Let a change through the API pass.

        :raise ReadOnly: when the port is the configuration's.
        """
        wanted = self._wanted.get(network)
        if name in self._ours.get(network, ()) or (wanted and name in wanted.ports):
            raise ReadOnly(f"port {network}:{name} is described by the configuration", hint=_HINT)

    async def use(self, wanted: Mapping[str, NetworkSection]) -> None:
        """Bring about what a configuration describes. What cannot be is logged."""
        async with self._lock:
            if self._written is None:
                self._ours = await asyncio.to_thread(self._read)
            self._wanted = wanted
            await self._apply()

    async def retry(self) -> None:
        """Remove or change what was in use, if it is no longer."""
        async with self._lock:
            if self._pending:
                await self._apply()

    async def follow(self, events: EventStream) -> None:
        """Try again whenever a network may be out of use, until the events end."""
        try:
            async for event in events:
                if event.kind in _FREEING:
                    await self.retry()
        finally:
            events.close()

    async def _apply(self) -> None:
        self._pending = False
        there = {network.name for network in await self._links.networks()}
        self._ours = {name: ports for name, ports in self._ours.items() if name in there}
        for name in [name for name in self._ours if name not in self._wanted]:
            await self._remove(name)
        for name in self._wanted.keys() - there:
            self._ours[name] = set()
        await self._write()  # before they are made: after a crash they are known to be ours
        for name, section in self._wanted.items():
            try:
                await self._create(name, section)
            except LinkmgrError as error:
                log.error("network %s of the configuration: %s", name, error)  # noqa: TRY400
        await self._write()

    async def _create(self, name: str, section: NetworkSection) -> None:
        async def create() -> None:
            await self._links.create_network(
                name, section.driver, drift=section.drift, **section.options
            )

        try:
            await create()
        except AlreadyExists:
            if name not in self._ours:
                raise  # made through the API, otherwise
            if not await self._remove(name):
                return
            await create()
            log.info("network %s is now what the configuration says", name)
        ports = self._ours.setdefault(name, set())
        for port in [port for port in ports if port not in section.ports]:
            await self._remove_port(name, port)
        for port, options in section.ports.items():
            try:
                await self._links.create_port(name, port, **options)
            except AlreadyExists:
                if port not in ports:
                    raise
                if not await self._remove_port(name, port):
                    continue
                await self._links.create_port(name, port, **options)
            ports.add(port)

    async def _remove(self, name: str) -> bool:
        """Delete a network of ours with its ports; false when it is in use and must wait."""
        removed = [await self._remove_port(name, port) for port in sorted(self._ours[name])]
        if not all(removed):
            return False
        try:
            await self._links.delete_network(name)
        except NetworkInUse as error:
            self._wait(f"network {name}", error)
            return False
        except LinkmgrError as error:
            self._pending = True
            log.error("network %s cannot be deleted: %s", name, error)  # noqa: TRY400
            return False
        del self._ours[name]
        log.info("network %s, which the configuration no longer has, is deleted", name)
        return True

    async def _remove_port(self, network: str, port: str) -> bool:
        try:
            await self._links.delete_port(network, port)
        except PortInUse as error:
            self._wait(f"port {network}:{port}", error)
            return False
        except LinkmgrError as error:
            self._pending = True
            log.error("port %s:%s cannot be deleted: %s", network, port, error)  # noqa: TRY400
            return False
        self._ours[network].discard(port)
        return True

    def _wait(self, what: str, error: LinkmgrError) -> None:
        self._pending = True
        log.warning("%s stays as it is until its last unplug: %s", what, error.what)

    def _read(self) -> dict[str, set[str]]:
        self._written = {}
        if self._record is None:
            return {}
        try:
            document = json.loads(self._record.read_text())
            found = {str(name): {str(port) for port in ports} for name, ports in document.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            log.error(  # noqa: TRY400 - the reason is in it
                "%s cannot be read: %s; networks that the configuration no longer has stay",
                self._record, error,
            )  # fmt: skip
            return {}
        self._written = {name: set(ports) for name, ports in found.items()}
        return found

    async def _write(self) -> None:
        if self._record is None or self._ours == self._written:
            return
        text = json.dumps({name: sorted(ports) for name, ports in sorted(self._ours.items())})
        try:
            await asyncio.to_thread(_replace, self._record, text + "\n")
        except OSError as error:
            log.error("%s cannot be written: %s", self._record, error)  # noqa: TRY400
            return
        self._written = {name: set(ports) for name, ports in self._ours.items()}


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
