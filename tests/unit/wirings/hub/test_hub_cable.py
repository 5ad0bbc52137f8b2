"""What the hub wiring believes of a QEMU, and what it does about one that does not obey."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from linkmgr.errors import (
    CommandFailed,
    HostError,
    HubCrowded,
    LinkBusy,
    LinkMissing,
    MonitorError,
    MonitorTimeout,
)
from linkmgr.host import Fd, FdbEntry, Host
from linkmgr.host.netlink.link import DEVICE_GROUP
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp.connector import SocketConnector
from linkmgr.hypervisors.qemu.qmp.info_network import NetClient, NetTopology, parse_info_network
from linkmgr.model import BridgeEndpoint, DirectEndpoint, Endpoint, NicRef, OwnerTag
from linkmgr.wirings import Cable, HubWiring
from linkmgr.wirings.endpoints.host_side import claim_addresses, restore_addresses
from linkmgr.wirings.endpoints.receive_filter import query_rx_filter
from tests.unit.qmp_peer import FakeMonitor, Received, connected

NIC = NicRef("web1", "net0")
ID = "0000000a"
BACKEND = f"lmt-{ID}"
OWN, OTHERS = "52:54:00:00:00:01", "52:54:00:00:00:99"


class FakeQemu:
    """Has one backend, and a guest that goes by another address than its own."""

    alive = True

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def query_network(self) -> NetTopology:
        return NetTopology(netdevs={BACKEND: NetClient(BACKEND, "tap")})

    async def execute(self, name: str, _arguments: object = None, **_: object) -> object:
        if name == "query-rx-filter":
            return [{"main-mac": OTHERS, "promiscuous": False}]
        if self.error is not None:
            raise self.error
        return None


class FakeHost:
    """Has the cable's device."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.device = SimpleNamespace(
            name="lm1",
            index=7,
            owner_tag=OwnerTag(str(NIC), ID),
            spanning_tree=False,
            port_options=None,
            group=DEVICE_GROUP,
        )
        self.fd_store = SimpleNamespace(drop=lambda _: None, keep=lambda *_: None)

    async def find_device(self, _: object) -> object:
        return self.device

    async def list_devices(self) -> list[Any]:
        return [self.device]

    async def open_tap(self, *_: object, **__: object) -> object:
        return SimpleNamespace(fd=None, device=self.device)

    async def attach_to_bridge(self, *_: object, up: bool, **__: object) -> None:
        self.done.append(f"attach {'up' if up else 'down'}")

    async def traffic_control(self, _: int) -> list[str]:
        return []

    def fdb_entries_behind(self, *_: object) -> list[FdbEntry]:
        return [FdbEntry(OWN, 7, None, static=False, local=False)]

    async def forget_fdb_entries(self, entries: list[FdbEntry], device: str) -> None:
        self.done.append(f"withdraw {device} {[each.mac for each in entries]}")

    async def add_fdb_entries(self, entries: list[FdbEntry], device: str, **_: object) -> None:
        self.done.append(f"put {device} {[each.mac for each in entries]}")

    async def set_down(self, device: object) -> None:
        self.done.append(f"down {device}")

    async def delete_device(self, device: object) -> None:
        self.done.append(f"delete {device}")


def made(qemu: FakeQemu, host: FakeHost) -> HubWiring:
    return HubWiring(cast("QemuProcess", qemu), cast("Host", host))


def cable(*, learning: bool = True) -> Cable:
    where = BridgeEndpoint("br0", learning=learning)
    return Cable(ID, NIC, where, f"lmp-{ID}", BACKEND, mac=OWN, device="lm1", netdev_added=True)


@pytest.mark.parametrize(
    "error",
    [CommandFailed("no", command="netdev_del"), MonitorTimeout("no answer", sent=True)],
    ids=["refuses", "is-silent"],
)
async def test_a_qemu_that_keeps_a_backend_hears_nothing_through_it_any_more(
    error: Exception,
) -> None:
    """It has an fd of the tap, and would stay on a network that its NIC was unplugged from."""
    host, qemu, old = FakeHost(), FakeQemu(error), cable()
    wiring = made(qemu, host)
    with pytest.raises(type(error)):
        await wiring.release(old)
    assert host.done == ["down 7"], "to delete it would make QEMU spin"
    qemu.error = None
    await wiring.release(old)
    assert host.done == ["down 7", "delete 7"]


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, [7], [{}], [{"main-mac": "x", "promiscuous": False}],
     [{"main-mac": ["52:54:00:00:00:01"], "promiscuous": False}]],
)  # fmt: skip
async def test_a_receive_filter_that_is_none_is_a_fault_of_the_monitor(answer: object) -> None:
    class Liar:
        name = "VM web1"

        async def execute(self, *_: object) -> object:
            return answer

    with pytest.raises(MonitorError, match="web1/net0"):
        await query_rx_filter(cast("QemuProcess", Liar()), NIC)


# --- the switch -----------------------------------------------------------------------------------
NEW = "0000000b"
NIC_LINES = r"""
 \ lm-sink0
 \ lm-hub0: net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01
"""


def hub_with(*idents: str) -> str:
    """What QEMU shows of a hub with these cables plugged in."""
    ports = "".join(f"\n \\ lmp-{i}: lmt-{i}: index=0,type=tap,fd=11" for i in idents)
    return f"hub 1{ports}{NIC_LINES}"


def new_cable(endpoint: Endpoint | None = None) -> Cable:
    """One that is staged, to plug instead of `cable`."""
    made = Cable(NEW, NIC, endpoint or BridgeEndpoint("br0"), f"lmp-{NEW}", f"lmt-{NEW}", mac=OWN)
    made.device, made.hub_number = "lm2", 1
    return made


@pytest.fixture
async def wired() -> AsyncIterator[tuple[HubWiring, FakeHost, FakeMonitor]]:
    """A wiring whose QEMU answers when the test says so."""
    async with connected() as (monitor, peer):
        connector = SocketConnector("/run/web1.qmp")
        qemu = QemuProcess(connector, name="VM web1", timeout=5, handler=lambda _: None)
        qemu._monitor = monitor
        host = FakeHost()
        yield HubWiring(qemu, cast("Host", host)), host, peer


@asynccontextmanager
async def switching(
    wiring: HubWiring, peer: FakeMonitor, new: Cable
) -> AsyncIterator[list[Received]]:
    """Switch from `cable`. In the block all commands have come, and none is answered yet."""
    switch = asyncio.create_task(wiring.switch(NIC, new, cable()))
    try:
        commands = [await peer.next() for _ in range(4)]
        yield commands
        for each in commands[:-1]:
            peer.answer(each)
        peer.answer(commands[-1], hub_with(NEW))
        await switch
    finally:
        switch.cancel()
        await asyncio.gather(switch, return_exceptions=True)


@pytest.mark.parametrize("where", ["br0", "br1"])
async def test_both_commands_of_a_switch_are_there_before_qemu_answers_anything(
    wired: tuple[HubWiring, FakeHost, FakeMonitor], where: str
) -> None:
    """Between them the NIC is without a cable: nobody is to be waited for then."""
    wiring, _, peer = wired
    async with switching(wiring, peer, new_cable(BridgeEndpoint(where))) as commands:
        assert [(each.name, each.arguments.get("id")) for each in commands] == [
            ("query-status", None),
            ("netdev_del", f"lmp-{ID}"),
            ("netdev_add", f"lmp-{NEW}"),
            ("human-monitor-command", None),
        ]


async def test_a_bridge_forgets_the_nic_before_the_old_cable_goes_and_is_told_after_the_new_came(
    wired: tuple[HubWiring, FakeHost, FakeMonitor],
) -> None:
    """Between QEMU's commands frames go to both ports, so none waits at the old one in vain."""
    wiring, host, peer = wired
    forgets = f"withdraw lm1 {[OWN]}"
    async with switching(wiring, peer, new_cable()):
        assert host.done == [forgets]
    assert host.done == [forgets, f"put lm2 {[OWN]}"]


# --- a macvtap that reaches nothing ---------------------------------------------------------------
class MacvtapHost:
    """Has a macvtap and its parent, or what the test leaves of them."""

    def __init__(self) -> None:
        self.by: dict[str | int, Any] = {
            "lm2": SimpleNamespace(name="lm2", up=True, parent=3),
            3: SimpleNamespace(name="eth1", up=True, parent=None),
        }

    def is_up(self, device: str) -> bool:
        return any(each.name == device and each.up for each in self.by.values())

    async def find_device(self, device: str | int) -> object:
        return self.by.get(device)


@pytest.mark.parametrize(
    ("gone", "down", "kind", "what"),
    [
        (["lm2", 3], [], LinkMissing, "lm2 is gone: .* or its parent eth1"),
        (["lm2"], [], LinkMissing, "lm2 is gone"),
        ([3], [], LinkMissing, "lm2 is gone"),  # it goes with it, an instant later
        ([], [3], LinkBusy, "eth1 is down"),
        ([], ["lm2"], LinkBusy, "lm2 is down"),
    ],
)
async def test_a_macvtap_that_reaches_nothing_is_not_taken_for_a_cable(
    gone: list[str | int], down: list[str | int], kind: type[HostError], what: str
) -> None:
    host = MacvtapHost()
    for each in gone:
        del host.by[each]
    for each in down:
        host.by[each].up = False
    new = new_cable(DirectEndpoint("eth1"))
    with pytest.raises(kind, match=what):
        await claim_addresses(cast("Host", host), new)
    # As the old cable, to go back to, it is better than none.
    await restore_addresses(cast("Host", host), new)


@pytest.mark.parametrize("parent", [None, 3], ids=["is-in-another-namespace", "was-renamed"])
async def test_a_macvtap_whose_parent_is_not_there_by_its_name_is_a_cable(
    parent: int | None,
) -> None:
    host = MacvtapHost()
    host.by["lm2"].parent, host.by[3].name = parent, "eth9"
    await claim_addresses(cast("Host", host), new_cable(DirectEndpoint("eth1")))


# --- an old cable that is not there any more ------------------------------------------------------
class StagingHost(FakeHost):
    """Makes taps with an fd of nobody."""

    async def open_tap(self, *_: object, **__: object) -> object:
        return SimpleNamespace(fd=SimpleNamespace(number=99), device=self.device)


class HubQemu(FakeQemu):
    """Has a NIC on a hub with some cables, and the new backend on none."""

    def __init__(self, *idents: str) -> None:
        super().__init__()
        self.idents = idents
        self.batches: list[list[str]] = []

    async def query_network(self) -> NetTopology:
        return parse_info_network(f"{hub_with(*self.idents)}lmt-{NEW}: index=0,type=tap,fd=12\n")

    async def batch(self, commands: list[Any]) -> list[object]:
        self.batches.append([command.name for command in commands])
        return [{}, hub_with(NEW, *self.idents)]


async def test_a_new_cable_does_not_wait_beside_one_that_somebody_took_out() -> None:
    for idents, last in ([ID], "attach down"), ([], "attach up"):
        host, qemu, new = StagingHost(), HubQemu(*idents), new_cable()
        await made(qemu, host).stage(new, cable())
        assert host.done[-1] == last
        assert new.prestaged is bool(idents)
        assert bool(qemu.batches) is bool(idents), "plugged in beside the old one"
        assert new.hub_number == 1


@pytest.mark.parametrize("idents", [["00000bad"], [ID, "00000bad"]])
async def test_a_new_cable_comes_to_no_hub_with_a_strangers(idents: list[str]) -> None:
    host, qemu = StagingHost(), HubQemu(*idents)
    with pytest.raises(HubCrowded, match="00000bad"):
        await made(qemu, host).stage(new_cable(), cable())
    assert qemu.batches == []


# --- the fd ---------------------------------------------------------------------------------------
async def test_our_duplicate_of_the_fd_outlives_the_one_of_qemu() -> None:
    """The last one to close a tap waits 20 ms for the kernel: not QEMU, with its guest."""
    open_then: list[bool] = []
    old = cable()

    class Watching(FakeQemu):
        async def execute(self, name: str, _arguments: object = None, **_: object) -> object:
            if name == "netdev_del":
                open_then.append(old.fd is not None and not old.fd.closed)
            return None

    old.fd = Fd(os.open("/dev/null", os.O_RDONLY))
    await made(Watching(), FakeHost()).release(old)
    assert open_then == [True]
    assert old.fd is None
