"""The verbs against a model of them: whatever is done in whatever order, both say the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from linkmgr import LinkManager
from linkmgr.errors import LinkmgrError
from linkmgr.inventory.networks import Networks
from linkmgr.model import LinkState, NicRef, NicState, Outcome, Port
from tests.integration.lab import Lab
from tests.integration.manager.test_linearizable import faults

T = TypeVar("T")

SEGMENTS = {"blue": "br-blue", "red": "br-red", "grey": "v-grey"}  # of two drivers
VMS = {"web1": ("web1/net0", "web1/net1"), "web2": ("web2/net0",)}
NICS = [nic for nics in VMS.values() for nic in nics]
PORTS = ["p1", "p2"]
DEFAULT_DRIFT = "repair"
FLAPS = 20  #: each takes up to a second, for guests look no more often


class Refusal(Exception):
    """What the model refuses; the code of the error."""


@dataclass
class Model:
    """What the verbs mean, without QEMU, kernel or time."""

    networks: dict[str, str] = field(default_factory=dict)  # name -> drift
    ports: dict[tuple[str, str], bool] = field(default_factory=dict)  # -> isolated
    vms: set[str] = field(default_factory=set)
    plugged: dict[str, str] = field(default_factory=dict)  # NIC -> NETWORK[:PORT]
    wanted: dict[str, LinkState] = field(default_factory=dict)

    def add_vm(self, vm: str) -> None:
        if vm not in self.vms:
            self.vms.add(vm)
            self.wanted |= dict.fromkeys(VMS[vm], LinkState.UP)

    def remove_vm(self, vm: str) -> bool:
        known = vm in self.vms
        self.vms.discard(vm)
        for nic in VMS[vm]:
            self.plugged.pop(nic, None)
        return known

    def create_network(self, name: str, drift: str) -> None:
        if self.networks.setdefault(name, drift) != drift:
            raise Refusal("already-exists")

    def delete_network(self, name: str) -> bool:
        on_it = [target for target in self.plugged.values() if target.partition(":")[0] == name]
        if on_it or any(network == name for network, _ in self.ports):
            raise Refusal("network-in-use")
        return self.networks.pop(name, None) is not None

    def create_port(self, network: str, name: str, *, isolated: bool) -> None:
        if network not in self.networks:
            raise Refusal("unknown-network")
        if self.ports.setdefault((network, name), isolated) != isolated:
            raise Refusal("already-exists")

    def delete_port(self, network: str, name: str) -> bool:
        if f"{network}:{name}" in self.plugged.values():
            raise Refusal("port-in-use")
        return self.ports.pop((network, name), None) is not None

    def plug(self, nic: str, target: str) -> bool:
        self._find(nic)
        network, colon, port = target.partition(":")
        if network not in self.networks:
            raise Refusal("unknown-network")
        if colon and (network, port) not in self.ports:
            raise Refusal("unknown-port")
        here = self.plugged.get(nic, "")
        if target in (here, here.partition(":")[0]):
            return False
        if colon and target in self.plugged.values():
            raise Refusal("port-in-use")
        self.plugged[nic] = target
        return True

    def unplug(self, nic: str) -> bool:
        self._find(nic)
        return self.plugged.pop(nic, None) is not None

    def set_link(self, nic: str, wanted: LinkState) -> bool:
        self._find(nic)
        before, self.wanted[nic] = self.wanted[nic], wanted
        return before is not wanted

    def _find(self, nic: str) -> None:
        if nic.partition("/")[0] not in self.vms:
            raise Refusal("unknown-vm")


def restrained(name: str) -> dict[str, Any]:
    """The driver and the options of a network of the lab."""
    if name == "grey":
        return {"driver": "direct", "parent": SEGMENTS[name]}
    return {"driver": "bridge", "bridge": SEGMENTS[name]}


@dataclass
class World:
    """What the machine works on, and the loop that it works in."""

    lab: Lab
    state: Path
    loop: asyncio.AbstractEventLoop
    links: LinkManager
    outcomes: Counter[str] = field(default_factory=Counter)
    flaps: int = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop, from the machine's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def restart(self) -> None:
        await self.links.close()
        self.links = await LinkManager(state=self.state, watch=False).__aenter__()

    async def clear(self) -> None:
        """Make it as it was."""
        for vm in VMS:
            await self.links.remove_vm(vm)
        for network in await self.links.networks():
            for port in await self.links.ports(network.name):
                await self.links.delete_port(network.name, port.name)
            await self.links.delete_network(network.name)


networks = st.sampled_from(list(SEGMENTS))
ports = st.sampled_from(PORTS)
nics = st.sampled_from(NICS)
vms = st.sampled_from(list(VMS))
targets = st.one_of(networks, st.builds("{}:{}".format, networks, ports))


class Machine(RuleBasedStateMachine):
    """Does the same with both."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def both(
        self, modelled: Callable[[], T], real: Coroutine[Any, Any, Any]
    ) -> tuple[T | None, Any]:
        """Do it with both; both refuse it for the same reason, or neither does."""
        refused = answered = None
        wanted = got = None
        try:
            wanted = modelled()
        except Refusal as refusal:
            refused = str(refusal)
        try:
            got = self.world.run(real)
        except LinkmgrError as error:
            answered = error.code
        assert answered == refused, f"the answer is {answered or got}, the model's {refused}"
        self.world.outcomes[refused or "done"] += 1
        return wanted, got

    def changes(self, modelled: Callable[[], bool], real: Coroutine[Any, Any, Any]) -> None:
        wanted, got = self.both(modelled, real)
        assert wanted == (got.changed if isinstance(got, Outcome) else got)

    @property
    def links(self) -> LinkManager:
        return self.world.links

    # -------------------------------------------------------------- rules
    @initialize()
    def begin(self) -> None:
        """Have most of what a plug needs."""
        for vm in VMS:
            self.add_vm(vm=vm)
        for name in SEGMENTS:
            self.create_network(name=name, drift=DEFAULT_DRIFT)
        self.create_port(network="blue", name="p1", isolated=False)
        self.create_port(network="red", name="p1", isolated=True)

    @rule(vm=vms)
    def add_vm(self, vm: str) -> None:
        path = self.world.lab.guests[vm].qmp_path
        _, got = self.both(lambda: self.model.add_vm(vm), self.links.add_vm(vm, path))
        assert {str(nic.ref) for nic in got} == set(VMS[vm])

    @rule(vm=vms)
    def remove_vm(self, vm: str) -> None:
        self.changes(lambda: self.model.remove_vm(vm), self.links.remove_vm(vm))

    @rule(name=networks, drift=st.sampled_from([DEFAULT_DRIFT, DEFAULT_DRIFT, "report"]))
    def create_network(self, name: str, drift: str) -> None:
        real = self.links.create_network(name, drift=drift, **restrained(name))
        self.both(lambda: self.model.create_network(name, drift), real)

    @rule(name=networks)
    def delete_network(self, name: str) -> None:
        self.changes(lambda: self.model.delete_network(name), self.links.delete_network(name))

    @rule(network=st.sampled_from(["blue", "red"]), name=ports, isolated=st.booleans())
    def create_port(self, network: str, name: str, isolated: bool) -> None:
        self.both(
            lambda: self.model.create_port(network, name, isolated=isolated),
            self.links.create_port(network, name, isolated=isolated),
        )

    @rule(network=networks, name=ports)
    def delete_port(self, network: str, name: str) -> None:
        self.changes(
            lambda: self.model.delete_port(network, name), self.links.delete_port(network, name)
        )

    @rule(nic=nics, into=targets)
    def plug(self, nic: str, into: str) -> None:
        self.changes(
            lambda: self.model.plug(nic, into), self.links.plug(nic, into, notify="silent")
        )

    @rule(nic=nics, into=st.sampled_from(["blue:p1", "red:p1"]))
    def plug_into_a_port_that_others_want(self, nic: str, into: str) -> None:
        self.plug(nic=nic, into=into)

    @rule(nic=nics)
    def unplug(self, nic: str) -> None:
        self.changes(lambda: self.model.unplug(nic), self.links.unplug(nic))

    @precondition(lambda self: not self.model.plugged or self.world.flaps < FLAPS)
    @rule(nic=nics, wanted=st.sampled_from(list(LinkState)))
    def set_link(self, nic: str, wanted: LinkState) -> None:
        self.world.flaps += nic in self.model.plugged
        self.changes(lambda: self.model.set_link(nic, wanted), self.links.set_link(nic, wanted))

    @precondition(lambda self: self.model.plugged)
    @rule()
    def restart(self) -> None:
        self.world.run(self.world.restart())

    # -------------------------------------------------------------- what is always so
    @invariant()
    def they_say_the_same(self) -> None:
        self.world.run(self._compare())

    async def _compare(self) -> None:
        model, links = self.model, self.links
        assert {vm.name for vm in await links.vms()} == model.vms
        assert {n.name: n.drift for n in await links.networks()} == model.networks
        for network in model.networks:
            found = {port.name for port in await links.ports(network)}
            assert found == {name for net, name in model.ports if net == network}
        for nic in await links.nics():
            ref = str(nic.ref)
            target = model.plugged.get(ref)
            assert (nic.connection and str(nic.connection.port)) == target
            assert nic.state is (NicState.PLUGGED if target else NicState.UNPLUGGED)
            assert nic.wanted_link is model.wanted[ref]
            assert nic.link is (nic.wanted_link if target else LinkState.DOWN)
        on = {str(c.nic): (str(c.port), c.device) for c in await links.connections()}
        assert {nic: port for nic, (port, _) in on.items()} == model.plugged
        for segment, device in SEGMENTS.items():
            ours = {dev for port, dev in on.values() if port.partition(":")[0] == segment}
            assert {path.name for path in _hanging_on(device)} == ours, f"devices on {device}"
        assert await faults(links) == []

    def teardown(self) -> None:
        self.world.run(self.world.clear())


def _hanging_on(device: str) -> list[Path]:
    """Our devices on a bridge or a parent, as the kernel has them."""
    return [
        path
        for path in Path("/sys/class/net").glob("lm*")
        if any((path / f"{side}_{device}").exists() for side in ("upper", "lower"))
    ]


@pytest.fixture
async def world(lab: Lab, tmp_path: Path) -> Any:
    for segment in SEGMENTS:
        await lab.network(segment)
        await lab.links.delete_network(segment)
    for vm, names in VMS.items():
        await lab.guest(vm, nics=len(names), boot=False, add=False)
    state = tmp_path / "state"
    async with LinkManager(state=state, watch=False) as links:
        made = World(lab, state, asyncio.get_running_loop(), links)
        try:
            yield made
        finally:
            await made.clear()
            await made.links.close()


async def run_machine(world: World, examples: int, steps: int) -> None:
    """Run it in a thread of its own, as hypothesis knows no event loop."""
    machine = type("Run", (Machine,), {"world": world})
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True,
        database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    await asyncio.to_thread(run_state_machine_as_test, machine, settings=chosen)


async def test_the_verbs_do_what_the_model_does(world: World) -> None:
    await run_machine(world, examples=20, steps=40)
    assert world.outcomes["done"] > 400
    assert world.flaps > 1, "the link of a plugged NIC was hardly ever set"
    assert world.outcomes.keys() > {"port-in-use", "network-in-use", "unknown-port", "unknown-vm"}


async def test_a_port_that_two_nics_can_have_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claim(self: Networks, port: Port, nic: NicRef) -> None:
        self._claims[port.network.name, port.name] = nic

    monkeypatch.setattr(Networks, "claim", claim)
    with pytest.raises(AssertionError, match="port-in-use"):
        await run_machine(world, examples=40, steps=40)
