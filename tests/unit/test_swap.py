"""The order of the steps of a swap, and of what undoes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import pytest

from linkmgr import swap
from linkmgr.carrier import Carrier, LinkWatch
from linkmgr.drivers import Attachment, NetworkDriver
from linkmgr.errors import (
    CommandFailed,
    HostError,
    HubCrowded,
    MonitorGone,
    MonitorTimeout,
    NameTaken,
    NoSink,
    SwitchFailed,
)
from linkmgr.journal import Journal, VmJournal, VmRecord
from linkmgr.model import (
    BridgeEndpoint,
    Endpoint,
    EndpointKind,
    LinkState,
    Network,
    NicRef,
    Notify,
    Offer,
    Port,
)
from linkmgr.swap import Slot, Step
from linkmgr.wirings import Cable, Wiring

NIC = NicRef("web1", "net0")


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
        return Cable(id=ident, nic=offer.nic, endpoint=endpoint, port=ident, backend=ident)

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

    def let_go(self) -> None:
        raise AssertionError("nobody closes in these tests")

    async def set_link(self, nic: NicRef, *, up: bool) -> None:
        self.log.note(f"link {'up' if up else 'down'}")

    async def announce(self, nic: NicRef) -> None:
        self.log.note("announce")

    async def inspect(self, nic: NicRef) -> list[Cable]:
        return self.foreign

    async def follow(self, cable: Cable) -> list[str]:
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
        self.slot = Slot(
            NIC,
            self.wiring,
            Carrier(self.wiring, NIC, LinkWatch()),
            VmJournal(Journal(None), VmRecord("web1", "/run/web1.qmp")),
        )
        self.slot.carrier.up = False

    async def plug(self, name: str, notify: Notify = Notify.SILENT) -> None:
        async def free_port() -> None:
            self.log.note(f"free {name}")

        port = Port(Network(name, "fake"), name)
        driver = FakeDriver(self.log)
        await swap.plug(self.slot, driver, port, free_port, notify=notify, probe=self.probe)

    async def unplug(self) -> None:
        await swap.unplug(self.slot, probe=self.probe)

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
        return self.slot.plugged.attachment.port.network.name if self.slot.plugged else None


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No guest has to see a flap here."""
    for name in ("HOLD", "LOOK", "MARGIN"):
        monkeypatch.setattr(f"linkmgr.carrier.{name}", 0.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_plug_does_its_steps_in_order(bench: Bench) -> None:
    await bench.plug("blue")
    assert bench.log == [
        *("[offer]", "offer"),
        *("[init]", "init blue"),
        "[intend]",
        *("[realise]", "realise blue"),
        *("[stage]", "stage blue"),
        *("[switch]", "switch - to blue"),
        *("[activate]", "activate blue"),
        *("[notify]", "link up"),
        "[record]",
    ]
    assert bench.where == "blue"


async def test_a_replug_takes_the_old_side_down_last(bench: Bench) -> None:
    await bench.on_blue()
    await bench.plug("red")
    assert bench.log == [
        *("[offer]", "offer"),
        *("[init]", "init red"),
        "[intend]",
        *("[realise]", "realise red"),
        *("[stage]", "stage red"),
        *("[switch]", "switch blue to red"),
        *("[activate]", "activate red"),
        "[notify]",
        "[record]",
        *("[release]", "release blue"),
        *("[terminate]", "terminate blue", "free blue"),
    ]
    assert bench.where == "red"


async def test_an_unplug_takes_the_carrier_first(bench: Bench) -> None:
    await bench.on_blue()
    await bench.unplug()
    assert bench.log == [
        "[intend]",
        *("[link-down]", "link down"),
        *("[switch]", "switch blue to -"),
        "[record]",
        *("[release]", "release blue"),
        *("[terminate]", "terminate blue", "free blue"),
    ]
    assert bench.where is None


FREE = ["free red"]
TERMINATE = ["terminate red", *FREE]
RELEASE = ["release red", *TERMINATE]
BACK = ["switch back to blue", "activate blue", *RELEASE]


@pytest.mark.parametrize(
    ("call", "undone"),
    [
        ("[offer]", FREE),
        ("offer", FREE),
        ("[init]", FREE),
        ("init red", FREE),
        ("[realise]", TERMINATE),
        ("realise red", TERMINATE),
        ("[stage]", RELEASE),
        ("stage red", RELEASE),
        ("[switch]", BACK),
        ("switch blue to red", BACK),
        ("[activate]", BACK),
        ("activate red", BACK),
    ],
)
@pytest.mark.parametrize("error", [HostError("no"), SwitchFailed("no"), ZeroDivisionError()])
async def test_a_replug_that_fails_is_undone_in_the_opposite_order(
    bench: Bench, call: str, undone: list[str], error: Exception
) -> None:
    await bench.on_blue()
    bench.log.fail(call, error)
    with pytest.raises(type(error)):
        await bench.plug("red")
    assert bench.log[bench.log.index(call) + 1 :] == undone
    assert bench.where == "blue"
    assert bench.slot.leftovers == []


@pytest.mark.parametrize(
    ("call", "undone"),
    [
        ("stage red", RELEASE),
        ("switch - to red", ["switch back to -", *RELEASE]),
        ("activate red", ["switch back to -", *RELEASE]),
    ],
)
async def test_a_plug_that_fails_goes_back_to_no_cable(
    bench: Bench, call: str, undone: list[str]
) -> None:
    bench.log.fail(call, HostError("no"))
    with pytest.raises(HostError):
        await bench.plug("red")
    assert bench.log[bench.log.index(call) + 1 :] == undone
    assert bench.where is None


@pytest.mark.parametrize(
    ("call", "undone"),
    [
        ("[link-down]", []),
        ("link down", ["link up"]),
        ("[switch]", ["switch back to blue", "link up"]),
        ("switch blue to -", ["switch back to blue", "link up"]),
    ],
)
async def test_an_unplug_that_fails_is_undone_in_the_opposite_order(
    bench: Bench, call: str, undone: list[str]
) -> None:
    await bench.on_blue()
    bench.log.fail(call, SwitchFailed("no"))
    with pytest.raises(SwitchFailed):
        await bench.unplug()
    assert bench.log[bench.log.index(call) + 1 :] == undone
    assert bench.where == "blue"


@pytest.mark.parametrize("call", ["[notify]", "announce"])
@pytest.mark.parametrize("error", [MonitorGone("no"), ZeroDivisionError()])
async def test_after_the_switch_there_is_no_way_back(
    bench: Bench, call: str, error: Exception
) -> None:
    await bench.on_blue()
    bench.log.fail(call, error)
    with pytest.raises(type(error)):
        await bench.plug("red", Notify.ANNOUNCE)
    assert bench.where == "red"
    assert bench.calls[-3:] == ["release blue", "terminate blue", "free blue"]
    # The guest and the network hear of it all the same, later.
    await swap.settle(bench.slot)
    assert bench.calls[-1] == "announce"
    assert bench.slot.leftovers == []


@pytest.mark.parametrize("call", ["[release]", "[terminate]"])
async def test_a_probe_that_raises_keeps_nothing_from_being_freed(bench: Bench, call: str) -> None:
    await bench.on_blue()
    bench.log.fail(call, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await bench.plug("red")
    assert bench.calls[-3:] == ["release blue", "terminate blue", "free blue"]


@pytest.mark.parametrize("call", ["release blue", "terminate blue"])
async def test_an_old_side_that_cannot_be_freed_fails_no_replug(bench: Bench, call: str) -> None:
    await bench.on_blue()
    bench.log.fail(call, MonitorTimeout("no"))
    await bench.plug("red")
    assert bench.where == "red"
    assert len(bench.slot.leftovers) > 0
    await swap.settle(bench.slot)
    rest = ["release blue", "terminate blue", "free blue"]
    assert bench.calls[-len(rest[rest.index(call) :]) :] == rest[rest.index(call) :]


async def test_what_cannot_be_undone_now_is_done_later_in_the_same_order(bench: Bench) -> None:
    await bench.on_blue()
    timeout = MonitorTimeout("no")
    bench.log.fail("switch blue to red", timeout)
    bench.log.fail("switch back to blue", timeout, timeout)
    with pytest.raises(MonitorTimeout):
        await bench.plug("red")
    # Nothing overtakes what could not be done: a cable is not released while a NIC may be on it.
    assert bench.calls[-1] == "switch back to blue"
    bench.log.clear()
    with pytest.raises(MonitorTimeout):
        await swap.settle(bench.slot)
    assert bench.log == ["switch back to blue"]
    bench.log.clear()
    await swap.settle(bench.slot)
    assert bench.log == BACK
    assert bench.slot.leftovers == []


@pytest.mark.parametrize(
    "error", [HostError("no"), CommandFailed("no", command="x"), NoSink("no"), ZeroDivisionError()]
)
async def test_a_clean_up_that_is_refused_stops_no_other_and_is_tried_again(
    bench: Bench, error: Exception
) -> None:
    await bench.on_blue()
    bench.log.fail("switch blue to red", MonitorTimeout("no"))
    bench.log.fail("switch back to blue", MonitorTimeout("no"), error)
    with pytest.raises(MonitorTimeout):
        await bench.plug("red")
    bench.log.clear()
    await swap.settle(bench.slot)
    assert bench.log == BACK
    bench.log.clear()
    await swap.settle(bench.slot)
    assert bench.log == ["switch back to blue"]
    assert bench.slot.leftovers == []


async def test_what_a_lost_nic_held_is_freed_whatever_was_left_to_do(bench: Bench) -> None:
    await bench.on_blue()
    bench.log.fail("link down", MonitorTimeout("no"))
    bench.log.fail("link up", *[MonitorGone("dead")] * 9)
    with pytest.raises(MonitorTimeout):
        await bench.unplug()
    bench.log.clear()
    await swap.abandon(bench.slot)
    assert bench.log[-3:] == ["release blue", "terminate blue", "free blue"]
    assert (bench.where, bench.slot.leftovers) == (None, [])


class TestAForeignCable:
    """One that somebody else plugged; its attachment is not ours to free."""

    @pytest.fixture
    def bench(self) -> Bench:
        bench = Bench()
        bench.wiring.foreign = [Cable(id="theirs", nic=NIC, endpoint=None, port="p", backend="b")]
        bench.slot.foreign, bench.slot.carrier.up = True, None
        return bench

    async def test_is_replaced_and_left_alone(self, bench: Bench) -> None:
        await bench.plug("red")
        assert "switch theirs to red" in bench.log
        # `release` leaves alone what linkmgr did not make; there is no attachment to terminate.
        assert bench.calls[-1] == "release theirs"
        assert not bench.slot.foreign

    async def test_is_put_back_when_the_switch_fails(self, bench: Bench) -> None:
        bench.log.fail("switch theirs to red", SwitchFailed("no"))
        with pytest.raises(SwitchFailed):
            await bench.plug("red")
        assert bench.calls[-4:] == ["switch back to theirs", *RELEASE]
        assert bench.slot.foreign

    async def test_is_unplugged(self, bench: Bench) -> None:
        await bench.unplug()
        assert bench.calls == ["recognise", "link down", "switch theirs to -", "release theirs"]
        assert not bench.slot.foreign

    async def test_has_its_carrier_back_when_it_cannot_be_unplugged(self, bench: Bench) -> None:
        bench.log.fail("switch theirs to -", SwitchFailed("no"))
        with pytest.raises(SwitchFailed):
            await bench.unplug()
        assert bench.calls[-2:] == ["switch back to theirs", "link up"]

    async def test_is_not_one_of_two(self, bench: Bench) -> None:
        bench.wiring.foreign *= 2
        with pytest.raises(HubCrowded):
            await bench.plug("red")
        assert bench.calls == ["offer", "free red"]


class TestNotify:
    """How the guest hears of a new cable."""

    @pytest.mark.parametrize(
        ("notify", "calls"),
        [
            (Notify.AUTO, ["link down", "link up"]),
            (Notify.FLAP, ["link down", "link up"]),
            (Notify.ANNOUNCE, ["announce"]),
            (Notify.SILENT, []),
        ],
    )
    async def test_of_another_network(self, bench: Bench, notify: Notify, calls: list[str]) -> None:
        await bench.on_blue()
        await bench.plug("red", notify)
        at = bench.calls.index("activate red") + 1
        assert bench.calls[at : bench.calls.index("release blue")] == calls

    @pytest.mark.parametrize("notify", Notify)
    async def test_a_link_that_is_set_down_stays_down(self, bench: Bench, notify: Notify) -> None:
        await bench.on_blue()
        bench.slot.wanted = LinkState.DOWN
        await bench.slot.apply_link()
        bench.log.clear()
        await bench.plug("red", notify)
        assert not {"link up", "link down", "announce"} & set(bench.calls)


class TestAName:
    """One that was asked for, for the host's device."""

    @pytest.fixture
    def bench(self) -> Bench:
        bench = Bench()
        bench.slot.name = "lmtap0"
        return bench

    async def test_is_given_when_the_old_device_is_gone(self, bench: Bench) -> None:
        await bench.plug("blue")
        assert bench.log[-2:] == ["[name]", "name blue lmtap0"]
        bench.log.clear()
        await bench.plug("red")
        assert bench.log[-7:] == [
            *("[release]", "release blue"),
            *("[terminate]", "terminate blue", "free blue"),
            *("[name]", "name red lmtap0"),
        ]
        bench.log.clear()
        await bench.unplug()
        assert "[name]" not in bench.log

    async def test_waits_for_an_old_device_that_cannot_be_freed_yet(self, bench: Bench) -> None:
        await bench.on_blue()
        bench.log.fail("release blue", MonitorTimeout("no"))
        await bench.plug("red")
        assert "name red lmtap0" not in bench.log
        await swap.settle(bench.slot)
        assert bench.log[-1] == "name red lmtap0"

    async def test_that_is_taken_fails_no_plug_and_is_told_once(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.log.fail("name blue lmtap0", NameTaken("it is taken"))
        bench.log.fail("name red lmtap0", NameTaken("it is taken"))
        await bench.plug("blue")
        await bench.plug("red")
        assert bench.where == "red"
        assert isinstance(bench.slot.unnamed, NameTaken)
        assert caplog.text.count("it is taken") == 1
        await bench.plug("blue")
        assert bench.slot.unnamed is None
