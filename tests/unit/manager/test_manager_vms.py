"""Which VMs and NICs there are, as `LinkManager` finds out from QEMUs that are scripted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from linkmgr.errors import Conflict, NotOnHub, Stopping, UnknownNic
from linkmgr.events import EventKind
from linkmgr.hypervisors.qemu.qmp import Monitor
from linkmgr.hypervisors.qemu.qmp.connector import transport_of
from linkmgr.hypervisors.qemu.qmp.event_budget import EVENTS_BURST
from linkmgr.hypervisors.qemu.qmp.features import Features
from linkmgr.inventory.machine import Vm
from linkmgr.manager.manager import LinkManager
from linkmgr.model import MonitorTransport, NicState, Outcome
from linkmgr.reconcile.reconnect import PendingVm
from linkmgr.state.journal import VmRecord, started_at
from linkmgr.swap.steps import ManagedNic
from tests.unit.qmp_peer import FakeMonitor, Received, Refusal, nothing_left_behind

__all__ = ["nothing_left_behind"]  # a fixture

HUB = """hub 1
 \\ lm-sink0
 \\ lm-hub0: ua-net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01
"""
SECOND = """hub 2
 \\ lm-sink1
 \\ lm-hub1: ua-net1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:02
"""
HOT = """ua-hot: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:02
 \\ hostua-hot: index=0,type=tap,ifname=vnet3,script=no,downscript=no
"""


class FakeQemu:
    """A QEMU with whatever NICs `shown` says; each monitor is another connection to it.

    Its pid is that of the tests.
    """

    def __init__(self) -> None:
        self.shown = HUB
        self.peers: list[FakeMonitor] = []
        self.links: list[tuple[str, bool]] = []

    def connector(self, address: str) -> FakeConnector:
        return FakeConnector(self, address)

    def answer(self, command: Received) -> object:
        given = command.arguments
        match command.name:
            case "human-monitor-command":
                assert given["command-line"] == "info network"
                return self.shown
            case "query-status":
                return {"running": True}
            case "qom-get":
                return "52:54:00:00:00:01" if given["property"] == "mac" else 1500
            case "set_link":
                if given["name"] not in self.shown:
                    raise Refusal(f"Device '{given['name']}' not found")
                self.links.append((given["name"], given["up"]))
        return None


class FakeConnector:
    """One way to that QEMU."""

    def __init__(self, qemu: FakeQemu, address: str) -> None:
        self.address = address
        self.transport = transport_of(address)
        self._qemu = qemu

    async def connect(self, name: str, timeout: float) -> Monitor:
        sock, peer = FakeMonitor.pair()
        self._qemu.peers.append(peer)
        peer.send({"QMP": {"version": {}, "capabilities": []}})
        peer.serve(self._qemu.answer)
        return await Monitor.from_socket(sock, name=name, timeout=timeout)

    def proves_absence(self, error: Exception) -> bool:
        return False


@pytest.fixture
async def qemu(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeQemu]:
    async def probe_features(_: Monitor) -> Features:
        return Features("7.2.22", frozenset())

    monkeypatch.setattr("linkmgr.hypervisors.qemu.process.probe_features", probe_features)
    monkeypatch.setattr("linkmgr.inventory.machine._require", lambda _: None)
    made = FakeQemu()
    yield made
    for peer in made.peers:
        await peer.close()


@pytest.fixture
async def links(qemu: FakeQemu) -> AsyncIterator[LinkManager]:
    made = LinkManager(connectors=qemu.connector)
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("inbound:11111111-2222-3333-4444-555555555555", "libvirt:web2"),
        ("libvirt:web2", "inbound:11111111-2222-3333-4444-555555555555"),
        ("libvirt:web2", "libvirt:11111111-2222-3333-4444-555555555555"),
        ("/run/web2.qmp", "libvirt:web2"),
    ],
)
async def test_one_qemu_is_one_vm_whatever_way_leads_to_it(
    qemu: FakeQemu, links: LinkManager, first: str, second: str
) -> None:
    await links.add_vm("web2", first)
    before = list(qemu.links)
    with pytest.raises(Conflict, match="is VM web2, whose NICs linkmgr has already") as raised:
        await links.add_vm("w2", second)
    assert raised.value.hint == "use VM web2"
    assert [vm.name for vm in links.snapshot()[0]] == ["web2"]
    assert qemu.links == before, "the guest was not touched"
    assert qemu.peers[1].sock.fileno() < 0 or qemu.peers[1].timeline == ["qmp_capabilities"]
    assert await links.remove_vm("web2")
    await links.add_vm("w2", second)


async def test_a_vm_of_an_earlier_run_is_found_again_by_its_process(
    links: LinkManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = os.getpid()
    record = VmRecord("web2", "libvirt:web2", pid=pid, started=started_at(pid))
    monkeypatch.setitem(links._pending.vms, "web2", PendingVm(record))
    with pytest.raises(Conflict, match="is VM web2"):
        await links.add_vm("w2", "libvirt:11111111-2222-3333-4444-555555555555")
    monkeypatch.setitem(links._pending.vms, "web2", PendingVm(replace(record, started=1)))
    assert await links.add_vm("w2", "libvirt:11111111-2222-3333-4444-555555555555")
    monkeypatch.undo()


async def test_two_sockets_that_one_process_made_may_be_those_of_two_qemus(
    links: LinkManager,
) -> None:
    await links.add_vm("web1", "/run/web1.qmp")
    await links.add_vm("web2", "/run/web2.qmp")
    assert links.process_of("web1") == links.process_of("web2")
    assert links.process_of("web1") is not None
    assert {vm.transport for vm in links.snapshot()[0]} == {MonitorTransport.SOCKET}


async def test_many_who_list_nics_look_for_new_ones_once_in_a_while(
    qemu: FakeQemu, links: LinkManager
) -> None:
    await links.add_vm("web1", "/run/web1.qmp")
    await links.nics()
    qemu.shown = HUB + HOT
    for _ in range(3):
        assert [nic.ref.alias for nic in await links.nics()] == ["ua-net0"]
    with pytest.raises(NotOnHub):  # who names it need not wait
        await links.unplug("web1/ua-hot")


async def test_a_nic_that_was_hot_plugged_is_known_when_it_is_named_or_listed(
    qemu: FakeQemu, links: LinkManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.manager.inventory.SCAN_INTERVAL_S", 0.0)
    await links.add_vm("web1", "/run/web1.qmp")
    known, asked = await links.nics(), list(qemu.links)
    assert [str(nic.ref) for nic in known] == ["web1/ua-net0"]
    with pytest.raises(UnknownNic, match="VM web1 has no NIC ua-hot"):
        await links.unplug("web1/ua-hot")
    qemu.shown = HUB + HOT
    with pytest.raises(NotOnHub):
        await links.unplug("web1/ua-hot")
    hot, before = await links.nics()
    assert (str(hot.ref), hot.state, hot.mac) == (
        "web1/ua-hot", NicState.UNMANAGED, "52:54:00:00:00:02",
    )  # fmt: skip
    assert before == known[0], "the others are as they were"
    assert qemu.links == asked
    qemu.shown += HOT.replace("ua-hot", "ua-two").replace("00:02", "00:03")
    assert [nic.ref.alias for nic in await links.nics()] == ["ua-hot", "ua-net0", "ua-two"]


# --- NICs that were hot-unplugged -----------------------------------------------------------------
async def lost(links: LinkManager, happens: Callable[[], object]) -> list[str]:
    """What is told of NICs until one is gone, or soon after, and which are left."""
    told: list[str] = []
    kinds = (EventKind.NIC_GONE, EventKind.FAILED)
    async with asyncio.timeout(5):
        events = links.events()
        happens()
        async for event in events:
            if event.kind in kinds:
                told.append(f"{event.kind} {event.subject}")
                break
        await asyncio.sleep(0.1)  # a second telling would come now
        events.close()
        told += [f"{each.kind} {each.subject}" async for each in events if each.kind in kinds]
    return [*told, *(f"left {ref}" for vm in links.snapshot()[0] for ref in vm.nics)]


@pytest.mark.parametrize("seen", [False, True], ids=["left-out", "told-late"])
async def test_a_nic_whose_end_is_among_the_events_left_out_is_looked_for(
    qemu: FakeQemu, links: LinkManager, seen: bool
) -> None:
    qemu.shown = HUB + SECOND
    await links.add_vm("web1", "/run/web1.qmp")

    def too_many() -> None:
        qemu.shown = HUB
        if seen:
            qemu.peers[0].event("DEVICE_DELETED", device="ua-net1")
        for _ in range(EVENTS_BURST):
            qemu.peers[0].event("NIC_RX_FILTER_CHANGED", name="other")
        qemu.peers[0].event("DEVICE_DELETED", device="ua-net1")

    assert await lost(links, too_many) == ["nic-gone web1/ua-net1", "left web1/ua-net0"]


async def test_a_nic_that_went_while_the_monitor_was_away_is_looked_for(
    qemu: FakeQemu, links: LinkManager
) -> None:
    qemu.shown = HUB + SECOND
    await links.add_vm("web1", "/run/web1.qmp")

    def away() -> None:
        qemu.shown = HUB
        qemu.peers[0].hang_up()

    assert await lost(links, away) == ["nic-gone web1/ua-net1", "left web1/ua-net0"]


async def test_a_close_waits_for_an_adding_that_still_cleans_up_after_the_stop(
    qemu: FakeQemu, links: LinkManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cleaned_up = asyncio.Event(), asyncio.Event()

    async def connect(self: FakeConnector, name: str, timeout: float) -> Monitor:
        try:
            begun.set()
            return await asyncio.Future[Monitor]()
        finally:
            await asyncio.sleep(0.05)
            cleaned_up.set()

    monkeypatch.setattr(FakeConnector, "connect", connect)
    adding = asyncio.create_task(links.add_vm("web1", "/run/web1.qmp"))
    await begun.wait()
    links.begin_close()
    await asyncio.sleep(0.01)
    await links.close()
    assert cleaned_up.is_set()
    with pytest.raises(Stopping):
        await adding


async def test_a_removal_that_a_stop_ends_says_which_nics_are_unplugged(
    qemu: FakeQemu, links: LinkManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu.shown = HUB + SECOND
    await links.add_vm("web1", "/run/web1.qmp")
    first, second = links._vms["web1"].nics.values()

    async def unplug(self: LinkManager, vm: Vm, nic: ManagedNic) -> Outcome:
        return Outcome(vm.snapshot(nic), changed=nic is first)

    monkeypatch.setattr(LinkManager, "_look", unplug)
    async with second.lock:
        removing = asyncio.create_task(links.remove_vm("web1"))
        await asyncio.sleep(0.05)
        assert first.lock.locked()
        links.begin_close()
        with pytest.raises(Stopping) as raised:
            await removing
    assert raised.value.what == (
        "linkmgr is stopping before all NICs were unplugged: "
        "web1/ua-net0 is unplugged, and VM web1 is still known"
    )
    assert raised.value.hint == "remove it again when linkmgr has started"
    assert [vm.name for vm in links.snapshot()[0]] == ["web1"]


async def test_a_removal_that_fails_on_the_way_says_which_nics_are_unplugged(
    qemu: FakeQemu, links: LinkManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu.shown = HUB + SECOND
    await links.add_vm("web1", "/run/web1.qmp")
    first, second = links._vms["web1"].nics.values()

    async def unplug(self: LinkManager, vm: Vm, nic: ManagedNic) -> Outcome:
        if nic is second:
            raise UnknownNic("it went", hint="look again")
        return Outcome(vm.snapshot(nic), changed=True)

    monkeypatch.setattr(LinkManager, "_look", unplug)
    with pytest.raises(UnknownNic) as raised:
        await links.remove_vm("web1")
    assert "it went (web1/ua-net0 is unplugged, and VM web1 is still known)" in str(raised.value)
    assert raised.value.nic == str(second.ref)
    assert not first.lock.locked()


async def test_a_vm_that_has_ended_is_let_go_to_the_end_though_its_adding_is_cancelled(
    links: LinkManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await links.add_vm("web1", "/run/web1.qmp")
    known = links._vms["web1"]
    closing, close = asyncio.Event(), Vm.close

    async def close_slowly(self: Vm) -> None:
        closing.set()
        await asyncio.sleep(0.05)
        await close(self)

    monkeypatch.setattr(Vm, "close", close_slowly)
    known.qemu._dead.set()
    adding = asyncio.create_task(links.add_vm("web1", "/run/web1.qmp"))
    await closing.wait()
    links.begin_close()
    with pytest.raises(Stopping):
        await adding
    assert known.cleanup_task is not None
    assert known.cleanup_task.done()
