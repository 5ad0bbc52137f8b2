"""Whether a guest's processors run: told as it happens, and looked up when events were missed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from linkmgr.errors import MonitorGone
from linkmgr.events import EventBus, EventKind
from linkmgr.hypervisors.qemu.qmp import MonitorEvent
from linkmgr.inventory.bindings import PortBindings
from linkmgr.inventory.machine import Vm
from linkmgr.model import NicRef
from linkmgr.reconcile.supervisor import VmSupervisor


class Guest:
    """As much of a `Vm` as is needed."""

    name = "web1"
    nics: dict[str, Any] = {}  # noqa: RUF012 - it has none
    facts: dict[str, Any] = {}  # noqa: RUF012 - nor of them

    def __init__(self) -> None:
        self.running: bool | None = True
        self.says: bool | Exception = True

    def set_running(self, running: bool) -> bool:
        before, self.running = self.running, running
        return before is not running

    async def query_run_state(self) -> bool:
        if isinstance(self.says, Exception):
            raise self.says
        return self.set_running(self.says)

    async def removed_nics(self) -> list[Any]:
        return []


@pytest.fixture
def guest() -> Guest:
    return Guest()


async def told(guest: Guest, *events: str) -> list[EventKind]:
    """What is told of these events of QEMU."""
    bus = EventBus()
    listener = bus.subscribe()
    tasks: list[asyncio.Task[None]] = []
    lost: list[Vm] = []

    class Supervisor(VmSupervisor):
        def on_unresponsive(self, vm: Vm) -> None:
            lost.append(vm)

    supervisor = Supervisor(
        bus,
        lambda work: tasks.append(asyncio.create_task(work)),
        cast("PortBindings", None),  # no NIC is bound here
    )
    for event in events:
        supervisor.on_event(cast("Vm", guest), MonitorEvent(event))
    await asyncio.gather(*tasks)
    bus.close()
    return [event.kind async for event in listener] + [EventKind.VM_UNKNOWN] * len(lost)


async def test_each_stop_and_resume_is_told(guest: Guest) -> None:
    kinds = await told(guest, "STOP", "RESUME", "RESUME")
    assert kinds == [EventKind.VM_PAUSED, EventKind.VM_RESUMED, EventKind.VM_RESUMED]
    assert guest.running is True


async def test_a_guest_that_shuts_down_is_told(guest: Guest) -> None:
    """Its NICs are freed when QEMU ends, which with -no-shutdown is not now."""
    assert await told(guest, "SHUTDOWN") == [EventKind.VM_SHUT_DOWN]


@pytest.mark.parametrize(
    ("says", "kinds"),
    [
        (True, []),
        (False, [EventKind.VM_PAUSED]),
        (MonitorGone("gone"), [EventKind.VM_UNKNOWN]),
    ],
)
async def test_what_was_missed_while_the_monitor_was_lost_is_looked_up(
    guest: Guest, says: bool | Exception, kinds: list[EventKind]
) -> None:
    guest.says = says
    assert await told(guest, "RECONNECTED") == kinds


async def test_a_qemu_that_sends_events_without_end_makes_no_more_work_than_can_wait(
    guest: Guest,
) -> None:
    """What waits for a NIC's lock will see all that has happened until it has it."""
    done: list[str] = []

    async def apply_link(*, hold_down: bool) -> None:
        del hold_down
        done.append("link")

    nic = SimpleNamespace(
        ref=NicRef("web1", "net0"),
        lock=asyncio.Lock(),
        removed=False,
        foreign=False,
        connection=object(),
        carrier=SimpleNamespace(invalidate=lambda: None),
        apply_link=apply_link,
    )
    guest.nics = {"net0": nic}
    guest.facts = {"net0": SimpleNamespace(managed=True)}
    tasks: list[asyncio.Task[None]] = []
    supervisor = VmSupervisor(
        EventBus(),
        lambda work: tasks.append(asyncio.create_task(work)),
        cast("PortBindings", None),
    )
    async with nic.lock:  # a verb has the NIC
        for _ in range(1000):
            supervisor.on_event(cast("Vm", guest), MonitorEvent("RESUME"))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert done == ["link"]
    assert len(tasks) == 1
    supervisor.on_event(cast("Vm", guest), MonitorEvent("RESUME"))
    await asyncio.gather(*tasks)
    assert done == ["link", "link"], "what comes later is not lost"


async def test_who_asks_for_the_end_twice_waits_until_all_is_free(guest: Guest) -> None:
    gate, freed = asyncio.Event(), []

    class Held:
        async def release_all(self, vm: str) -> None:
            await gate.wait()
            freed.append(vm)

    async def drop() -> None:
        freed.append("document")

    guest.cleanup_task = None  # type: ignore[attr-defined]  # a fake
    guest.journal = SimpleNamespace(drop=drop)  # type: ignore[attr-defined]  # a fake
    bus = EventBus()
    supervisor = VmSupervisor(bus, asyncio.create_task, cast("PortBindings", Held()))
    both = [asyncio.create_task(supervisor.clean_up(cast("Vm", guest))) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in both)
    gate.set()
    await asyncio.gather(*both)
    assert freed == ["web1", "document"]
