"""A swap that fails is undone in the opposite order, if not now then later; nothing overtakes."""

from __future__ import annotations

import asyncio

import pytest

from linkmgr.errors import (
    CommandFailed,
    HostError,
    MonitorGone,
    MonitorTimeout,
    NoSink,
    SwitchFailed,
)
from linkmgr.model import NotifyMode
from linkmgr.swap import steps
from tests.unit.swap_lab import FREE, RELEASE, TERMINATE, Bench, bench, impatient

__all__ = ["bench", "impatient"]  # fixtures

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
    assert bench.nic.deferred == []


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
        await bench.plug("red", NotifyMode.ANNOUNCE)
    assert bench.where == "red"
    assert bench.calls[-3:] == ["release blue", "terminate blue", "free blue"]
    # The guest and the network hear of it all the same, later.
    await steps.run_deferred(bench.nic)
    assert bench.calls[-1] == "announce"
    assert bench.nic.deferred == []


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
    assert len(bench.nic.deferred) > 0
    await steps.run_deferred(bench.nic)
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
        await steps.run_deferred(bench.nic)
    assert bench.log == ["switch back to blue"]
    bench.log.clear()
    await steps.run_deferred(bench.nic)
    assert bench.log == BACK
    assert bench.nic.deferred == []


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
    await steps.run_deferred(bench.nic)
    assert bench.log == BACK
    bench.log.clear()
    await steps.run_deferred(bench.nic)
    assert bench.log == ["switch back to blue"]
    assert bench.nic.deferred == []


async def test_what_a_lost_nic_held_is_freed_whatever_was_left_to_do(bench: Bench) -> None:
    await bench.on_blue()
    bench.log.fail("link down", MonitorTimeout("no"))
    bench.log.fail("link up", *[MonitorGone("dead")] * 9)
    with pytest.raises(MonitorTimeout):
        await bench.unplug()
    bench.log.clear()
    await steps.discard_dead(bench.nic)
    assert bench.log[-3:] == ["release blue", "terminate blue", "free blue"]
    assert (bench.where, bench.nic.deferred) == (None, [])


async def test_a_clean_up_that_is_cancelled_is_still_left_to_do(bench: Bench) -> None:
    hangs, done = asyncio.Event(), []

    async def hang() -> None:
        hangs.set()
        await asyncio.sleep(60)

    async def next_one() -> None:
        done.append(True)

    bench.nic.deferred = [hang, next_one]
    settling = asyncio.create_task(steps.run_deferred(bench.nic))
    await hangs.wait()
    assert bench.nic.deferred == [hang, next_one]  # a check tells of it meanwhile
    settling.cancel()
    await asyncio.gather(settling, return_exceptions=True)
    assert (bench.nic.deferred, done) == ([hang, next_one], [])
