"""QEMU that is stopped, so that its monitor does not answer, and QEMU that is killed."""

from __future__ import annotations

import itertools
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from linkmgr import EventKind, LinkManager, LinkState, NicState, hub_args
from linkmgr.errors import MonitorGone, MonitorTimeout
from linkmgr.swap.steps import Step
from linkmgr.testing import Guest
from linkmgr.testing.process import until
from tests.integration.failures_lab import (
    NIC,
    Fault,
    Scene,
    another_guest,
    is_told,
    make_scene,
    no_frame_lost,
    nothing_left,
    traces,
)
from tests.integration.lab import mac_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.next_qemu]

UNTOUCHED = [Step.OFFER, Step.INIT, Step.REALISE, Step.STAGE]
PLUG = [*UNTOUCHED, Step.SWITCH, Step.ACTIVATE, Step.NOTIFY]
TAKE_DOWN = [Step.RELEASE, Step.TERMINATE]
UNPLUG = [Step.LINK_DOWN, Step.SWITCH, *TAKE_DOWN]
STOPPED = "in an unknown state since [0-9-]+T[0-9:+]+, because QEMU does not answer"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def built(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("linkmgr.swap.carrier.LINKWATCH_INTERVAL_S", 0.0)
        async with make_scene(tmp_path_factory.mktemp("scene"), timeout=0.5) as made:
            yield made


@pytest_asyncio.fixture(loop_scope="module")
async def scene(built: Scene) -> AsyncIterator[Scene]:
    """An unplugged NIC. In the end it is unplugged again, and nothing is left of the test."""
    before = await traces(built.lab)
    yield built
    built.guest.signal(signal.SIGCONT)
    built.fault.forget()
    await until(lambda: settled(built), timeout=10, what="QEMU answers")
    await built.lab.links.unplug(NIC)
    await nothing_left(built.lab, before)


async def settled(scene: Scene) -> bool:
    """Whether every QEMU answers and nothing is left to be done."""
    return await scene.lab.links.check() == []


async def stop(guest: Guest) -> None:
    guest.signal(signal.SIGSTOP)


def stop_at(scene: Scene, step: Step) -> None:
    scene.fault.at(step, lambda: stop(scene.guest))


async def is_unknown(scene: Scene, begin: datetime) -> None:
    nic = await scene.lab.links.nic(NIC)
    assert (nic.state, nic.link) == (NicState.UNKNOWN, None)
    assert begin <= nic.since <= datetime.now(UTC)


def says_what_comes(error: MonitorTimeout, *, switched: bool) -> None:
    assert error.hint
    assert ("the new cable is in" in error.hint) is switched
    assert ("when QEMU answers again: repeat it then" in error.hint) is not switched


@pytest.mark.parametrize("target", ["red", "green"])
@pytest.mark.parametrize("step", UNTOUCHED)
async def test_stopped_before_the_switch_qemu_comes_back_to_its_old_cable(
    scene: Scene, step: Step, target: str
) -> None:
    await scene.plug("blue")
    async with no_frame_lost(scene.guest, scene.lab.peers["blue"]):
        before, begin = await traces(scene.lab), datetime.now(UTC)
        stop_at(scene, step)
        with pytest.raises(MonitorTimeout) as caught:
            await scene.lab.links.plug(NIC, target)
        is_told(caught.value, state=STOPPED)
        await is_unknown(scene, begin)
        scene.guest.signal(signal.SIGCONT)
        await nothing_left(scene.lab, before)
        assert await scene.state() == "plugged blue"
    await scene.lab.links.plug(NIC, target, notify="silent")
    assert await scene.state() == f"plugged {target}"


@pytest.mark.parametrize(
    ("step", "after"),
    [(Step.SWITCH, "blue"), (Step.ACTIVATE, "red"), (Step.NOTIFY, "red")],
)
async def test_stopped_in_the_switch_or_later_qemu_comes_back_to_one_cable(
    scene: Scene, step: Step, after: str
) -> None:
    await scene.plug("blue")
    begin = datetime.now(UTC)
    stop_at(scene, step)
    with pytest.raises(MonitorTimeout) as caught:
        await scene.lab.links.plug(NIC, "red")
    is_told(caught.value, state=STOPPED)
    says_what_comes(caught.value, switched=after == "red")
    await is_unknown(scene, begin)
    scene.guest.signal(signal.SIGCONT)
    await until(lambda: settled(scene), timeout=10, what="QEMU answers")
    assert await scene.state() == f"plugged {after}"
    async with no_frame_lost(scene.guest, scene.lab.peers[after]):
        pass
    await scene.lab.links.plug(NIC, "green", notify="silent")
    assert await scene.state() == "plugged green"


@pytest.mark.parametrize("step", TAKE_DOWN)
async def test_stopped_after_the_switch_the_replug_has_succeeded(scene: Scene, step: Step) -> None:
    await scene.plug("blue")
    stop_at(scene, step)
    outcome = await scene.lab.links.plug(NIC, "red", notify="silent")
    assert outcome.changed
    await is_unknown(scene, datetime.min.replace(tzinfo=UTC))
    scene.guest.signal(signal.SIGCONT)
    await until(lambda: settled(scene), timeout=10, what="QEMU answers")
    assert await scene.state() == "plugged red"


@pytest.mark.parametrize("step", PLUG)
async def test_stopped_while_it_is_plugged_qemu_comes_back_without_a_cable_or_with_it(
    scene: Scene, step: Step
) -> None:
    stop_at(scene, step)
    with pytest.raises(MonitorTimeout) as caught:
        await scene.lab.links.plug(NIC, "blue", notify="silent")
    is_told(caught.value, state=STOPPED)
    scene.guest.signal(signal.SIGCONT)
    await until(lambda: settled(scene), timeout=10, what="QEMU answers")
    done = step in (Step.ACTIVATE, Step.NOTIFY)
    says_what_comes(caught.value, switched=done)
    assert await scene.state() == ("plugged blue" if done else "unplugged")
    await scene.guest.wait_carrier("eth0", done)
    assert (await scene.lab.links.plug(NIC, "blue", notify="silent")).changed is not done


@pytest.mark.parametrize("step", [Step.LINK_DOWN, Step.SWITCH])
async def test_stopped_while_it_is_unplugged_qemu_comes_back_to_its_cable(
    scene: Scene, step: Step
) -> None:
    await scene.plug("blue")
    before = await traces(scene.lab)
    stop_at(scene, step)
    with pytest.raises(MonitorTimeout) as caught:
        await scene.lab.links.unplug(NIC)
    is_told(caught.value, state=STOPPED)
    scene.guest.signal(signal.SIGCONT)
    await nothing_left(scene.lab, before)
    assert await scene.state() == "plugged blue"
    await scene.guest.wait_carrier("eth0", True)
    assert (await scene.lab.links.unplug(NIC)).changed


@pytest.mark.parametrize("step", TAKE_DOWN)
async def test_stopped_after_the_switch_the_unplug_has_succeeded(scene: Scene, step: Step) -> None:
    await scene.plug("blue")
    stop_at(scene, step)
    assert (await scene.lab.links.unplug(NIC)).changed
    scene.guest.signal(signal.SIGCONT)
    await until(lambda: settled(scene), timeout=10, what="QEMU answers")
    assert await scene.state() == "unplugged"


async def test_while_qemu_is_stopped_every_verb_says_so_and_others_work_on(scene: Scene) -> None:
    await scene.plug("blue")
    links = scene.lab.links
    events = links.events()
    before = await traces(scene.lab)
    scene.guest.signal(signal.SIGSTOP)
    for _ in range(2):
        with pytest.raises(MonitorTimeout) as caught:
            await links.plug(NIC, "red")
        is_told(caught.value, state=STOPPED)
    with pytest.raises(MonitorTimeout) as caught:
        await links.unplug(NIC)
    is_told(caught.value, state=STOPPED)
    with pytest.raises(MonitorTimeout) as caught:
        await links.set_link(NIC, "down")
    is_told(caught.value, state=STOPPED)
    says_what_comes(caught.value, switched=False)
    (connection,) = await links.connections()  # what is known is told all the same
    assert connection.network == "blue"
    assert [finding.code for finding in await links.check()] == ["unknown"]
    scene.guest.signal(signal.SIGCONT)
    await nothing_left(scene.lab, before)
    assert await scene.state() == "plugged blue"
    assert (await links.nic(NIC)).link is LinkState.UP
    events.close()
    told = [event.kind async for event in events]
    assert told.count(EventKind.VM_UNKNOWN) == 1
    assert told.count(EventKind.FAILED) == 4
    assert told[-1] is EventKind.VM_ANSWERS


async def test_linkmgr_can_end_while_qemu_is_stopped_in_a_switch(built: Scene) -> None:
    lab, fault = built.lab, Fault()
    args = hub_args("net0", mac=mac_of(9, 0))
    before = await traces(lab)
    async with another_guest(lab, "other", args, add=False) as guest:
        async with LinkManager(timeout=0.3, probe=fault) as links:
            await links.add_vm("other", guest.qmp_path)
            for name in ("blue", "red"):
                await links.create_network(name, "bridge", bridge=f"br-{name}")
            await links.plug("other/net0", "blue", notify="silent")
            fault.at(Step.SWITCH, lambda: stop(guest))
            with pytest.raises(MonitorTimeout):
                await links.plug("other/net0", "red")
        # QEMU still holds its own; when it ends too, nothing is left of either.
        guest.signal(signal.SIGCONT)
    await nothing_left(lab, before)


@pytest_asyncio.fixture(loop_scope="module")
async def mortal(built: Scene) -> AsyncIterator[Guest]:
    """A guest of its own for a test that kills it; at its end nothing is left of either."""
    lab = built.lab
    before = await traces(lab)
    await lab.links.create_port("blue", "one")
    await lab.links.create_port("red", "two")
    await lab.links.create_port("green", "three")
    guest = await lab.guest(f"mortal{next(_numbers)}", boot=False)
    yield guest
    await guest.stop()  # QEMU is dead already: this frees what the test has of it
    try:
        await nothing_left(lab, before)
        assert await lab.links.delete_port("blue", "one")  # no claim is left either
        assert await lab.links.delete_port("red", "two")
        assert await lab.links.delete_port("green", "three")
    finally:
        assert await lab.links.remove_vm(guest.name)


_numbers = itertools.count(1)


async def dies(scene: Scene, guest: Guest) -> None:
    """Wait until linkmgr has seen the end of a guest."""

    async def gone() -> bool:
        return (await scene.lab.links.nic(f"{guest.name}/net0")).state is NicState.GONE

    await until(gone, timeout=5, what=f"{guest.name} is seen to be gone")


@pytest.mark.parametrize(
    ("start", "target", "step"),
    [
        *((None, "red:two", step) for step in PLUG),
        *(("blue:one", "red:two", step) for step in [*PLUG, *TAKE_DOWN]),
        *(("blue:one", "green", step) for step in [Step.STAGE, Step.SWITCH, Step.NOTIFY]),
        *(("green", "red:two", step) for step in [Step.STAGE, Step.SWITCH, Step.NOTIFY]),
        *(("green", "green:three", step) for step in [Step.STAGE, *PLUG[4:], *TAKE_DOWN]),
        *(("blue:one", None, step) for step in UNPLUG),
        *(("green", None, step) for step in UNPLUG),
    ],
)
async def test_killed_at_any_step_qemu_leaves_nothing(
    built: Scene, mortal: Guest, start: str | None, target: str | None, step: Step
) -> None:
    links, nic = built.lab.links, f"{mortal.name}/net0"
    if start:
        await links.plug(nic, start, notify="silent")

    async def kill() -> None:
        mortal.kill()

    built.fault.at(step, kill)
    try:
        if target:
            await links.plug(nic, target, notify="announce")
        else:
            await links.unplug(nic)
        # QEMU has done all that it had to do, or its death has unplugged the NIC as well.
        assert step in TAKE_DOWN or target is None
    except MonitorGone as error:
        assert step not in TAKE_DOWN
        assert target is not None
        is_told(error, state=f"({STOPPED}|gone with its guest)", nic=nic)
    await dies(built, mortal)
