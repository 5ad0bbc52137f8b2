"""Whatever fails at whichever step, the NIC is on one whole cable; who goes away stops nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from linkmgr import EventKind, LinkState, NicState, hub_args
from linkmgr.swap.steps import Step
from tests.integration import steps
from tests.integration.failures_lab import (
    NIC,
    Scene,
    another_guest,
    make_scene,
    nothing_left,
    scene,
    traces,
)
from tests.integration.lab import mac_of

__all__ = ["scene"]  # a fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Nobody asked for a name for its devices; in `test_restart_killed` a NIC takes that step too.
PLUG: list[Step] = [step for step in steps.PLUG if step is not Step.NAME]
TAKE_DOWN, UNPLUG = steps.OLD_SIDE, steps.UNPLUG
#: What fails at or before these is undone; after them there is no way back, and no need for one.
LAST_BEFORE = {"plug": Step.ACTIVATE, "unplug": Step.SWITCH}


class Broken(Exception):
    """Nothing that linkmgr knows."""


async def broken() -> None:
    raise Broken


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def built(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with make_scene(tmp_path_factory.mktemp("scene")) as made:
        await made.lab.links.create_port("green", "other")
        yield made


async def link(scene: Scene) -> LinkState | None:
    return (await scene.lab.links.nic(NIC)).link


async def verb(scene: Scene, target: str | None) -> None:
    """Plug the NIC into `target`, or unplug it."""
    if target:
        await scene.lab.links.plug(NIC, target, notify="silent")
    else:
        await scene.lab.links.unplug(NIC)


@pytest.mark.parametrize(
    ("taken", "start", "target"),
    [
        (PLUG, None, "blue"),
        (PLUG + TAKE_DOWN, "blue", "red"),
        (PLUG + TAKE_DOWN, "blue", "green"),
        (PLUG + TAKE_DOWN, "green", "blue"),
        (PLUG + TAKE_DOWN, "green", "green:other"),
        (UNPLUG, "blue", None),
        (UNPLUG, "green", None),
    ],
)
async def test_a_verb_takes_these_steps(
    scene: Scene, taken: list[Step], start: str | None, target: str | None
) -> None:
    if start:
        await verb(scene, start)
    scene.fault.forget()
    await verb(scene, target)
    assert scene.fault.steps == taken


@pytest.mark.parametrize("step", PLUG)
async def test_a_plug_that_breaks_is_undone_or_done(scene: Scene, step: Step) -> None:
    before = await traces(scene.lab)
    scene.fault.at(step, broken)
    with pytest.raises(Broken):
        await verb(scene, "blue")
    if step in (Step.NOTIFY, Step.RECORD):
        assert await scene.state() == "plugged blue"
        await scene.guest.wait_carrier("eth0", True)
        assert await scene.lab.links.check() == []
    else:
        assert (await scene.state(), await link(scene)) == ("unplugged", LinkState.DOWN)
        await nothing_left(scene.lab, before)
        assert await scene.lab.links.delete_network("blue")  # no claim is left either
        await scene.lab.links.create_network("blue", "bridge", bridge="br-blue")


@pytest.mark.parametrize(
    ("start", "target"), [("blue", "red"), ("blue", "green"), ("green", "green:other")]
)
@pytest.mark.parametrize("step", PLUG + TAKE_DOWN)
async def test_a_replug_that_breaks_is_undone_or_done(
    scene: Scene, step: Step, start: str, target: str
) -> None:
    await verb(scene, start)
    before = await traces(scene.lab)
    scene.fault.at(step, broken)
    with pytest.raises(Broken):
        await verb(scene, target)
    (connection,) = await scene.lab.links.connections()
    if step in (Step.NOTIFY, Step.RECORD, *TAKE_DOWN):
        assert str(connection.port) == target
        assert await scene.lab.links.check() == []
    else:
        assert str(connection.port) == start
        await nothing_left(scene.lab, before)
    assert await link(scene) is LinkState.UP


@pytest.mark.parametrize("start", ["blue", "green"])
@pytest.mark.parametrize("step", UNPLUG)
async def test_an_unplug_that_breaks_is_undone_or_done(
    scene: Scene, step: Step, start: str
) -> None:
    await verb(scene, start)
    before = await traces(scene.lab)
    scene.fault.at(step, broken)
    with pytest.raises(Broken):
        await verb(scene, None)
    if step in (Step.RECORD, *TAKE_DOWN):
        assert (await scene.state(), await link(scene)) == ("unplugged", LinkState.DOWN)
    else:
        assert (await scene.state(), await link(scene)) == (f"plugged {start}", LinkState.UP)
        await nothing_left(scene.lab, before)


@pytest.mark.parametrize("step", [*PLUG, *TAKE_DOWN])
async def test_a_caller_that_goes_away_stops_no_replug(scene: Scene, step: Step) -> None:
    await verb(scene, "blue")
    caller = asyncio.create_task(verb(scene, "red"))

    async def cancel() -> None:
        caller.cancel()

    scene.fault.at(step, cancel)
    with pytest.raises(asyncio.CancelledError):
        await caller
    # The next verb waits its turn, and finds the work done.
    outcome = await scene.lab.links.plug(NIC, "red")
    assert not outcome.changed
    assert await scene.lab.links.check() == []


@pytest.mark.parametrize("step", UNPLUG)
async def test_a_caller_that_goes_away_stops_no_unplug(scene: Scene, step: Step) -> None:
    await verb(scene, "blue")
    caller = asyncio.create_task(verb(scene, None))

    async def cancel() -> None:
        caller.cancel()

    scene.fault.at(step, cancel)
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not (await scene.lab.links.unplug(NIC)).changed


async def test_a_replug_whose_notification_fails_is_told_as_done(scene: Scene) -> None:
    await verb(scene, "blue")
    events = scene.lab.links.events()
    scene.fault.at(Step.NOTIFY, broken)
    with pytest.raises(Broken):
        await verb(scene, "red")
    events.close()
    (event,) = [event async for event in events if event.kind is EventKind.REPLUGGED]
    assert (event.subject, event.details["port"], event.details["was"]) == (NIC, "red", "blue")


@pytest.mark.timeout(20)  # what holds up a plug may hold up the end of the guest, too
async def test_nics_are_plugged_in_parallel(scene: Scene) -> None:
    """The one that waits at a step holds up neither its neighbour nor another guest."""
    args = [arg for n in (0, 1) for arg in hub_args(f"net{n}", mac=mac_of(9, n))]
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await go_on.wait()

    links = scene.lab.links
    async with another_guest(scene.lab, "web2", args):
        scene.fault.at(Step.SWITCH, wait)
        slow = asyncio.create_task(links.plug("web2/net0", "blue", notify="silent"))
        await reached.wait()
        try:
            async with asyncio.timeout(5):
                await links.plug("web2/net1", "blue", notify="silent")
                await links.plug(NIC, "red", notify="silent")
                await links.plug(NIC, "green", notify="silent")
        except TimeoutError:
            go_on.set()  # else nothing could be taken down
            pytest.fail("one NIC that waits holds up another")
        # A verb on the NIC itself waits its turn.
        after = asyncio.create_task(links.unplug("web2/net0"))
        done, _ = await asyncio.wait({slow, after}, timeout=0.1)
        assert not done
        go_on.set()
        assert (await slow).nic.state is NicState.PLUGGED
        assert (await after).changed


async def test_a_guest_that_is_stopped_holds_up_no_other(scene: Scene) -> None:
    args = [arg for n in (0, 1) for arg in hub_args(f"net{n}", mac=mac_of(9, n))]
    links = scene.lab.links
    async with another_guest(scene.lab, "web2", args) as stopped:
        stopped.signal(signal.SIGSTOP)
        waiting = [
            asyncio.create_task(links.plug(f"web2/net{n}", "blue", notify="silent")) for n in (0, 1)
        ]
        await links.plug(NIC, "red", notify="silent")
        await links.plug(NIC, "green", notify="silent")
        await links.unplug(NIC)
        done, _ = await asyncio.wait(waiting, timeout=0.1)
        assert not done
        stopped.signal(signal.SIGCONT)
        for outcome in await asyncio.gather(*waiting):  # it was only slow to answer
            assert outcome.nic.state is NicState.PLUGGED
