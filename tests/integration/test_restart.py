"""A linkmgr that is killed at any step and starts again: the guest is on one whole cable."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from linkmgr import LinkManager, LinkState, Nic, NicState, reconcile
from linkmgr.carrier import HOLD
from linkmgr.errors import MonitorUnreachable, NetworkInUse, PortInUse
from linkmgr.model import VmState
from linkmgr.swap import Step
from linkmgr.testing.process import until
from tests.integration.crash import CROSSED, DIE, STAY
from tests.integration.failures_lab import NIC, RATE, Fault, no_frame_lost, nothing_left, traces
from tests.integration.forks import Forks
from tests.integration.lab import Lab, make_lab
from tests.integration.steps import (
    BEFORE_THE_SWITCH,
    PLUG,
    REPLUG,
    RESTART,
    UNPLUG,
    done_before,
    flaps_after,
    reaches_at,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "lmtap0"  #: of the NIC's tap, whatever bridge it is on
#: Seconds that a flap of this process may take: nothing but two answers of QEMU, as `bed` sets HOLD
#: to 0, on a machine that is busy. One of another process takes HOLD besides.
FLAP = 0.05


@dataclass
class Bed:
    """A lab with blue, red (bridges) and green (macvtap), one guest, and a state directory."""

    lab: Lab
    state: Path
    crash: Forks

    @asynccontextmanager
    async def links(self) -> AsyncIterator[LinkManager]:
        """A linkmgr with that state, in this process."""
        async with LinkManager(state=self.state, timeout=5) as links:
            self.lab.links = links
            yield links

    @asynccontextmanager
    async def restarted(
        self, works_on: str | None, *, but: int = 0, killed_at: Sequence[Step] = ()
    ) -> AsyncIterator[LinkManager]:
        """A linkmgr after the kill of another; its start costs a guest that is on a cable nothing.

        :param works_on: the network that the guest reaches although linkmgr is dead.
        :param but: so many frames may be lost all the same; see `no_frame_lost`.
        :param killed_at: steps of the recovery at which others are killed before.
        """
        async with AsyncExitStack() as stack:
            async with AsyncExitStack() as measured:
                if works_on:
                    guest, peer = self.lab.guests["web1"], self.lab.peers[works_on]
                    await measured.enter_async_context(no_frame_lost(guest, peer, but=but))
                for step in killed_at:
                    await self.killed(step, "none")
                links = await stack.enter_async_context(self.links())
            yield links

    async def killed(self, where: str, *words: str) -> None:
        """Let a linkmgr of its own do a verb, and kill itself there."""
        assert await self.run(where, *words) == -signal.SIGKILL, self.crash.said()
        at = self.state.with_name("killed-at").read_text()
        assert at.split()[0] == where, f"it was killed at {at}"

    async def run(self, where: str, *words: str) -> int:
        """Let a linkmgr of its own do a verb, and kill itself if it gets there."""
        monitor = self.lab.guests["web1"].qmp_path
        await self.crash.start(str(self.state), where, "web1", str(monitor), *words)
        return await self.crash.ended()

    async def start_from(self, target: str | None) -> None:
        async with self.links() as links:
            if target:
                await links.plug(NIC, target, notify="silent")
            else:
                await links.unplug(NIC)

    async def recovered(self, *, heard: bool = False) -> Nic:
        """The NIC after a restart, when journal, QEMU, kernel and guest agree about it.

        :param heard: whether frames have just been seen to come and go.
        """
        assert await self.lab.links.check() == []
        nic = await self.lab.links.nic(NIC)
        assert nic.state in (NicState.PLUGGED, NicState.UNPLUGGED)
        assert len(await self.cables()) == (1 if nic.connection else 0)
        assert nic.link is (LinkState.UP if nic.connection else LinkState.DOWN)
        document = json.loads((self.state / "vms" / "web1.json").read_text())["nics"]["net0"]
        assert document["intent"] is None
        assert (document["cable"] is not None) == (nic.connection is not None)
        if nic.connection:
            assert document["cable"]["device"] == nic.connection.device
            if nic.connection.network != "green":  # only taps are named
                assert nic.connection.device == NAME
        if not heard:
            await self.reaches(nic)
        return nic

    async def cables(self) -> list[str]:
        """The backends on the NIC's hub, as QEMU tells."""
        found = await self.lab.guests["web1"].qmp(
            "human-monitor-command", **{"command-line": "info network"}
        )
        return [line for line in found.splitlines() if line.startswith(" \\ lmp-")]

    async def reaches(self, nic: Nic) -> None:
        """The guest and the network that it is on hear each other, and at once.

        Linux looks at its carriers once a second, so that is how long the guest may take.
        """
        guest = self.lab.guests["web1"]
        await guest.wait_carrier("eth0", nic.connection is not None, timeout=2)
        if nic.connection:
            # The peers share an address; a flap that nobody has to see leaves the old neighbour.
            await guest.run("ip neigh flush dev eth0", check=True)

            async def answered() -> bool:
                return (await guest.ping("fe80::1%eth0", count=1)).received == 1

            await until(answered, timeout=2, what="the peer answers")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    folder = tmp_path_factory.mktemp("bed")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOLD", "LOOK", "MARGIN"):
            patch.setattr(f"linkmgr.carrier.{name}", 0.0)
        forks = Forks("tests.integration.crash", log=folder / "crash.log")
        async with make_lab(folder) as lab, forks as crash:
            bed = Bed(lab, folder / "state", crash)
            async with bed.links() as links:
                for network in ("blue", "red", "green"):
                    await lab.network(network)
                for network in ("blue", "green"):
                    for port in ("one", "two"):
                        await links.create_port(network, port)
                await lab.guest()
                await links.name_device(NIC, NAME)
            yield bed
            async with bed.links() as links:
                assert await links.remove_vm("web1")
            assert list((bed.state / "vms").iterdir()) == []


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def unplugged(bed: Bed) -> AsyncIterator[None]:
    """In the end the NIC is unplugged."""
    yield
    await bed.start_from(None)


@pytest.mark.parametrize(
    ("start", "target", "steps"),
    [(None, "blue:one", PLUG), ("blue:one", "red", REPLUG), ("blue:one", None, UNPLUG)],
)
async def test_every_step_of_the_lists_is_taken_and_no_other(
    bed: Bed, start: str | None, target: str | None, steps: list[Step]
) -> None:
    """So a step that is new is killed at, or it is missed here."""
    taken = Fault()
    await bed.start_from(start)
    async with LinkManager(state=bed.state, timeout=5, probe=taken) as links:
        assert taken.steps == (RESTART if start else RESTART[1:])  # no cable is nothing to recover
        taken.forget()
        await (links.plug(NIC, target) if target else links.unplug(NIC))
    assert taken.steps == steps
    assert {*PLUG, *REPLUG, *UNPLUG, *RESTART} == set(Step)


@pytest.mark.parametrize(
    ("start", "target", "steps"),
    [
        (None, "blue:one", PLUG),
        (None, "green", PLUG),
        ("blue:one", "red", REPLUG),
        ("blue:one", "blue:two", REPLUG),
        ("blue:one", "green", REPLUG),
        ("green", "blue:one", REPLUG),
        ("green:one", "green:two", REPLUG),
        ("blue:one", None, UNPLUG),
        ("green", None, UNPLUG),
    ],
)
async def test_killed_at_any_step_the_guest_is_on_the_old_cable_or_the_new_one(
    bed: Bed, subtests: pytest.Subtests, start: str | None, target: str | None, steps: list[Step]
) -> None:
    async with bed.links() as links:
        await links.unplug(NIC)
        nothing = await traces(bed.lab)
    words = ("plug", NIC, target) if target else ("unplug", NIC)
    for step in [*steps, DIE]:
        with subtests.test(msg=f"killed before {step}"):
            await bed.start_from(start)
            await bed.killed(step, *words)
            # None is lost to a cable that stays, or to a switch that is done.
            but = int(RATE * FLAP) if flaps_after(step, start, target) else 0
            works_on = reaches_at(step, start, target)
            async with bed.restarted(works_on, but=but) as links:
                nic = await bed.recovered(heard=works_on is not None)
                expected = target if done_before(step) else start
                if start == "green:one" and target and step is not DIE:
                    # One macvtap for both: where it is cannot be told until it is written down.
                    recorded = (*BEFORE_THE_SWITCH, Step.ACTIVATE, Step.NOTIFY, Step.RECORD)
                    expected = start if step in recorded else target
                assert (str(nic.connection.port) if nic.connection else None) == expected
                await links.unplug(NIC)
                await nothing_left(bed.lab, nothing)


@pytest.mark.parametrize(
    ("start", "target"),
    [
        (None, "blue:one"),
        ("blue:one", "red"),
        ("blue:one", "green"),
        ("green", "blue:one"),
        ("green:one", "green:two"),
        ("blue:one", None),
    ],
)
async def test_killed_after_any_answer_of_qemu_the_guest_is_on_one_whole_cable(
    bed: Bed, subtests: pytest.Subtests, start: str | None, target: str | None
) -> None:
    """Between getfd and netdev_add, between the old hub port and the new one: everywhere."""
    async with bed.links() as links:
        await links.unplug(NIC)
        nothing = await traces(bed.lab)
    words = ("plug", NIC, target) if target else ("unplug", NIC)
    places: list[str] = []
    for answers in range(1, 60):
        await bed.start_from(start)
        if await bed.run(str(answers), *words) == STAY:
            break
        place = bed.state.with_name("killed-at").read_text()
        places.append(place.split()[1])
        with subtests.test(msg=f"killed after answer {place}"):
            async with bed.links() as links:
                nic = await bed.recovered()
                assert (str(nic.connection.port) if nic.connection else None) in (start, target)
                assert nic.connection or None in (start, target)
                await links.unplug(NIC)
                await nothing_left(bed.lab, nothing)
    else:
        pytest.fail("it never got to its end")
    if target and start != "green:one":
        assert {"getfd", "netdev_add"} <= set(places)


@pytest.mark.parametrize("target", ["red", "blue:two"])
async def test_killed_between_the_kernels_switch_and_qemus_it_is_on_the_old_cable(
    bed: Bed, target: str
) -> None:
    """Both cables are plugged in then, and the old one is shut."""
    async with bed.links() as links:
        await links.unplug(NIC)
        nothing = await traces(bed.lab)
    await bed.start_from("blue:one")
    await bed.killed(CROSSED, "plug", NIC, target)
    async with bed.links() as links:
        nic = await bed.recovered()
        assert nic.connection
        assert str(nic.connection.port) == "blue:one"
        async with no_frame_lost(bed.lab.guests["web1"], bed.lab.peers["blue"]):
            pass
        await links.unplug(NIC)
        await nothing_left(bed.lab, nothing)


@pytest.mark.parametrize("again", RESTART)
@pytest.mark.parametrize(
    ("start", "target", "step"),
    [
        ("blue:one", "red", Step.STAGE),
        ("blue:one", "green", Step.SWITCH),
        ("green", "blue:one", Step.ACTIVATE),
        ("blue:one", "red", Step.RECORD),
        ("blue:one", "green", Step.RELEASE),
        ("blue:one", None, Step.LINK_DOWN),
        ("green", None, Step.RECORD),
    ],
)
async def test_killed_again_while_it_recovers_it_recovers_all_the_same(
    bed: Bed, start: str, target: str | None, step: Step, again: Step
) -> None:
    async with bed.links() as links:
        await links.unplug(NIC)
        nothing = await traces(bed.lab)
    await bed.start_from(start)
    words = ("plug", NIC, target) if target else ("unplug", NIC)
    await bed.killed(step, *words)
    but = 0
    if flaps_after(step, start, target):
        # Those that are killed after they have recovered the NIC have told the guest too.
        killed = 0 if again is Step.RECOVER else 2
        but = int(RATE * (killed * (HOLD + FLAP) + FLAP))
    works_on = reaches_at(step, start, target)
    async with bed.restarted(works_on, but=but, killed_at=[again, again]) as links:
        nic = await bed.recovered(heard=works_on is not None)
        expected = target if done_before(step) else start
        assert (str(nic.connection.port) if nic.connection else None) == expected
        await links.unplug(NIC)
        await nothing_left(bed.lab, nothing)


async def test_a_restart_that_takes_the_cable_out_for_a_moment_is_noticed(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What measures the kills can fail: 50 ms are enough, and all agree in the end."""
    recover = reconcile._Nic.recover

    async def cut(self: reconcile._Nic) -> None:
        await recover(self)
        slot = self._slot
        assert slot.plugged
        await slot.wiring.switch(slot.ref, None, slot.plugged.cable)
        await asyncio.sleep(0.05)
        await slot.wiring.switch_back(slot.ref, None, slot.plugged.cable)

    monkeypatch.setattr(reconcile._Nic, "recover", cut)
    await bed.start_from("blue:one")
    await bed.killed(Step.STAGE, "plug", NIC, "red")
    with pytest.raises(AssertionError, match="arrived"):
        async with bed.restarted("blue"):
            pass


async def test_a_cable_that_works_is_not_touched_by_a_restart(bed: Bed) -> None:
    """No frame is lost while linkmgr is killed and starts again."""
    guest, peer = bed.lab.guests["web1"], bed.lab.peers["blue"]
    await bed.start_from("blue:one")
    await guest.wait_carrier("eth0", True)
    changes = await guest.run("cat /sys/class/net/eth0/carrier_changes", check=True)
    async with no_frame_lost(guest, peer):
        for _ in range(3):
            await bed.killed(DIE, "none")
        async with bed.links() as links:
            assert await links.check() == []
    assert await guest.run("cat /sys/class/net/eth0/carrier_changes") == changes
    await bed.start_from(None)


async def test_the_link_state_survives_a_restart(bed: Bed) -> None:
    async with bed.links() as links:
        await links.plug(NIC, "blue")
        await links.set_link(NIC, "down")
    async with bed.links() as links:
        nic = await links.nic(NIC)
        assert (nic.link, nic.wanted_link) == (LinkState.DOWN, LinkState.DOWN)
        await links.plug(NIC, "red")
        assert (await links.nic(NIC)).link is LinkState.DOWN
        await links.set_link(NIC, "up")
        await links.unplug(NIC)


async def test_a_port_stays_taken_over_a_restart(bed: Bed) -> None:
    await bed.start_from("blue:one")
    async with bed.links() as links:
        with pytest.raises(NetworkInUse, match=NIC):
            await links.delete_network("blue")
        with pytest.raises(PortInUse, match=NIC):
            await links.delete_port("blue", "one")
        await links.unplug(NIC)


async def test_a_stopped_qemu_is_waited_for(bed: Bed) -> None:
    """Its NIC is unknown and its cable stays; when QEMU answers again, all is as before."""
    guest = bed.lab.guests["web1"]
    await bed.start_from("blue:one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("linkmgr.inventory.PATIENCE", 0.3)
        os.kill(guest.pid, signal.SIGSTOP)
        try:
            async with LinkManager(state=bed.state, timeout=0.2) as links:
                (vm,) = await links.vms()
                assert vm.state is VmState.UNKNOWN
                nic = await links.nic(NIC)
                assert nic.state is NicState.UNKNOWN
                assert nic.connection is not None
                assert nic.connection.network == "blue"
                assert [found.code for found in await links.check()] == ["monitor-unreachable"]
                for verb in (
                    links.plug(NIC, "red"),
                    links.unplug(NIC),
                    links.set_link(NIC, "down"),
                    links.add_vm("web1", guest.qmp_path),
                ):
                    with pytest.raises(MonitorUnreachable, match="has not answered since"):
                        await verb
                with pytest.raises(NetworkInUse):
                    await links.delete_network("blue")
                os.kill(guest.pid, signal.SIGCONT)

                async def back() -> bool:
                    return (await links.nic(NIC)).state is NicState.PLUGGED

                await until(back, timeout=10, what="the NIC is plugged again")
                bed.lab.links = links
                await bed.recovered()
                await links.unplug(NIC)
        finally:
            os.kill(guest.pid, signal.SIGCONT)


async def test_a_guest_that_ended_meanwhile_is_forgotten_and_leaves_nothing(bed: Bed) -> None:
    async with bed.links() as links:
        before = await bed.lab.sh("ip -br link")
        other = await bed.lab.guest("web2", boot=False)
        await links.plug("web2/net0", "green:two")
    await other.stop()
    async with bed.links() as links:
        assert [vm.name for vm in await links.vms()] == ["web1"]
        assert [path.name for path in (bed.state / "vms").iterdir()] == ["web1.json"]
        assert await bed.lab.sh("ip -br link") == before
        await links.plug(NIC, "green:two")
        await links.unplug(NIC)


async def test_an_absent_vm_can_be_forgotten_and_stays_on_its_cable(bed: Bed) -> None:
    guest = bed.lab.guests["web1"]
    await bed.start_from("blue:one")
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("linkmgr.inventory.PATIENCE", 0.3)
            async with LinkManager(state=bed.state, timeout=0.2) as links:
                assert await links.remove_vm("web1")
                assert await links.vms() == []
                assert await links.delete_port("blue", "one")
                await links.create_port("blue", "one")
    finally:
        os.kill(guest.pid, signal.SIGCONT)
    async with bed.links() as links:
        assert await links.vms() == []
        (nic,) = await links.add_vm("web1", guest.qmp_path)
        assert nic.state is NicState.FOREIGN
        await guest.wait_carrier("eth0", True)


async def test_a_foreign_cable_survives_restarts(bed: Bed) -> None:
    """Nothing that a NIC is on is ever cleared away, whoever has plugged it."""
    guest, peer = bed.lab.guests["web1"], bed.lab.peers["blue"]
    await bed.start_from("blue:one")
    await guest.wait_carrier("eth0", True)
    document = bed.state / "vms" / "web1.json"
    async with no_frame_lost(guest, peer):
        document.unlink()
        async with bed.links() as links:
            (nic,) = await links.add_vm("web1", guest.qmp_path)
            assert nic.state is NicState.FOREIGN
            await links.name_device(NIC, NAME)
        for _ in range(2):
            async with bed.links() as links:
                assert (await links.nic(NIC)).state is NicState.FOREIGN
                assert await links.check() == []
    async with bed.links() as links:
        await links.plug(NIC, "red")
        assert (await bed.recovered()).connection is not None


@pytest.mark.parametrize("where", [Step.STAGE, Step.SWITCH, Step.LINK_DOWN, "netdev_del"])
async def test_killed_while_it_leaves_a_foreign_cable_the_nic_is_on_it_or_off_it(
    bed: Bed, where: str
) -> None:
    guest = bed.lab.guests["web1"]
    await bed.start_from("blue:one")
    (bed.state / "vms" / "web1.json").unlink()
    async with bed.links() as links:
        await links.add_vm("web1", guest.qmp_path)
        before = await bed.cables()
    if where == Step.LINK_DOWN:
        await bed.killed(where, "unplug", NIC)
    elif where == "netdev_del":
        for answers in range(1, 60):
            assert await bed.run(str(answers), "plug", NIC, "red") == -signal.SIGKILL
            if "netdev_del" in bed.state.with_name("killed-at").read_text():
                assert await bed.cables() == [], "it was killed on nothing"
                break
            async with bed.links():
                pass
    else:
        await bed.killed(where, "plug", NIC, "red")
    async with bed.links() as links:
        assert await bed.cables() == before
        assert (await links.nic(NIC)).state is NicState.FOREIGN
        await guest.wait_carrier("eth0", True)


async def test_a_guest_that_starts_again_under_its_name_is_written_down(bed: Bed) -> None:
    async with bed.links() as links:
        one = await bed.lab.guest("web3", boot=False)
        await links.plug("web3/net0", "red")
        await one.stop()
        two = await bed.lab.guest("web3", boot=False)
        assert (await links.nic("web3/net0")).state is NicState.UNPLUGGED
        assert (bed.state / "vms" / "web3.json").exists()
        await links.plug("web3/net0", "red")
    async with bed.links() as links:
        nic = await links.nic("web3/net0")
        assert nic.state is NicState.PLUGGED
        assert await links.remove_vm("web3")
    await two.stop()


async def test_a_nic_that_cannot_be_brought_back_hurts_no_other(bed: Bed) -> None:
    """Its cable stays, it is foreign, `check` says why; what is on disk stays for a better day."""
    async with bed.links() as links:
        await bed.lab.guest("web4", boot=False, nics=2)
        await links.plug("web4/net0", "red")
        await links.plug("web4/net1", "blue:two")
    path = bed.state / "vms" / "web4.json"
    whole = path.read_text()
    document = json.loads(whole)
    document["nics"]["net0"]["cable"]["port"]["network"]["driver"] = "nosuch"
    path.write_text(json.dumps(document))
    async with bed.links() as links:
        states = {str(nic.ref): nic.state for nic in await links.nics()}
        assert states["web4/net0"] is NicState.FOREIGN
        assert states["web4/net1"] is NicState.PLUGGED
        (found,) = await links.check()
        assert (found.code, found.subject) == ("not-recovered", "web4/net0")
        assert "nosuch" in found.what
    path.write_text(whole)
    async with bed.links() as links:
        assert await links.check() == []
        assert (await links.nic("web4/net0")).state is NicState.PLUGGED
    path.write_text(json.dumps(document))
    async with bed.links() as links:
        assert [found.code for found in await links.check()] == ["not-recovered"]
        await links.plug("web4/net0", "blue:one")
        assert await links.check() == []  # on a cable that is known
        assert await links.remove_vm("web4")
    await bed.lab.guests["web4"].stop()
