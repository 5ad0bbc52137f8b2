"""The service over a real unix socket, with verbs that only remember; and a raw HTTP client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from linkmgr.errors import (
    AlreadyExists,
    NetworkInUse,
    PortInUse,
    UnknownNetwork,
    UnknownNic,
    UnknownVm,
)
from linkmgr.events import EventBus, EventKind, EventSubscription
from linkmgr.libvirt.domains.controller import DomainController
from linkmgr.libvirt.domains.hook_handler import HookAnswer
from linkmgr.model import (
    Affects,
    BridgeEndpoint,
    Connection,
    DomainInfo,
    Drift,
    Finding,
    LinkState,
    Network,
    NetworkInfo,
    Nic,
    NicRef,
    NicState,
    NotifyMode,
    OrphanDevice,
    Outcome,
    Port,
    VmInfo,
    VmState,
)
from linkmgr.service.config.schema import Config
from linkmgr.service.context import ServiceContext
from linkmgr.service.listeners import listening
from linkmgr.service.main import Service
from linkmgr.service.systemd.notify import SystemdNotifier
from tests.unit import samples

SINCE = datetime(2026, 1, 31, 12, tzinfo=UTC)


class FakeApi:
    """Verbs that remember what they were asked. A NIC is plugged only when `gate` is set."""

    def __init__(self) -> None:
        self.bus = EventBus()
        self.the_nics: dict[NicRef, Nic] = {}
        self.the_networks: dict[str, Network] = {}
        self.the_ports: dict[tuple[str, str], Port] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.plugging = asyncio.Event()
        self.uids: list[int | None] = []
        self.fails: Exception | None = None
        self.findings: list[Finding] = []
        self.missing: str | None = None

    def begin_close(self) -> None:
        pass

    async def add_vm(
        self,
        name: str,
        qmp: str | Path,
        *,
        uid: int | None = None,
        may_use: Callable[[int], bool] | None = None,
    ) -> list[Nic]:
        ref = NicRef(name, "net0")
        self.the_nics[ref] = Nic(
            ref, "virtio-net-pci", "52:54:00:12:34:56", 1500, NicState.UNPLUGGED,
            LinkState.DOWN, LinkState.UP, "hub", SINCE,
        )  # fmt: skip
        self.bus.publish(EventKind.VM_ADDED, name)
        return [self.the_nics[ref]]

    async def remove_vm(self, name: str) -> bool:
        gone = [ref for ref in self.the_nics if ref.vm == name]
        for ref in gone:
            del self.the_nics[ref]
        return bool(gone)

    async def resolve(self, nic: str | NicRef) -> NicRef:
        return samples.named(nic, self.the_nics.values())

    async def vms(self) -> list[VmInfo]:
        return [
            VmInfo(ref.vm, f"/run/{ref.vm}.qmp", VmState.ANSWERS, SINCE, (ref,))
            for ref in self.the_nics
        ]

    async def create_network(
        self, name: str, driver: str, *, drift: str | Drift = Drift.REPAIR, **options: Any
    ) -> Network:
        made = Network(name, driver, options, Drift(drift))
        if self.the_networks.setdefault(name, made) != made:
            raise AlreadyExists(f"network {name} exists with other properties")
        return made

    async def delete_network(self, name: str) -> bool:
        if any(c.network == name for c in await self.connections()):
            raise NetworkInUse(f"network {name} is in use")
        if any(network == name for network, _ in self.the_ports):
            raise NetworkInUse(f"network {name} has ports")
        return self.the_networks.pop(name, None) is not None

    async def networks(self) -> list[Network]:
        return list(self.the_networks.values())

    async def network(self, name: str) -> NetworkInfo:
        nics = [each.nic for each in await self.connections() if each.network == name]
        ports = tuple(await self.ports(name))
        return NetworkInfo(self._network(name), ports, tuple(nics), self.missing)

    async def create_port(self, network: str, name: str, **options: Any) -> Port:
        made = Port(self._network(network), name, options)
        if self.the_ports.setdefault((network, name), made) != made:
            raise AlreadyExists(f"port {made} exists with other options")
        return made

    async def delete_port(self, network: str, name: str) -> bool:
        if any(str(c.port) == f"{network}:{name}" for c in await self.connections()):
            raise PortInUse(f"port {network}:{name} is in use")
        return self.the_ports.pop((network, name), None) is not None

    async def ports(self, network: str) -> list[Port]:
        self._network(network)
        return [port for (net, _), port in self.the_ports.items() if net == network]

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | NotifyMode = NotifyMode.AUTO,
        uid: int | None = None,
    ) -> Outcome:
        self.uids.append(uid)
        before = await self.nic(nic)
        self.plugging.set()
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        name, _, port_name = str(target).partition(":")
        network = self._network(name)
        port = self.the_ports.get((name, port_name)) or Port(network, str(nic), implied=True)
        connection = Connection(
            before.ref, port, BridgeEndpoint("br0"), "0123abcd", "lm0123abcd", SINCE
        )
        after = replace(before, state=NicState.PLUGGED, link=LinkState.UP, connection=connection)
        self.the_nics[before.ref] = after
        self.bus.publish(EventKind.PLUGGED, before.ref, port=str(port), notify=str(notify))
        return Outcome(after, changed=True, timings={"stage": 3.5, "switch": 0.5})

    async def unplug(self, nic: str | NicRef) -> Outcome:
        before = await self.nic(nic)
        after = replace(before, state=NicState.UNPLUGGED, link=LinkState.DOWN, connection=None)
        self.the_nics[before.ref] = after
        self.bus.publish(EventKind.UNPLUGGED, before.ref)
        return Outcome(after, changed=before.connection is not None)

    async def set_link(self, nic: str | NicRef, state: str | LinkState) -> Outcome:
        before = await self.nic(nic)
        after = self.the_nics[before.ref] = replace(before, wanted_link=LinkState(state))
        return Outcome(after, changed=before != after)

    async def nics(self) -> list[Nic]:
        return list(self.the_nics.values())

    async def nic(self, nic: str | NicRef) -> Nic:
        ref = NicRef.parse(nic)
        if ref not in self.the_nics:
            if ref.vm not in {each.vm for each in self.the_nics}:
                raise UnknownVm(f"there is no VM {ref.vm}", hint="add it first")
            raise UnknownNic(f"VM {ref.vm} has no NIC {ref.alias}")
        return self.the_nics[ref]

    async def connections(self) -> list[Connection]:
        return [nic.connection for nic in self.the_nics.values() if nic.connection]

    async def check(self) -> list[Finding]:
        return self.findings

    async def gc(self, *, older_than: float = 60, dry_run: bool = False) -> list[OrphanDevice]:
        return [OrphanDevice("lm1", "web1/net0", "0123abcd", older_than, removed=not dry_run)]

    def events(self) -> EventSubscription:
        return self.bus.subscribe()

    def _network(self, name: str) -> Network:
        if name not in self.the_networks:
            raise UnknownNetwork(f"there is no network {name}", hint="create it first")
        return self.the_networks[name]


class FakeDomainController:
    """A `DomainController` whose verbs, its own, remember what they were to affect."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.affected: list[Affects] = []
        self.notes: tuple[str, ...] = ()
        self.listed: list[DomainInfo] = []
        self.findings: list[Finding] = []
        self.fails: Exception | None = None

    @property
    def verbs(self) -> FakeDomainController:
        return self

    async def resolve(self, nic: str | NicRef) -> NicRef:
        return await self.api.resolve(nic)

    async def plug(
        self, nic: Any, target: Any, *, notify: str | NotifyMode = NotifyMode.AUTO,
        uid: int | None = None, affects: str | Affects = Affects.LIVE,
    ) -> Outcome:  # fmt: skip
        made = await self.api.plug(nic, target, notify=notify, uid=uid)
        return self._done(made, affects)

    async def unplug(self, nic: Any, *, affects: str | Affects = Affects.LIVE) -> Outcome:
        return self._done(await self.api.unplug(nic), affects)

    async def set_link(
        self, nic: Any, state: str | LinkState, *, affects: str | Affects = Affects.LIVE
    ) -> Outcome:
        return self._done(await self.api.set_link(nic, state), affects)

    def _done(self, made: Outcome, affects: str | Affects) -> Outcome:
        self.affected.append(Affects(affects))
        return replace(made, notes=self.notes)

    async def domains(self) -> list[DomainInfo]:
        if self.fails:
            raise self.fails
        return self.listed

    async def check(self) -> list[Finding]:
        return self.findings

    async def on_hook(self, *_: str) -> HookAnswer:
        return HookAnswer(True, "heard")


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@dataclass
class Lab:
    """A running service and what is behind it."""

    api: FakeApi
    context: ServiceContext
    service: Service
    socket: Path
    guests: FakeDomainController
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.socket)
        self.clients.append(writer)
        return reader, writer

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Answer:
        """Make one request on a connection of its own."""
        reader, writer = await self.connect()
        writer.write(request(method, path, body, headers=headers, raw=raw))
        return await read_answer(reader)


def request(
    method: str,
    path: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    raw: bytes | None = None,
) -> bytes:
    """The bytes of a request."""
    data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
    lines = {"Host": "linkmgr", **({"Content-Type": "application/json"} if data else {})}
    lines |= {"Content-Length": str(len(data))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer."""
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        headers = {name.lower(): value for name, _, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(status.split()[1]), headers, raw)


@contextlib.asynccontextmanager
async def running(
    folder: Path, config: Config | None = None, *, path: Path | None = None
) -> AsyncIterator[Lab]:
    """Run the service on a socket in `folder`.

    :param path: of the configuration file that SIGHUP reads again.
    """
    api = FakeApi()
    async with listening(folder / "api.sock") as sock:
        context = ServiceContext(api, config or Config())
        await context.declared.apply(context.config.networks)
        guests = FakeDomainController(api)
        context.domain_controller = cast("DomainController", guests)
        service = Service(context, SystemdNotifier(None), path)
        lab = Lab(api, context, service, folder / "api.sock", guests)
        task = asyncio.create_task(service.run(sock))
        try:
            await service.listens()
            yield lab
        finally:
            api.gate.set()
            for writer in lab.clients:
                writer.close()
            for writer in lab.clients:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            service.stop()
            async with asyncio.timeout(30):
                await task
