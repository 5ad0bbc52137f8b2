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
from linkmgr.swap import ManagedNic
from linkmgr.vm import RUNS, Vm
from linkmgr.wirings.alias import alias_of

log = logging.getLogger(__name__)

PAUSE = 0.2  #: seconds between two tries to mend
RETRY = 5.0  #: seconds until what was refused is tried again

Start = Callable[[Coroutine[Any, Any, None]], object]


class DeferredStep(Protocol):
    """A method that does for one NIC what was put off."""

    __name__: str

    async def __call__(self, vm: Vm, nic: ManagedNic, /) -> None:
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
                if nic := vm.nics.get(alias_of(str(event.data.get("name")))):
                    self._soon(vm, nic, self._follow)
            case "DEVICE_DELETED":
                if nic := vm.nics.get(alias_of(str(event.data.get("device")))):
                    self._soon(vm, nic, self._lose)

    def _soon(self, vm: Vm, nic: ManagedNic, step: DeferredStep) -> None:
        """Do a step for a NIC, under its lock, unless the same waits already: it will see the same.

        A QEMU may send events faster than it answers, or without end.
        """
        key = (id(nic), step.__name__)
        if key not in self._waiting:
            self._waiting.add(key)
            self._start(self._begin(key, vm, nic, step))

    async def _begin(
        self, key: tuple[int, str], vm: Vm, nic: ManagedNic, step: DeferredStep
    ) -> None:
        try:
            await nic.lock.acquire()
        finally:
            self._waiting.discard(key)
        try:
            if not self._stopping:
                await step(vm, nic)
        finally:
            nic.lock.release()

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
        for nic in list(vm.nics.values()):
            async with nic.lock:
                await swap.discard_dead(nic)
                if nic.deferred:
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
            for nic in await vm.removed_nics():
                self._soon(vm, nic, self._lose)
        except MonitorError:
            self.lost(vm)
        self._resync_links(vm)  # after a NIC that is gone has been lost: it has no link to show
        for nic in vm.nics.values():
            self._soon(vm, nic, self._follow)

    def _tell_whether_it_runs(self, vm: Vm) -> None:
        if vm.running is not None:
            self._bus.publish(EventKind.VM_RESUMED if vm.running else EventKind.VM_PAUSED, vm.name)

    def _resync_links(self, vm: Vm) -> None:
        for nic in vm.nics.values():
            self._soon(vm, nic, self._resync_link)

    async def _resync_link(self, vm: Vm, nic: ManagedNic) -> None:
        """Show the guest its link state, whatever it was shown last. The NIC's lock is held.

        libvirt sets links through a monitor of its own, and a state that is loaded (a restore, a
        snapshot, a migration) brings the carrier of its time.
        """
        facts = vm.facts.get(nic.ref.alias)
        if nic.removed or facts is None or not facts.managed:
            return
        if nic.foreign and nic.carrier.up is None:
            return  # whoever plugged it has set its link, too
        if nic.connection is None and nic.ref in self._bindings:
            return  # it came from another host with its carrier, and is about to be plugged
        nic.carrier.forget()
        try:
            await nic.apply_link(seen=False)
        except LinkmgrError as error:
            log.warning("%s: its link state may not be what it should be: %s", nic.ref, error)
            self._bus.publish(EventKind.FAILED, nic.ref, code=error.code, what=error.what)
            if isinstance(error, MonitorGone | MonitorTimeout):
                nic.deferred.append(partial(nic.apply_link, seen=False))
                self.lost(vm)

    async def _mend(self, vm: Vm) -> None:
        while True:
            await vm.qemu.wait_responsive()
            if vm.qemu.closed:
                return
            try:
                for nic in list(vm.nics.values()):
                    async with nic.lock:
                        if vm.qemu.alive:
                            await swap.run_deferred(nic)
                        elif nic.deferred:
                            await swap.discard_dead(nic)
                        if nic.removed and vm.qemu.alive and not nic.deferred:
                            await self._drop(vm, nic)
            except MonitorError as error:
                log.debug("%s: not yet: %s", vm.name, error)
                await asyncio.sleep(PAUSE)
                continue
            if vm.qemu.alive and vm.set_unknown(False):
                self._bus.publish(EventKind.VM_ANSWERS, vm.name)
            if not any(nic.deferred for nic in vm.nics.values()):
                return
            await asyncio.sleep(RETRY)

    async def _lose(self, vm: Vm, nic: ManagedNic) -> None:
        """Somebody hot-unplugged the NIC: its cable is orphaned. Its lock is held."""
        if nic.removed:  # both the event and a look have found it, or QEMU has ended
            return
        try:
            await swap.discard_dead(nic)
        except MonitorError:
            self.lost(vm)  # what is left is done when QEMU answers
        if nic.deferred:
            self.mend_later(vm)
        else:
            await self._drop(vm, nic)
        self._bus.publish(EventKind.NIC_GONE, nic.ref)

    async def _drop(self, vm: Vm, nic: ManagedNic) -> None:
        """Forget a NIC that the guest has not got any more."""
        if vm.nics.get(nic.ref.alias) is nic:
            del vm.nics[nic.ref.alias]
        try:
            await vm.save_nics()
        except LinkmgrError as error:
            log.warning("%s: %s", nic.ref, error)

    async def _follow(self, vm: Vm, nic: ManagedNic) -> None:
        """The guest's driver has changed its receive filter, or may have. The lock is held."""
        if nic.connection is None:
            return
        try:
            refused = await nic.wiring.follow_rx_filter(nic.connection.cable)
        except LinkmgrError:
            self.lost(vm)
            return
        if refused and refused != nic.filter_refusals:
            self._bus.publish(EventKind.REFUSED, nic.ref, refused=list(refused))
        nic.filter_refusals = refused
