"""Locks of VMs: what waits is sent away when the VM is to go, what has begun is not."""

from __future__ import annotations

import asyncio

import pytest

from linkmgr.errors import BeingRemoved, LinkmgrError, Stopping
from linkmgr.manager.vm_locks import VmLocks


async def begun(work: asyncio.Task[str]) -> asyncio.Task[str]:
    for _ in range(5):
        await asyncio.sleep(0)
    return work


class Scene:
    """A NIC whose lock one verb has and another waits for."""

    def __init__(self) -> None:
        self.locks = VmLocks()
        self.nic = asyncio.Lock()
        self.go_on = asyncio.Event()

    async def verb(self) -> str:
        async with self.locks.nic_lock("web1", self.nic):
            await self.go_on.wait()
            return "done"

    async def adding(self) -> str:
        async with self.locks.vm_lock("web1"):
            await self.go_on.wait()
            return "done"

    async def removing(self) -> str:
        async with self.locks.removing("web1"), self.locks.acquired(self.nic):
            return "done"

    async def adding_that_cleans_up(self) -> str:
        async with self.locks.vm_lock("web1"):
            try:
                await asyncio.Event().wait()
            finally:
                await self.go_on.wait()
        return "done"

    def start(self, *works: str) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(getattr(self, each)()) for each in works]


@pytest.fixture
async def scene() -> Scene:
    return Scene()


async def test_a_removal_ends_what_waits_and_not_what_has_begun(scene: Scene) -> None:
    first, waiting, removing = scene.start("verb", "verb", "removing")
    with pytest.raises(BeingRemoved, match="VM web1 is being removed"):
        await waiting
    (late,) = scene.start("verb")
    with pytest.raises(BeingRemoved):
        await late
    await begun(removing)
    assert not first.done()
    assert not removing.done()
    scene.go_on.set()
    assert [await first, await removing] == ["done", "done"]
    (after,) = scene.start("verb")
    assert await after == "done", "the removal is over"


async def test_a_stop_ends_what_waits_a_removal_too_and_for_good(scene: Scene) -> None:
    first, waiting, removing = scene.start("verb", "verb", "removing")
    with pytest.raises(BeingRemoved):
        await waiting
    scene.locks.stop()
    with pytest.raises(Stopping):
        await removing
    scene.go_on.set()
    assert await first == "done"
    for late in scene.start("verb", "adding", "removing"):
        with pytest.raises(Stopping):
            await late


async def test_an_adding_is_cut_off_by_a_removal_and_by_a_stop(scene: Scene) -> None:
    (adding,) = scene.start("adding")
    await begun(adding)
    (removing,) = scene.start("removing")
    assert await removing == "done"
    with pytest.raises(BeingRemoved):
        await adding
    (adding,) = scene.start("adding")
    await begun(adding)
    scene.locks.stop()
    with pytest.raises(Stopping):
        await adding


async def test_a_second_stop_leaves_alone_what_still_cleans_up_after_the_first(
    scene: Scene,
) -> None:
    (adding,) = scene.start("adding_that_cleans_up")
    await begun(adding)
    for _ in range(2):
        scene.locks.stop()
        await begun(adding)
    assert not adding.done(), "it may clean up to its end"
    scene.go_on.set()
    with pytest.raises(Stopping):
        await adding


async def test_two_removals_while_an_adding_cleans_up_both_get_their_turn(scene: Scene) -> None:
    (adding,) = scene.start("adding_that_cleans_up")
    await begun(adding)
    removals = scene.start("removing")
    await begun(adding)
    removals += scene.start("removing")
    await begun(adding)
    assert not adding.done(), "it may clean up to its end"
    scene.go_on.set()
    assert await asyncio.gather(*removals) == ["done", "done"]
    with pytest.raises(BeingRemoved):
        await adding
    (after,) = scene.start("adding")
    assert await after == "done", "both removals are over"


async def test_another_vm_and_a_look_whether_it_has_ended_end_no_wait(scene: Scene) -> None:
    first, waiting = scene.start("verb", "verb")
    async with scene.locks.removing("web2"), scene.locks.forgetting("web1"):
        await begun(waiting)
        assert not waiting.done()
    scene.go_on.set()
    assert [await first, await waiting] == ["done", "done"]


async def test_whoever_gives_up_waiting_leaves_the_lock_to_the_next(scene: Scene) -> None:
    first, given_up, last = scene.start("verb", "verb", "verb")
    await begun(last)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    scene.go_on.set()
    assert [await first, await last] == ["done", "done"]
    assert not scene.nic.locked()


async def test_a_timeout_of_what_runs_under_the_lock_stays_a_timeout(scene: Scene) -> None:
    with pytest.raises(TimeoutError):
        async with scene.locks.vm_lock("web1"), asyncio.timeout(0.01):
            await scene.go_on.wait()


async def test_a_name_that_nobody_uses_takes_no_memory(scene: Scene) -> None:
    for number in range(100):
        async with scene.locks.removing(f"web{number}"), scene.locks.forgetting("other"):
            pass
    with pytest.raises(LinkmgrError):
        async with scene.locks.vm_lock("web1"):
            raise Stopping("a fault")
    assert not scene.locks._entries
