"""`DomainController` over verbs, a libvirt and processes that are only remembered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest

from linkmgr.errors import (
    LibvirtRefused,
    LibvirtUnreachable,
    LinkmgrError,
    NetworkInUse,
    UnknownNetwork,
    UnknownNic,
    UnknownVm,
)
from linkmgr.events import Event, EventBus, EventKind, EventSubscription
from linkmgr.inventory.bindings import PortBindings
from linkmgr.libvirt.client.api_calls import DomainState, DomainView
from linkmgr.libvirt.client.events import (
    DomainEvent,
    DomainEventBroadcast,
    DomainEventKind,
    DomainEventSubscription,
)
from linkmgr.libvirt.domains.controller import DomainController
from linkmgr.libvirt.xml.desired_cables import CABLES_NAMESPACE
from linkmgr.manager.manager import LinkManager
from linkmgr.model import (
    BridgeEndpoint,
    Connection,
    LinkState,
    MonitorTransport,
    Network,
    Nic,
    NicRef,
    NicState,
    NotifyMode,
    Outcome,
    Port,
    VmInfo,
    VmState,
    check_name,
)
from linkmgr.state.directory import StateDirectory
from tests.unit import samples

UUID = "11111111-2222-3333-4444-555555555555"
SINCE = datetime(2026, 1, 31, 12, tzinfo=UTC)
NIC = """<interface type='ethernet'><mac address='52:54:00:00:00:0{n}'/>
  <target dev='lmtap{n}'/><model type='virtio'/><link state='down'/><alias name='ua-net{n}'/>
</interface>"""


def cables(*lines: str) -> str:
    """A ``<cables>`` element as it stands in a domain's XML."""
    return f"<lm:cables xmlns:lm='{CABLES_NAMESPACE}'>{''.join(lines)}</lm:cables>"


def cable(nic: str, **attributes: str) -> str:
    """One ``<cable>``."""
    said = "".join(f" {name}='{value}'" for name, value in attributes.items())
    return f"<lm:cable nic='{nic}'{said}/>"


def domain_xml(wanted: str = "", *, nics: int = 2, prepared: int = 2, name: str = "web1") -> str:
    """A domain with NICs ua-net0, ua-net1, ..., the first few of them prepared."""
    records = "".join(f"<p:nic alias='ua-net{n}'/>" for n in range(prepared))
    element = f"<p:prepared xmlns:p='urn:linkmgr:prepared'>{records}</p:prepared>"
    return f"""<domain type='kvm'><name>{name}</name><uuid>{UUID}</uuid>
<metadata>{element if prepared else ""}{wanted}</metadata>
<devices>{"".join(NIC.format(n=n) for n in range(nics))}</devices></domain>"""


NET0 = NicRef("web1", "ua-net0")
BLUE = cables(cable("ua-net0", network="blue"))
RED = cables(cable("ua-net0", network="red"))
BOTH = cables(cable("ua-net0", network="blue"), cable("ua-net1", network="red", link="down"))


class ConnectedQemu:
    """A QEMU that has dialled."""

    name, uuid, pid = "web1", UUID.upper(), 1


class FakeManager:
    """Verbs that remember. What `broken` names fails; `gate` holds up every plug."""

    def __init__(self) -> None:
        self.bus = EventBus()
        self.documents = StateDirectory(None)
        self.vms: dict[str, VmInfo] = {}
        self.the_nics: dict[NicRef, Nic] = {}
        self.the_networks: dict[str, Network] = {}
        self.processes: dict[str, tuple[int | None, int | None]] = {}
        self.calls: list[str] = []
        self.broken: dict[str, LinkmgrError] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self._boots = 0
        self.started: dict[int, int] = {}  #: of the processes that live
        self.bindings = cast("PortBindings", FakePortBindings())

    def boot(
        self,
        name: str = "web1",
        *,
        nics: int = 2,
        running: bool = True,
        transport: MonitorTransport = MonitorTransport.INBOUND,
        watched: bool = True,
    ) -> int:
        """A QEMU is there anew; its pid, which only libvirt knows if it is not `watched`."""
        qmp = {MonitorTransport.SOCKET: "/run/web1.qmp"}.get(transport, f"{transport}:{UUID}")
        refs = tuple(NicRef(name, f"ua-net{n}") for n in range(nics))
        self.vms[name] = VmInfo(name, qmp, VmState.ANSWERS, SINCE, refs, transport, running)
        pid = 1000 + self._boots
        self._boots += 1
        self.started[pid] = 5 * pid
        self.processes[name] = (pid, 5 * pid) if watched else (None, None)
        for ref in refs:
            self.the_nics[ref] = Nic(
                ref, "virtio-net-pci", f"52:54:00:00:00:0{ref.alias[-1]}", 1500,
                NicState.UNPLUGGED, LinkState.DOWN, LinkState.UP, "hub", SINCE,
            )  # fmt: skip
        self.bus.publish(EventKind.VM_ADDED, name)
        return pid

    def resume(self, name: str = "web1") -> None:
        self.vms[name] = replace(self.vms[name], running=True)
        self.bus.publish(EventKind.VM_RESUMED, name)

    def end(self, name: str = "web1") -> None:
        """Its QEMU has ended."""
        self.vms[name] = replace(self.vms[name], state=VmState.GONE)
        self.started.clear()
        self.bus.publish(EventKind.VM_GONE, name)

    def on(self) -> dict[str, str]:
        """What is plugged into what."""
        return {
            ref.alias: str(nic.connection.port) for ref, nic in self.the_nics.items()
            if nic.connection
        }  # fmt: skip

    def network(self, name: str) -> None:
        self.the_networks[name] = Network(name, "bridge", {"bridge": f"br-{name}"})
        self.bus.publish(EventKind.NETWORK_ADDED, name)

    # --- as LinkManager has it ---
    async def resolve(self, nic: str | NicRef) -> NicRef:
        return samples.named(nic, self.the_nics.values(), self.vms)

    async def add_vm(self, name: str, qmp: str) -> list[Nic]:
        self.calls.append(f"add_vm {name} {qmp}")
        if "add_vm" in self.broken:
            raise self.broken["add_vm"]
        self.boot(name, running=False)
        return []

    async def forget_ended(self, name: str) -> bool:
        check_name("VM", name)
        if name in self.vms and self.vms[name].state is VmState.GONE:
            del self.vms[name], self.processes[name]
            self.the_nics = {ref: nic for ref, nic in self.the_nics.items() if ref.vm != name}
            return True
        return False

    def snapshot(self) -> tuple[list[VmInfo], list[Nic]]:
        return list(self.vms.values()), list(self.the_nics.values())

    def snapshot_vm(self, name: str) -> VmInfo | None:
        return self.vms.get(name)

    def process_of(self, name: str) -> tuple[int | None, int | None] | None:
        return self.processes.get(name)

    def events(self) -> EventSubscription:
        return self.bus.subscribe()

    def publish(self, kind: EventKind, subject: object, **details: object) -> None:
        self.bus.publish(kind, subject, **details)

    async def networks(self) -> list[Network]:
        return list(self.the_networks.values())

    async def connections(self) -> list[Connection]:
        return [nic.connection for nic in self.the_nics.values() if nic.connection]

    async def create_network(self, name: str, driver: str, **options: Any) -> Network:
        self.the_networks.setdefault(name, Network(name, driver, options))
        return self.the_networks[name]

    async def delete_network(self, name: str) -> bool:
        if any(each.network == name for each in await self.connections()):
            raise NetworkInUse(f"network {name} is in use")
        return self.the_networks.pop(name, None) is not None

    async def plug(
        self,
        nic: NicRef,
        target: str,
        *,
        notify: NotifyMode = NotifyMode.AUTO,
        uid: int | None = None,
    ) -> Outcome:
        before = self._nic("plug", nic, target)
        await self.gate.wait()
        name, _, port = target.partition(":")
        if name not in self.the_networks:
            raise UnknownNetwork(f"there is no network {name}", hint="create it first")
        made = Port(self.the_networks[name], port or str(nic), implied=not port)
        here = before.connection
        after = replace(
            before, state=NicState.PLUGGED, link=before.wanted_link,
            connection=Connection(nic, made, BridgeEndpoint("br0"), "0123abcd", "lm0", SINCE),
        )  # fmt: skip
        changed = here is None or here.port != made
        self.the_nics[nic] = after
        return Outcome(after, changed)

    async def unplug(self, nic: NicRef) -> Outcome:
        before = self._nic("unplug", nic)
        after = replace(before, state=NicState.UNPLUGGED, link=LinkState.DOWN, connection=None)
        self.the_nics[nic] = after
        self.bus.publish(EventKind.UNPLUGGED, nic)
        return Outcome(after, changed=before.connection is not None)

    async def set_link(self, nic: NicRef, state: LinkState) -> Outcome:
        before = self._nic("set_link", nic, state)
        after = self.the_nics[nic] = replace(before, wanted_link=LinkState(state))
        return Outcome(after, changed=before != after)

    async def ensure_backend_placeholder(self, nic: NicRef) -> Outcome:
        return Outcome(self._nic("ensure_backend_placeholder", nic), changed=True)

    async def set_device_name(self, nic: NicRef, name: str | None) -> Outcome:
        return Outcome(self._nic("set_device_name", nic, name), changed=True)

    def _nic(self, verb: str, nic: NicRef, *words: object) -> Nic:
        self.calls.append(" ".join(str(each) for each in (verb, nic, *words)))
        for broken in (f"{verb} {nic}", verb):
            if broken in self.broken:
                raise self.broken[broken]
        if nic.vm not in self.vms:
            raise UnknownVm(f"there is no VM {nic.vm}")
        if nic not in self.the_nics:
            raise UnknownNic(f"VM {nic.vm} has no NIC {nic.alias}", hint="its NICs are: ...")
        return self.the_nics[nic]


class FakePortBindings:
    """Port bindings that are remembered."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.broken: LinkmgrError | None = None

    async def bind(self, nic: str, target: str, *, mac: str, mtu: int) -> None:
        if self.broken is not None:
            raise self.broken.about(nic)
        self.held[nic] = f"{target} {mac} {mtu}"

    async def release_all(self, vm: str) -> None:
        self.held = {nic: port for nic, port in self.held.items() if nic.split("/")[0] != vm}


class FakeLibvirt:
    """A libvirt with one domain, live and stored."""

    def __init__(self) -> None:
        self.broadcast = DomainEventBroadcast()
        self.connected = self.installed = True
        self.live = self.stored = domain_xml()
        self.others: dict[str, str] = {}  #: more domains that run: the XML of each, by its uuid
        self.active = True
        self.persistent = True
        self.pid: int | None = None
        self.networks: dict[str, str] = {}
        self.calls: list[str] = []
        self.fails: LinkmgrError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def tell(self, kind: DomainEventKind, detail: str = "") -> None:
        self.broadcast.publish(DomainEvent(kind, UUID, "web1", detail))

    def edit(self, wanted: str) -> None:
        """Somebody changes the live metadata."""
        self.live = domain_xml(wanted)
        self.tell(DomainEventKind.METADATA, CABLES_NAMESPACE)

    # --- as Libvirt has it ---
    def events(self) -> DomainEventSubscription:
        return self.broadcast.subscribe(connected=self.connected)

    async def domains(self) -> list[DomainView]:
        return [await self.domain(each) for each in (UUID, *self.others)]

    async def domain(self, which: str, /) -> DomainView:
        await self._called(f"domain {which}")
        if which in self.others:
            name = f"web{list(self.others).index(which) + 2}"
            return DomainView(which, name, True, DomainState.RUNNING, None, True)
        if which not in (UUID, "web1"):
            raise LibvirtRefused("Domain not found", number=LibvirtRefused.NO_DOMAIN)
        state = DomainState.RUNNING if self.active else DomainState.SHUT_OFF
        pid = self.pid if self.active else None
        return DomainView(UUID, "web1", self.active, state, pid, self.persistent)

    async def xml(self, which: str, /, *, live: bool) -> str:
        await self._called(f"xml {which} {live}")
        if which in self.others:
            return self.others[which]
        return self.live if self.active and (live or not self.persistent) else self.stored

    async def network_xml(self, name: str, /) -> str | None:
        await self._called(f"network_xml {name}")
        return self.networks.get(name)

    async def set_metadata(
        self, which: str, uri: str, key: str, xml: str | None, /, *, live: bool, config: bool
    ) -> None:
        await self._called(f"set_metadata {which} {live} {config}")
        if config and not self.persistent:
            raise LibvirtRefused("transient domains do not have any persistent config", number=55)
        # libvirt adds the namespace to what it is given without.
        made = (xml or "").replace("<cables>", f"<cables xmlns='{uri}'>")
        if live:
            self.live = domain_xml(made)
        if config:
            self.stored = domain_xml(made)
        self.tell(DomainEventKind.METADATA, uri)

    async def _called(self, what: str) -> None:
        self.calls.append(what)
        await self.gate.wait()
        if not self.connected:
            raise LibvirtUnreachable("there is no connection to libvirt")
        if self.fails is not None:
            raise self.fails


@dataclass
class Lab:
    """A controller that runs, and what is around it."""

    folder: Path
    manager: FakeManager = field(default_factory=FakeManager)
    libvirt: FakeLibvirt = field(default_factory=FakeLibvirt)
    retry_intervals: tuple[float, ...] = (0.01,)
    events: list[Event] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def controller(self, *, libvirt: bool = True) -> AsyncIterator[DomainController]:
        """Run one; several in a row are one service that is restarted."""
        self.manager.documents = StateDirectory(self.folder)  # a later run has read nothing yet
        made = DomainController(
            cast("LinkManager", self.manager),
            self.libvirt if libvirt else None,
            retry_intervals=self.retry_intervals,
        )
        self.folder.mkdir(exist_ok=True)
        events = self.manager.events()
        with pytest.MonkeyPatch.context() as patch:
            for module in ("domains", "controller", "unconnected"):
                patch.setattr(
                    f"linkmgr.libvirt.domains.{module}.started_at", self.manager.started.get
                )
            async with made:
                yield made
                await self.settle()
        events.close()
        self.events += [event async for event in events]

    async def settle(self) -> None:
        """Let everything that can happen now happen; what waits for something is left waiting."""
        quiet = 0
        for _ in range(200):
            await asyncio.sleep(0.002)
            names = [task.get_name() for task in asyncio.all_tasks()]
            busy = any(name.startswith(("reconcile", "forget", "tidy")) for name in names)
            quiet = 0 if busy else quiet + 1
            if quiet == 10:
                return

    def told(self) -> list[MappingProxyType[str, object]]:
        """What was told to be not applied."""
        return [
            MappingProxyType({"subject": event.subject, **event.details})
            for event in self.events if event.kind is EventKind.NOT_APPLIED
        ]  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """One with the networks blue and red."""
    made = Lab(tmp_path / "state")
    for name in ("blue", "red"):
        made.manager.network(name)
    return made
