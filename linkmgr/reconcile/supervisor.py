"""What happens to VMs by themselves: QEMU stops answering, comes back, ends, loses a NIC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from linkmgr.errors import LinkmgrError, MonitorError, MonitorGone, MonitorTimeout
from linkmgr.events import EventBus, EventKind
from linkmgr.hypervisors.qemu.qmp import MonitorEvent
from linkmgr.inventory.bindings import PortBindings
from linkmgr.inventory.machine import RUN_STATE_EVENTS, Vm
from linkmgr.swap import steps
from linkmgr.swap.steps import ManagedNic
from linkmgr.wirings.hub.alias import alias_of

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 0.2  #: between two attempts on a QEMU that does not answer
REFUSED_RETRY_INTERVAL_S = 5.0  #: until a step that QEMU or the host refused is tried again

Start = Callable[[Coroutine[Any, Any, None]], object]


class NicReaction(Protocol):
    """A method that does for one NIC what was put off."""

    __name__: str

    async def __call__(self, vm: Vm, nic: ManagedNic, /) -> None:
        """Do it."""


class VmSupervisor:
    """Reacts to QEMU's events, retries deferred steps, and cleans up after a dead QEMU.

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
        if vm.qemu.alive and not vm.unresponsive:
            try:
                await vm.qemu.execute("query-status")
            except MonitorError:
                self.on_unresponsive(vm)

    async def ping_once(self, vm: Vm) -> None:
        """As `ping`, one for all who ask meanwhile. It goes on when they leave, to its answer."""
        if vm.ping_task is None or vm.ping_task.done():
            vm.ping_task = asyncio.create_task(self.ping(vm), name=f"ping {vm.name}")
        await asyncio.shield(vm.ping_task)

    def on_unresponsive(self, vm: Vm) -> None:
        """Publish that QEMU does not answer, and schedule a retry of deferred steps."""
        if vm.qemu.alive and vm.set_unresponsive(True):
            self._bus.publish(EventKind.VM_UNKNOWN, vm.name)
        self.schedule_retry(vm)

    def schedule_retry(self, vm: Vm) -> None:
        """Run the deferred steps of its NICs as soon as QEMU answers."""
        if not vm.qemu.closed and (vm.retry_task is None or vm.retry_task.done()):
            vm.retry_task = asyncio.create_task(self._retry(vm), name=f"retry {vm.name}")

    def on_event(self, vm: Vm, event: MonitorEvent) -> None:
        """Take an event of QEMU."""
        match event.name:
            case "DISCONNECTED":
                self.on_unresponsive(vm)
            case "RESUME" | "STOP":
                vm.set_running(RUN_STATE_EVENTS[event.name])
                self._publish_run_state(vm)
                if vm.running:
                    self._resync_links(vm)
            case "SHUTDOWN":  # cables stay as long as QEMU does: it may reset the guest instead
                by_guest, reason = event.data.get("guest"), event.data.get("reason")
                self._bus.publish(EventKind.VM_SHUT_DOWN, vm.name, by_guest=by_guest, reason=reason)
            case "RECONNECTED" | "OVERFLOW":  # events may have been missed
                self._start(self._rescan(vm))
            case "DEAD":
                self._start(self.clean_up(vm))
            case "NIC_RX_FILTER_CHANGED":
                if nic := vm.nics.get(alias_of(str(event.data.get("name")))):
                    self._schedule(vm, nic, self._follow)
            case "DEVICE_DELETED":
                if nic := vm.nics.get(alias_of(str(event.data.get("device")))):
                    self._schedule(vm, nic, self._on_nic_removed)

    def _schedule(self, vm: Vm, nic: ManagedNic, reaction: NicReaction) -> None:
        """Do a step for a NIC, under its lock, unless the same waits already: it will see the same.

        A QEMU may send events faster than it answers, or without end.
        """
        key = (id(nic), reaction.__name__)
        if key not in self._waiting:
            self._waiting.add(key)
            self._start(self._begin(key, vm, nic, reaction))

    async def _begin(
        self, key: tuple[int, str], vm: Vm, nic: ManagedNic, reaction: NicReaction
    ) -> None:
        try:
            await nic.lock.acquire()
        finally:
            self._waiting.discard(key)
        try:
            if not self._stopping:
                await reaction(vm, nic)
        finally:
            nic.lock.release()

    async def clean_up(self, vm: Vm) -> None:
        """QEMU has ended: free what its NICs held. The VM stays known, as gone.

        Once: a VM of that name may be there again by the time that somebody asks twice. Who asks
        meanwhile waits for the same.
        """
        if vm.cleanup_task is None:
            vm.cleanup_task = asyncio.create_task(self._clean_up(vm), name=f"clean up {vm.name}")
        await asyncio.shield(vm.cleanup_task)

    async def _clean_up(self, vm: Vm) -> None:
        vm.since = datetime.now(UTC)
        await self._bindings.release_all(vm.name)
        for nic in list(vm.nics.values()):
            async with nic.lock:
                await steps.discard_dead(nic)
                if nic.deferred:
                    self.schedule_retry(vm)
        try:
            await vm.journal.drop()
        except LinkmgrError as error:
            log.warning("VM %s: %s", vm.name, error)
        self._bus.publish(EventKind.VM_GONE, vm.name)

    async def _rescan(self, vm: Vm) -> None:
        """Look up what events that were missed would have told."""
        try:
            if await vm.query_run_state():
                self._publish_run_state(vm)
            for nic in await vm.removed_nics():
                self._schedule(vm, nic, self._on_nic_removed)
        except MonitorError:
            self.on_unresponsive(vm)
        self._resync_links(vm)  # after a NIC that is gone has been lost: it has no link to show
        for nic in vm.nics.values():
            self._schedule(vm, nic, self._follow)

    def _publish_run_state(self, vm: Vm) -> None:
        if vm.running is not None:
            self._bus.publish(EventKind.VM_RESUMED if vm.running else EventKind.VM_PAUSED, vm.name)

    def _resync_links(self, vm: Vm) -> None:
        for nic in vm.nics.values():
            self._schedule(vm, nic, self._resync_link)

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
        nic.carrier.invalidate()
        try:
            await nic.apply_link(hold_down=False)
        except LinkmgrError as error:
            log.warning("%s: its link state may not be what it should be: %s", nic.ref, error)
            self._bus.publish(EventKind.FAILED, nic.ref, code=error.code, what=error.what)
            if isinstance(error, MonitorGone | MonitorTimeout):
                nic.deferred.append(partial(nic.apply_link, hold_down=False))
                self.on_unresponsive(vm)

    async def _retry(self, vm: Vm) -> None:
        while True:
            await vm.qemu.wait_responsive()
            if vm.qemu.closed:
                return
            try:
                for nic in list(vm.nics.values()):
                    async with nic.lock:
                        if vm.qemu.alive:
                            await steps.run_deferred(nic)
                        elif nic.deferred:
                            await steps.discard_dead(nic)
                        if nic.removed and vm.qemu.alive and not nic.deferred:
                            await self._drop(vm, nic)
            except MonitorError as error:
                log.debug("%s: not yet: %s", vm.name, error)
                await asyncio.sleep(RETRY_INTERVAL_S)
                continue
            if vm.qemu.alive and vm.set_unresponsive(False):
                self._bus.publish(EventKind.VM_ANSWERS, vm.name)
            if not any(nic.deferred for nic in vm.nics.values()):
                return
            await asyncio.sleep(REFUSED_RETRY_INTERVAL_S)

    async def _on_nic_removed(self, vm: Vm, nic: ManagedNic) -> None:
        """Free the cable of a NIC that was hot-unplugged. The NIC's lock is held."""
        if nic.removed:  # both the event and a look have found it, or QEMU has ended
            return
        try:
            await steps.discard_dead(nic)
        except MonitorError:
            self.on_unresponsive(vm)  # what is left is done when QEMU answers
        if nic.deferred:
            self.schedule_retry(vm)
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
            self.on_unresponsive(vm)
            return
        if refused and refused != nic.filter_refusals:
            self._bus.publish(EventKind.REFUSED, nic.ref, refused=list(refused))
        nic.filter_refusals = refused
