"""What happens to VMs by themselves: QEMU stops wait_responsive, comes back, ends, loses a NIC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from linkmgr import swap
from linkmgr.errors import LinkmgrError, MonitorError, MonitorGone, MonitorTimeout
from linkmgr.events import EventBus, EventKind
from linkmgr.qmp import MonitorEvent
from linkmgr.reservations import PortBindings
from linkmgr.swap import Slot
from linkmgr.vm import RUNS, Vm
from linkmgr.wirings.alias import alias_of

log = logging.getLogger(__name__)

PAUSE = 0.2  #: seconds between two tries to mend
RETRY = 5.0  #: seconds until what was refused is tried again

Start = Callable[[Coroutine[Any, Any, None]], object]


class DeferredStep(Protocol):
    """A method that does for one NIC what was put off."""

    __name__: str

    async def __call__(self, vm: Vm, slot: Slot, /) -> None:
        """Do it."""


class Caretaker:
    """Keeps what is known of each VM true, and does later what could not be done in time.

    :param start: runs a coroutine as a task that the manager waits for when it closes.
    """

    def __init__(self, bus: EventBus, start: Start, bindings: PortBindings) -> None:
        self._bus = bus
        self._start = start
        self._bindings = bindings
        self._stopping = False
        self._waiting: set[tuple[int, str]] = set()  # what waits for which NIC's lock

    def stop(self) -> None:
        """Begin nothing more that waits for a NIC: the next run looks it up."""
        self._stopping = True

    async def ping(self, vm: Vm) -> None:
        """Ask QEMU for a sign of life."""
        if vm.qemu.alive and not vm.unknown:
            try:
                await vm.qemu.execute("query-status")
            except MonitorError:
                self.lost(vm)

    async def ping_once(self, vm: Vm) -> None:
        """As `ping`, one for all who ask meanwhile. It goes on when they leave, to its answer."""
        if vm.pinging is None or vm.pinging.done():
            vm.pinging = asyncio.create_task(self.ping(vm), name=f"ping {vm.name}")
        await asyncio.shield(vm.pinging)

    def lost(self, vm: Vm) -> None:
        """QEMU does not answer: say so, and mend what is to be mended when it does."""
        if vm.qemu.alive and vm.set_unknown(True):
            self._bus.publish(EventKind.VM_UNKNOWN, vm.name)
        self.mend_later(vm)

    def mend_later(self, vm: Vm) -> None:
        """Do what NICs have left undone as soon as QEMU answers."""
        if not vm.qemu.closed and (vm.mender is None or vm.mender.done()):
            vm.mender = asyncio.create_task(self._mend(vm), name=f"mend {vm.name}")

    def on_event(self, vm: Vm, event: MonitorEvent) -> None:
        """Take an event of QEMU."""
        match event.name:
            case "DISCONNECTED":
                self.lost(vm)
            case "RESUME" | "STOP":
                vm.set_running(RUNS[event.name])
                self._tell_whether_it_runs(vm)
                if vm.running:
                    self._resync_links(vm)
            case "SHUTDOWN":  # cables stay as long as QEMU does: it may reset the guest instead
                by_guest, reason = event.data.get("guest"), event.data.get("reason")
                self._bus.publish(EventKind.VM_SHUT_DOWN, vm.name, by_guest=by_guest, reason=reason)
            case "RECONNECTED" | "OVERFLOW":  # events may have been missed
                self._start(self._look_anew(vm))
            case "DEAD":
                self._start(self.bury(vm))
            case "NIC_RX_FILTER_CHANGED":
                if slot := vm.slots.get(alias_of(str(event.data.get("name")))):
                    self._soon(vm, slot, self._follow)
            case "DEVICE_DELETED":
                if slot := vm.slots.get(alias_of(str(event.data.get("device")))):
                    self._soon(vm, slot, self._lose)

    def _soon(self, vm: Vm, slot: Slot, step: DeferredStep) -> None:
        """Do a step for a NIC, under its lock, unless the same waits already: it will see the same.

        A QEMU may send events faster than it answers, or without end.
        """
        key = (id(slot), step.__name__)
        if key not in self._waiting:
            self._waiting.add(key)
            self._start(self._begin(key, vm, slot, step))

    async def _begin(self, key: tuple[int, str], vm: Vm, slot: Slot, step: DeferredStep) -> None:
        try:
            await slot.lock.acquire()
        finally:
            self._waiting.discard(key)
        try:
            if not self._stopping:
                await step(vm, slot)
        finally:
            slot.lock.release()

    async def bury(self, vm: Vm) -> None:
        """QEMU has ended: free what its NICs held. The VM stays known, as gone.

        Once: a VM of that name may be there again by the time that somebody asks twice. Who asks
        meanwhile waits for the same.
        """
        if vm.burial is None:
            vm.burial = asyncio.create_task(self._bury(vm), name=f"bury {vm.name}")
        await asyncio.shield(vm.burial)

    async def _bury(self, vm: Vm) -> None:
        vm.since = datetime.now(UTC)
        await self._bindings.release_all(vm.name)
        for slot in list(vm.slots.values()):
            async with slot.lock:
                await swap.abandon(slot)
                if slot.leftovers:
                    self.mend_later(vm)
        try:
            await vm.journal.drop()
        except LinkmgrError as error:
            log.warning("VM %s: %s", vm.name, error)
        self._bus.publish(EventKind.VM_GONE, vm.name)

    async def _look_anew(self, vm: Vm) -> None:
        """Look up what events that were missed would have told."""
        try:
            if await vm.look_whether_it_runs():
                self._tell_whether_it_runs(vm)
            for slot in await vm.lost_nics():
                self._soon(vm, slot, self._lose)
        except MonitorError:
            self.lost(vm)
        self._resync_links(vm)  # after a NIC that is gone has been lost: it has no link to show
        for slot in vm.slots.values():
            self._soon(vm, slot, self._follow)

    def _tell_whether_it_runs(self, vm: Vm) -> None:
        if vm.running is not None:
            self._bus.publish(EventKind.VM_RESUMED if vm.running else EventKind.VM_PAUSED, vm.name)

    def _resync_links(self, vm: Vm) -> None:
        for slot in vm.slots.values():
            self._soon(vm, slot, self._resync_link)

    async def _resync_link(self, vm: Vm, slot: Slot) -> None:
        """Show the guest its link state, whatever it was shown last. The NIC's lock is held.

        libvirt sets links through a monitor of its own, and a state that is loaded (a restore, a
        snapshot, a migration) brings the carrier of its time.
        """
        facts = vm.facts.get(slot.ref.alias)
        if slot.lost or facts is None or not facts.managed:
            return
        if slot.foreign and slot.carrier.up is None:
            return  # whoever plugged it has set its link, too
        if slot.plugged is None and slot.ref in self._bindings:
            return  # it came from another host with its carrier, and is about to be plugged
        slot.carrier.forget()
        try:
            await slot.apply_link(seen=False)
        except LinkmgrError as error:
            log.warning("%s: its link state may not be what it should be: %s", slot.ref, error)
            self._bus.publish(EventKind.FAILED, slot.ref, code=error.code, what=error.what)
            if isinstance(error, MonitorGone | MonitorTimeout):
                slot.leftovers.append(partial(slot.apply_link, seen=False))
                self.lost(vm)

    async def _mend(self, vm: Vm) -> None:
        while True:
            await vm.qemu.wait_responsive()
            if vm.qemu.closed:
                return
            try:
                for slot in list(vm.slots.values()):
                    async with slot.lock:
                        if vm.qemu.alive:
                            await swap.settle(slot)
                        elif slot.leftovers:
                            await swap.abandon(slot)
                        if slot.lost and vm.qemu.alive and not slot.leftovers:
                            await self._drop(vm, slot)
            except MonitorError as error:
                log.debug("%s: not yet: %s", vm.name, error)
                await asyncio.sleep(PAUSE)
                continue
            if vm.qemu.alive and vm.set_unknown(False):
                self._bus.publish(EventKind.VM_ANSWERS, vm.name)
            if not any(slot.leftovers for slot in vm.slots.values()):
                return
            await asyncio.sleep(RETRY)

    async def _lose(self, vm: Vm, slot: Slot) -> None:
        """Somebody hot-unplugged the NIC: its cable is orphaned. Its lock is held."""
        if slot.lost:  # both the event and a look have found it, or QEMU has ended
            return
        try:
            await swap.abandon(slot)
        except MonitorError:
            self.lost(vm)  # what is left is done when QEMU answers
        if slot.leftovers:
            self.mend_later(vm)
        else:
            await self._drop(vm, slot)
        self._bus.publish(EventKind.NIC_GONE, slot.ref)

    async def _drop(self, vm: Vm, slot: Slot) -> None:
        """Forget a NIC that the guest has not got any more."""
        if vm.slots.get(slot.ref.alias) is slot:
            del vm.slots[slot.ref.alias]
        try:
            await vm.remember()
        except LinkmgrError as error:
            log.warning("%s: %s", slot.ref, error)

    async def _follow(self, vm: Vm, slot: Slot) -> None:
        """The guest's driver has changed its receive filter, or may have. The lock is held."""
        if slot.plugged is None:
            return
        try:
            refused = await slot.wiring.follow_rx_filter(slot.plugged.cable)
        except LinkmgrError:
            self.lost(vm)
            return
        if refused and refused != slot.refused:
            self._bus.publish(EventKind.REFUSED, slot.ref, refused=list(refused))
        slot.refused = refused
