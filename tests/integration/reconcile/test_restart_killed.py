"""A linkmgr that is killed at any step and starts again: the guest is on one whole cable."""

from __future__ import annotations

import asyncio
import signal

import pytest

from linkmgr import LinkManager, NicState
from linkmgr.reconcile import recovery
from linkmgr.swap.carrier import MIN_DOWN_S
from linkmgr.swap.steps import Step
from tests.integration.crash import CROSSED, DIE, STAY
from tests.integration.failures_lab import NIC, RATE, Fault, no_frame_lost, nothing_left, traces
from tests.integration.restart_lab import FLAP, Bed, bed, unplugged
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

__all__ = ["bed", "unplugged"]  # fixtures

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
        but = int(RATE * (killed * (MIN_DOWN_S + FLAP) + FLAP))
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
    recover = recovery._Nic.recover

    async def cut(self: recovery._Nic) -> None:
        await recover(self)
        nic = self._nic
        assert nic.connection
        await nic.wiring.switch(nic.ref, None, nic.connection.cable)
        await asyncio.sleep(0.05)
        await nic.wiring.switch_back(nic.ref, None, nic.connection.cable)

    monkeypatch.setattr(recovery._Nic, "recover", cut)
    await bed.start_from("blue:one")
    await bed.killed(Step.STAGE, "plug", NIC, "red")
    with pytest.raises(AssertionError, match="arrived"):
        async with bed.restarted("blue"):
            pass


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
