"""A NIC whose cables are swapped, with fakes on both sides that write down what they are asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import pytest

from linkmgr.drivers import Attachment, NetworkDriver
from linkmgr.model import (
    BridgeEndpoint,
    Endpoint,
    EndpointKind,
    Network,
    NicRef,
    NotifyMode,
    Offer,
    Port,
)
from linkmgr.state.directory import StateDirectory
from linkmgr.state.journal import Journal, VmJournal, VmRecord
from linkmgr.swap import steps
from linkmgr.swap.carrier import Carrier, CarrierClock
from linkmgr.swap.steps import ManagedNic, Step
from linkmgr.wirings import Cable, Wiring

NIC = NicRef("web1", "net0")
# What undoes a cable to red: its claim alone, what was realised too, what was staged too.
FREE = ["free red"]
TERMINATE = ["terminate red", *FREE]
RELEASE = ["release red", *TERMINATE]


class Log(list[str]):
    """What was called, in order; raises where the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, list[BaseException]] = {}

    def fail(self, call: str, *errors: BaseException) -> None:
        """Let the next calls raise these, one after another."""
        self.failures[call] = list(errors)

    def note(self, call: str) -> None:
        self.append(call)
        if self.failures.get(call):
            raise self.failures[call].pop(0)


class FakeWiring(Wiring):
    """A wiring that writes down what it was asked for."""

    name: ClassVar[str] = "fake"

    def __init__(self, log: Log) -> None:
        self.log = log
        self.foreign: list[Cable] = []

    async def offer(self, nic: NicRef) -> Offer:
        self.log.note("offer")
        return Offer(nic, (EndpointKind.BRIDGE,), mac="52:54:00:00:00:01")

    def new_cable(self, ident: str, offer: Offer, endpoint: Endpoint) -> Cable:
        return Cable(id=ident, nic=offer.nic, endpoint=endpoint, hubport_id=ident, netdev_id=ident)

    async def adopt(self, cable: Cable) -> None:
        raise AssertionError("nothing is adopted in these tests")

    async def sweep(self, known: Collection[str], begun: Collection[str]) -> None:
        raise AssertionError("nothing is swept in these tests")

    async def stage(self, cable: Cable, replacing: Cable | None) -> None:
        self.log.note(f"stage {cable.id}")

    async def switch(self, nic: NicRef, new: Cable | None, old: Cable | None) -> None:
        self.log.note(f"switch {old.id if old else '-'} to {new.id if new else '-'}")

    async def switch_back(self, nic: NicRef, new: Cable | None, old: Cable | None) -> None:
        self.log.note(f"switch back to {old.id if old else '-'}")

    async def release(self, cable: Cable) -> None:
        self.log.note(f"release {cable.id}")

    async def recognise(self, cable: Cable) -> None:
        self.log.note("recognise")

    async def name_device(self, cable: Cable, name: str | None) -> None:
        self.log.note(f"name {cable.id} {name}")
        cable.device = name or f"lm{cable.id}"

    def close(self) -> None:
        raise AssertionError("nobody closes in these tests")

    async def set_link(self, nic: NicRef, *, up: bool) -> None:
        self.log.note(f"link {'up' if up else 'down'}")

    async def announce(self, cable: Cable, *, moved: bool) -> None:
        self.log.note("announce")

    async def teach_address(self, cable: Cable) -> None:
        self.log.note("teach")

    async def inspect(self, nic: NicRef) -> list[Cable]:
        return self.foreign

    async def follow_rx_filter(self, cable: Cable) -> list[str]:
        return []


class FakeAttachment(Attachment):
    def __init__(self, log: Log, offer: Offer, port: Port) -> None:
        super().__init__(port.name, offer, port, EndpointKind.BRIDGE)
        self.log = log

    async def realise(self) -> Endpoint:
        self.log.note(f"realise {self.id}")
        return BridgeEndpoint(self.id)

    async def activate(self) -> None:
        self.log.note(f"activate {self.id}")


class FakeDriver(NetworkDriver):
    name = "fake"
    kinds = (EndpointKind.BRIDGE,)
    network_options: ClassVar[Mapping[str, Any]] = {}
    port_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, log: Log) -> None:
        self.log = log

    async def init_attachment(
        self, offer: Offer, port: Port, *, ident: str | None = None
    ) -> Attachment:
        self.log.note(f"init {port.name}")
        return FakeAttachment(self.log, offer, port)

    async def terminate_attachment(self, attachment: Attachment) -> None:
        self.log.note(f"terminate {attachment.id}")


class Bench:
    """A NIC with fakes on both sides. Ports are called like their network."""

    def __init__(self) -> None:
        self.log = Log()
        self.wiring = FakeWiring(self.log)
        self.nic = ManagedNic(
            NIC,
            self.wiring,
            Carrier(self.wiring, NIC, CarrierClock()),
            VmJournal(Journal(StateDirectory(None)), VmRecord("web1", "/run/web1.qmp")),
        )
        self.nic.carrier.up = False

    async def plug(self, name: str, notify: NotifyMode = NotifyMode.SILENT) -> None:
        async def free_port() -> None:
            self.log.note(f"free {name}")

        port = Port(Network(name, "fake"), name)
        driver = FakeDriver(self.log)
        await steps.plug(self.nic, driver, port, free_port, notify=notify, probe=self.probe)

    async def unplug(self) -> None:
        await steps.unplug(self.nic, probe=self.probe)

    async def probe(self, step: Step) -> None:
        self.log.note(f"[{step}]")

    async def on_blue(self) -> None:
        await self.plug("blue")
        self.log.clear()

    @property
    def calls(self) -> list[str]:
        """What was called, without the probe."""
        return [call for call in self.log if not call.startswith("[")]

    @property
    def where(self) -> str | None:
        """The network that the NIC is plugged into."""
        return self.nic.connection.attachment.port.network.name if self.nic.connection else None


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No guest has to see a flap here."""
    for name in ("MIN_DOWN_S", "LINKWATCH_INTERVAL_S", "LINKWATCH_MARGIN_S"):
        monkeypatch.setattr(f"linkmgr.swap.carrier.{name}", 0.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()
