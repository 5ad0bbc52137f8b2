"""Port bindings of guests that are on their way here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, ClassVar

import pytest

from linkmgr.drivers import Attachment, NetworkDriver
from linkmgr.errors import (
    AlreadyExists,
    HostError,
    LinkmgrError,
    MacInUse,
    NetworkInUse,
    PortInUse,
    UnknownNetwork,
)
from linkmgr.host import Host
from linkmgr.inventory import bindings as module
from linkmgr.inventory.bindings import PortBindings
from linkmgr.inventory.networks import Networks
from linkmgr.libvirt.domains.inline_networks import InlineNetworks
from linkmgr.libvirt.domains.migration import bind_for_migration
from linkmgr.libvirt.xml.document import Document
from linkmgr.model import BridgeEndpoint, Endpoint, EndpointKind, NicRef, Offer, Port

NIC, MAC = NicRef("web1", "ua-net0"), "52:54:00:00:00:01"


class Made(Attachment):
    async def realise(self) -> Endpoint:
        driver = Recorder.of
        assert driver is not None
        driver.log.append(f"realise {self.port} {self.offer.mac} {self.offer.mtu}")
        await driver.gate.wait()
        if driver.broken:
            raise driver.broken
        return BridgeEndpoint("br0")


class Recorder(NetworkDriver):
    """A driver that writes down what it was asked for."""

    name = "recorder"
    kinds = (EndpointKind.BRIDGE,)
    network_options: ClassVar[dict[str, Any]] = {}
    port_options: ClassVar[dict[str, Any]] = {}
    of: ClassVar[Recorder | None] = None

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.log: list[str] = []
        self.broken: Exception | None = None
        self.gate = asyncio.Event()  # a network that takes its time, while it is not set
        self.gate.set()
        self.end_gate = asyncio.Event()  # and one that takes its time to free what it has made
        self.end_gate.set()
        Recorder.of = self

    async def init_attachment(
        self, offer: Offer, port: Port, *, ident: str | None = None
    ) -> Attachment:
        self.log.append(f"init {port}")
        return Made(ident or "a1", offer, port, self.negotiate(offer, port))

    async def terminate_attachment(self, attachment: Attachment) -> None:
        await self.end_gate.wait()
        self.log.append(f"terminate {attachment.port}")


class Bench:
    """Two networks, a driver that writes down, and nobody here."""

    def __init__(self) -> None:
        host = Host()
        self.networks = Networks(host)
        self.driver = self.networks._drivers["recorder"] = Recorder(host)
        self.networks.create("blue", "recorder", {})
        self.networks.create("green", "recorder", {})
        self.networks.create_port("green", "p1", {})
        self.macs: dict[NicRef, str] = {}
        self.here: set[str] = set()
        self.tasks: list[asyncio.Task[None]] = []
        self.bindings = PortBindings(
            self.networks,
            mac_of=self.macs.get,
            is_here=self.here.__contains__,
            start=self._start,
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.bindings.release_all()
    assert made.networks.in_use() == set()


async def test_a_binding_is_realised_and_claimed_until_it_ends(bench: Bench) -> None:
    await bench.bindings.bind(NIC, "green:p1", mac=MAC.upper(), mtu=9000)
    assert bench.driver.log == ["init green:p1", f"realise green:p1 {MAC} 9000"]
    assert NIC in bench.bindings
    with pytest.raises(PortInUse, match="web1/ua-net0"):
        bench.networks.claim(bench.networks.port("green:p1", NIC), NicRef("web2", "net0"))
    await bench.bindings.release(NIC)
    assert bench.driver.log[-1] == "terminate green:p1"
    assert NIC not in bench.bindings
    assert bench.networks.in_use() == set()
    await bench.bindings.release(NIC)
    assert bench.driver.log.count("terminate green:p1") == 1


async def test_a_nic_that_was_plugged_keeps_its_port_when_its_binding_ends(bench: Bench) -> None:
    await bench.bindings.bind(NIC, "blue", mac=MAC)
    port = bench.networks.port("blue", NIC)
    await bench.bindings.release(NIC, keeps=port)
    with pytest.raises(NetworkInUse, match="web1/ua-net0"):
        bench.networks.delete("blue")
    bench.networks.free(port, NIC)


async def test_a_nic_that_was_plugged_elsewhere_does_not_keep_the_port(bench: Bench) -> None:
    await bench.bindings.bind(NIC, "blue", mac=MAC)
    await bench.bindings.release(NIC, keeps=bench.networks.port("green", NIC))
    assert bench.networks.in_use() == set()


async def test_another_binding_ends_the_first(bench: Bench) -> None:
    await bench.bindings.bind(NIC, "blue", mac=MAC)
    await bench.bindings.bind(NIC, "green", mac=MAC)
    assert bench.networks.in_use() == {"green"}
    assert [each for each in bench.driver.log if "terminate" in each] == ["terminate blue"]


async def test_what_cannot_be_realised_leaves_nothing_and_names_the_nic(bench: Bench) -> None:
    bench.driver.broken = HostError("no bridge", hint="make one")
    with pytest.raises(HostError) as raised:
        await bench.bindings.bind(NIC, "blue", mac=MAC)
    assert str(raised.value).startswith("web1/ua-net0: no bridge")
    assert bench.driver.log[-1] == "terminate blue"
    assert NIC not in bench.bindings
    assert bench.networks.in_use() == set()


@pytest.mark.parametrize(
    ("target", "kind"),
    [("red", UnknownNetwork), ("fd:mine", LinkmgrError), ("green:p1", PortInUse)],
)
async def test_a_target_that_is_not_to_be_had_is_refused(
    bench: Bench, target: str, kind: type[LinkmgrError]
) -> None:
    other = NicRef("web2", "net0")
    port = bench.networks.port("green:p1", other)
    bench.networks.claim(port, other)
    with pytest.raises(kind):
        await bench.bindings.bind(NIC, target, mac=MAC)
    assert NIC not in bench.bindings
    bench.networks.free(port, other)


async def test_an_address_that_the_network_has_already_is_refused(bench: Bench) -> None:
    other = NicRef("web2", "net0")
    bench.macs[other] = MAC
    port = bench.networks.port("blue", other)
    bench.networks.claim(port, other)
    with pytest.raises(MacInUse, match="web2/net0"):
        await bench.bindings.bind(NIC, "blue", mac=MAC)
    assert bench.driver.log == []
    bench.networks.free(port, other)


async def test_a_vm_that_is_here_gets_no_place(bench: Bench) -> None:
    bench.here.add("web1")
    with pytest.raises(AlreadyExists, match="web1"):
        await bench.bindings.bind(NIC, "blue", mac=MAC)


@pytest.mark.parametrize("comes", [False, True])
async def test_a_binding_expires_unless_its_guest_comes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    monkeypatch.setattr(module, "BINDING_TIMEOUT_S", 0.02)
    await bench.bindings.bind(NIC, "blue", mac=MAC)
    if comes:
        bench.here.add("web1")
    await asyncio.sleep(0.1)
    assert (NIC in bench.bindings) is comes
    assert ("terminate blue" in bench.driver.log) is not comes


async def test_a_caller_that_goes_away_in_the_middle_leaves_a_binding_or_nothing(
    bench: Bench,
) -> None:
    asked = asyncio.create_task(bench.bindings.bind(NIC, "blue", mac=MAC))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, *bench.tasks, return_exceptions=True)
    assert (NIC in bench.bindings) is (bench.networks.in_use() == {"blue"})


async def test_a_caller_that_goes_away_in_the_end_does_not_keep_it_from_being_freed(
    bench: Bench,
) -> None:
    await bench.bindings.bind(NIC, "blue", mac=MAC)
    await bench.bindings.bind(NicRef("web1", "ua-net1"), "green", mac="52:54:00:00:00:02")
    bench.driver.end_gate.clear()
    ending = asyncio.create_task(bench.bindings.release_all("web1"))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    bench.driver.end_gate.set()
    await asyncio.gather(*bench.tasks)
    assert bench.driver.log[-2:] == ["terminate blue", "terminate green"]
    assert bench.networks.in_use() == set()


async def _begun(bench: Bench, target: str) -> asyncio.Task[None]:
    """Have a binding made, as far as the network's part of it, which hangs."""
    bench.driver.gate.clear()
    asked = asyncio.create_task(bench.bindings.bind(NIC, target, mac=MAC))
    while "realise" not in "".join(bench.driver.log[-1:]):  # noqa: ASYNC110 - it knows no test
        await asyncio.sleep(0)
    return asked


async def test_a_binding_that_is_given_up_before_its_network_is_ready_leaves_nothing(
    bench: Bench,
) -> None:
    asked = await _begun(bench, "blue")
    await bench.bindings.release_all("web1")
    bench.driver.gate.set()
    await asked
    # What was made after the first end is freed, too.
    assert bench.driver.log[-2:] == ["terminate blue", "terminate blue"]
    assert NIC not in bench.bindings
    assert bench.bindings._timers == {}
    assert bench.networks.in_use() == set()


async def test_a_network_that_fails_late_does_not_cost_the_nic_the_port_it_is_plugged_into(
    bench: Bench,
) -> None:
    asked = await _begun(bench, "blue")
    port = bench.networks.port("blue", NIC)
    bench.networks.claim(port, NIC)  # the guest has come, and is plugged
    await bench.bindings.release(NIC, keeps=port)
    bench.driver.broken = HostError("too late", hint="wait")
    bench.driver.gate.set()
    with pytest.raises(HostError):
        await asked
    assert bench.driver.log[-1] == "terminate blue"
    assert bench.driver.log.count("terminate blue") == 2
    assert bench.networks.in_use() == {"blue"}
    bench.networks.free(port, NIC)


async def test_a_network_that_fails_late_does_not_cost_the_nic_its_next_place(bench: Bench) -> None:
    late = await _begun(bench, "blue")
    bench.driver.gate, gate = asyncio.Event(), bench.driver.gate
    bench.driver.gate.set()
    await bench.bindings.bind(NIC, "green", mac=MAC)
    bench.driver.broken = HostError("too late", hint="wait")
    gate.set()
    with pytest.raises(HostError):
        await late
    assert NIC in bench.bindings
    assert bench.networks.in_use() == {"green"}


DOMAIN = """<domain>
  <name>web1</name>
  <metadata>
    <lm:cables xmlns:lm='urn:linkmgr:cables'>{cables}</lm:cables>
    <p:prepared xmlns:p='urn:linkmgr:prepared'>
      <p:nic alias='ua-net0'/><p:nic alias='ua-net1'/><p:nic alias='ua-net2'/>
    </p:prepared>
  </metadata>
  <devices>
    <interface type='ethernet'><mac address='52:54:00:00:00:01'/><alias name='ua-net0'/></interface>
    <interface type='ethernet'>
      <mac address='52:54:00:00:00:02'/><mtu size='9000'/><alias name='ua-net1'/>
    </interface>
    <interface type='ethernet'><mac address='52:54:00:00:00:03'/><alias name='ua-net2'/></interface>
    <interface type='bridge'><mac address='52:54:00:00:00:04'/><alias name='net3'/></interface>
  </devices>
</domain>"""


def domain(*cables: str) -> Document:
    return Document(DOMAIN.format(cables="".join(f"<lm:cable {c}/>" for c in cables)).encode())


class NoInlineNetworks(InlineNetworks):
    def __init__(self) -> None:
        pass


async def test_a_domain_gets_a_binding_for_each_cable_of_a_prepared_nic(bench: Bench) -> None:
    held = await bind_for_migration(
        bench.bindings,
        NoInlineNetworks(),
        domain(
            "nic='ua-net0' network='green' port='p1'",
            "nic='ua-net1' network='blue'",
            "nic='ua-net2' link='down'",  # unplugged
            "nic='net3' network='blue'",  # not prepared
            "nic='ua-net9' network='blue'",  # not there
        ),
    )
    assert held == ["ua-net0 on green:p1", "ua-net1 on blue"]
    assert [each for each in bench.driver.log if "realise" in each] == [
        "realise green:p1 52:54:00:00:00:01 1500",
        "realise blue 52:54:00:00:00:02 9000",
    ]


async def test_a_domain_of_which_one_cable_cannot_be_had_gets_no_binding_at_all(
    bench: Bench,
) -> None:
    with pytest.raises(UnknownNetwork) as raised:
        await bind_for_migration(
            bench.bindings,
            NoInlineNetworks(),
            domain("nic='ua-net0' network='blue'", "nic='ua-net1' network='red'"),
        )
    assert "web1/ua-net1" in str(raised.value)
    assert NIC not in bench.bindings
    assert bench.networks.in_use() == set()
