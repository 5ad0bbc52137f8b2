"""`check`, `nics` and `status` answer at once, whatever is under way and whoever asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr import EventKind
from linkmgr.aio.singleflight import REST_MAX_S
from linkmgr.reconcile import inspection
from linkmgr.reconcile.inspection import GUEST_TIMEOUT_S
from linkmgr.swap.steps import Step
from linkmgr.testing.process import execute
from linkmgr.wirings.endpoints.attributes import read_devices
from tests.integration.lab import Lab, make_lab
from tests.integration.reconcile.test_drift import device, event

NIC = "web1/net0"
ANSWER_TIMEOUT_S = 1.0  #: seconds in which there is an answer though a verb or a repair has the NIC
DEVICES = 3_000


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with make_lab(tmp_path) as made:
        yield made


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Lab]:
    async with make_lab(tmp_path, watch=True) as made:
        yield made


async def replugs(lab: Lab, number: int) -> list[float]:
    """Seconds that each of some replugs takes, from blue to red and back."""
    took = []
    for each in range(number):
        began = time.monotonic()
        await lab.links.plug(NIC, ("red", "blue")[each % 2], notify="silent")
        took.append(time.monotonic() - began)
    return took


async def test_however_many_ask_for_a_check_a_replug_is_as_fast_as_ever(lab: Lab) -> None:
    for name in ("blue", "red"):
        await lab.network(name)
    await lab.guest(boot=False)
    await replugs(lab, 2)
    before = await replugs(lab, 10)

    async def ask() -> None:
        while True:
            await lab.links.check()
            await lab.links.nics()

    asking = [asyncio.create_task(ask()) for _ in range(256)]
    try:
        await asyncio.sleep(0.2)
        during = await replugs(lab, 10)
        began = time.monotonic()
        assert await lab.links.check() == []
        assert time.monotonic() - began < REST_MAX_S + ANSWER_TIMEOUT_S, (
            "looks rest so long at most"
        )
    finally:
        for each in asking:
            each.cancel()
        said = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in said)
    assert statistics.median(during) < 3 * max(statistics.median(before), 0.02)
    assert max(during) < ANSWER_TIMEOUT_S


async def test_while_a_verb_has_a_nic_a_check_neither_waits_nor_finds_what_is_in_its_middle(
    tmp_path: Path,
) -> None:
    reached, goes_on = asyncio.Event(), asyncio.Event()

    async def probe(step: Step) -> None:
        if step is Step.ACTIVATE:
            reached.set()
            await goes_on.wait()

    async with make_lab(tmp_path, probe=probe) as lab:
        for name in ("blue", "red"):
            await lab.network(name)
        await lab.guest(boot=False)
        goes_on.set()
        await lab.links.plug(NIC, "blue")
        reached.clear()
        goes_on.clear()
        plugging = asyncio.create_task(lab.links.plug(NIC, "red"))
        await reached.wait()
        began = time.monotonic()
        assert await lab.links.check() == []
        assert time.monotonic() - began < ANSWER_TIMEOUT_S
        goes_on.set()
        await plugging
        assert await lab.links.check() == []


async def test_a_verb_that_has_a_nic_for_a_moment_hides_nothing_of_it(lab: Lab) -> None:
    await lab.network("blue")
    await lab.guest(boot=False)
    await lab.links.plug(NIC, "blue")
    nic = lab.links._vms["web1"].nics["net0"]
    await lab.sh(f"ip link set {await device(lab.links)} down")

    async def have() -> None:
        async with nic.lock:
            await asyncio.sleep(0.2)

    having = asyncio.create_task(have())
    await asyncio.sleep(0.05)
    assert [each.code for each in await lab.links.check()] == ["device-down"]
    await having


async def test_a_replug_that_ends_while_devices_are_read_makes_nothing_wrong(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("blue", "red"):
        await lab.network(name)
    await lab.guest(boot=False)
    await lab.links.plug(NIC, "blue")

    async def read_and_replug(*args: object) -> object:
        monkeypatch.undo()
        found = await read_devices(*args)  # type: ignore[arg-type]
        await lab.links.plug(NIC, "red")
        return found

    monkeypatch.setattr(inspection, "read_devices", read_and_replug)
    assert await lab.links.check() == []
    nic = await lab.links.nic(NIC)
    assert nic.connection is not None
    assert nic.connection.port.network.name == "red"


async def test_a_repair_that_takes_its_time_is_told_as_what_it_is(watched: Lab) -> None:
    """A bridge with a spanning tree forwards after twice its delay only."""
    await watched.network("blue")
    await watched.guest(boot=False)
    await watched.sh("ip link set br-blue type bridge forward_delay 400")
    await watched.links.plug(NIC, "blue")
    await watched.sh("ip link set br-blue type bridge stp_state 1 forward_delay 400")
    events = watched.links.events()
    await watched.sh(f"ip link set {await device(watched.links)} nomaster")
    assert await event(events, EventKind.DRIFT) == EventKind.DRIFT
    await asyncio.sleep(1)
    began = time.monotonic()
    (found,) = await watched.links.check()
    assert time.monotonic() - began < ANSWER_TIMEOUT_S
    assert (found.code, found.subject) == ("moved", NIC)
    assert "is not on br-blue any more; it is being repaired since " in found.what
    assert await event(events, EventKind.REPAIRED) == EventKind.REPAIRED
    events.close()
    assert [each.code for each in await watched.links.check()] == []


async def test_a_repair_that_fails_is_told_with_its_reason_and_since_when(watched: Lab) -> None:
    await watched.network("blue")
    await watched.guest(boot=False)
    await watched.links.plug(NIC, "blue")
    events = watched.links.events()
    await watched.sh("ip link del br-blue")
    assert await event(events, EventKind.FAILED) == EventKind.FAILED
    for _ in range(20):  # also while the next try is under way
        found = await watched.links.check()
        (repair,) = (each for each in found if each.code == "endpoint-gone")
        assert "br-blue does not exist any more; repairs fail since " in repair.what
        assert "br-blue" in repair.what.partition("until now: ")[2]
        assert repair.subject == NIC
        await asyncio.sleep(0.1)
    await watched.sh("ip link add br-blue type bridge && ip link set br-blue up")
    assert await event(events, EventKind.REPAIRED) == EventKind.REPAIRED
    events.close()
    assert await watched.links.check() == []


async def test_a_guest_that_hangs_holds_up_no_check_and_hides_nothing_of_another(
    lab: Lab,
) -> None:
    await lab.network("blue")
    hung = await lab.guest("web1", boot=False)
    await lab.guest("web2", boot=False)
    for name in ("web1", "web2"):
        await lab.links.plug(f"{name}/net0", "blue")
    nic = await lab.links.nic("web2/net0")
    assert nic.connection is not None
    await lab.sh(f"ip link set {nic.connection.device} down")
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        for _ in range(4):
            began = time.monotonic()
            found = {each.subject.partition("/")[0]: each.code for each in await lab.links.check()}
            assert time.monotonic() - began < GUEST_TIMEOUT_S + ANSWER_TIMEOUT_S
            assert found == {"web1": "unknown", "web2": "device-down"}
            await asyncio.sleep(0.5)
    finally:
        os.kill(hung.pid, signal.SIGCONT)


async def test_a_fault_in_the_look_at_one_guest_is_a_finding_of_that_guest(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("web1", "web2"):
        await lab.guest(name, boot=False)

    def broken(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(lab.links._vms["web1"].wiring, "inspect", broken)
    (found,) = await lab.links.check()
    assert (found.code, found.subject) == ("error", "web1")


@contextlib.asynccontextmanager
async def many_devices(folder: Path) -> AsyncIterator[None]:
    """Thousands of devices, of which ten come or go each second."""
    pairs = [f"link add m{n} type veth peer name n{n}" for n in range(DEVICES // 2)]
    groups = [f"link set {side}{n} group 7" for n in range(DEVICES // 2) for side in "mn"]
    batch = "\n".join([*pairs, *groups]) + "\n"

    async def churn() -> None:
        while True:
            await execute(["ip", "link", "add", "cx0", "type", "veth", "peer", "name", "cx1"])
            await asyncio.sleep(0.1)
            await execute(["ip", "link", "del", "cx0"])
            await asyncio.sleep(0.1)

    try:
        (folder / "batch").write_text(batch)
        await execute(["ip", "-batch", f"{folder}/batch"], timeout=120)
        churning = asyncio.create_task(churn())
        try:
            yield
        finally:
            churning.cancel()
            await asyncio.gather(churning, return_exceptions=True)
    finally:
        for command in ("ip link del group 7", "ip link del cx0"):
            await execute(["sh", "-c", command], timeout=60, check=False)


@pytest.mark.timeout(240)
async def test_on_a_host_with_thousands_of_devices_that_change_all_are_answered(
    watched: Lab,
) -> None:
    for name in ("blue", "red", "green"):
        await watched.network(name)
    await watched.guest(boot=False)
    await watched.links.plug(NIC, "blue")
    async with many_devices(watched.workdir):
        for _ in range(12):
            began = time.monotonic()
            assert await watched.links.check() == []
            assert len(await watched.links.nics()) == 1
            assert time.monotonic() - began < 2 * ANSWER_TIMEOUT_S
        took = await replugs(watched, 10)
        assert statistics.median(took) < ANSWER_TIMEOUT_S / 2
        for network in ("green", "red"):
            began = time.monotonic()
            await watched.links.plug(NIC, network, notify="silent")
            assert time.monotonic() - began < 2 * ANSWER_TIMEOUT_S
        assert await watched.links.gc(older_than=0) == []
    assert await watched.links.check() == []
