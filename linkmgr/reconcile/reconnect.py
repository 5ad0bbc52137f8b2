"""Reconnection to VMs of an earlier run of linkmgr, until their QEMU answers or has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from linkmgr.errors import LinkmgrError, MonitorUnreachable
from linkmgr.events import EventBus, EventKind
from linkmgr.host import Host
from linkmgr.hypervisors.qemu.qmp.connector import ConnectorFactory, transport_of
from linkmgr.inventory.machine import Vm
from linkmgr.inventory.networks import Networks
from linkmgr.model import Connection, MonitorTransport, Nic, NicRef, NicState, VmInfo, VmState
from linkmgr.reconcile.recovery import (
    TaggedDevices,
    claim_ports,
    free_ports,
    recover_vm,
    remove_devices,
)
from linkmgr.state.journal import Journal, NicRecord, VmJournal, VmRecord
from linkmgr.swap.steps import Probe

log = logging.getLogger(__name__)

RECONNECT_INTERVAL_S = 0.5  #: between two attempts to connect to a QEMU
REFUSALS_MAX = 5  #: in a row, after which a socket of an unknown process belongs to nobody

Connect = Callable[[VmJournal], Awaitable[Vm]]


class PendingVm:
    """A VM of the journal without a connection yet. Its cables stay, and its ports stay claimed."""

    def __init__(self, record: VmRecord) -> None:
        self.record = record
        self.since = datetime.now(UTC)
        self.task: asyncio.Task[None]
        self._why = ""

    def note_error(self, error: Exception) -> bool:
        """Note why it is not here yet; true, and a line in the log, if that is news."""
        why = error.what if isinstance(error, LinkmgrError) else str(error)
        news = why != self._why
        if news:
            self._why = why
            log.warning("VM %s: not here yet: %s", self.record.vm, error)
        return news

    def info(self) -> VmInfo:
        """The VM as a caller sees it."""
        refs = tuple(NicRef(self.record.vm, alias) for alias in self.record.nics)
        transport = transport_of(self.record.qmp)
        return VmInfo(self.record.vm, self.record.qmp, VmState.UNKNOWN, self.since, refs, transport)

    def has_ended(self) -> bool:
        """Whether it is known without asking that QEMU has ended.

        Of a socket only who made it is known, and that need not be QEMU.
        """
        if transport_of(self.record.qmp) is MonitorTransport.SOCKET or self.record.pid is None:
            return False
        return not self.record.process_lives()

    def nics(self) -> list[Nic]:
        """Its NICs, as they are on disk."""
        return [self._nic(alias, nic) for alias, nic in self.record.nics.items()]

    def refusal(self, alias: str | None = None) -> MonitorUnreachable:
        """Make the error for a verb that has to wait for QEMU."""
        error = MonitorUnreachable(
            f"VM {self.record.vm} is known from before, and its QEMU has not answered since "
            f"linkmgr started{f' ({self._why})' if self._why else ''}",
            hint="see whether it is stopped, or whether another client uses its monitor; "
            "linkmgr goes on trying",
        )
        nic = self.record.nics.get(alias or "")
        if alias and nic:
            error.about(f"{self.record.vm}/{alias}", self._nic(alias, nic).describe())
        return error

    def _nic(self, alias: str, nic: NicRecord) -> Nic:
        ref = NicRef(self.record.vm, alias)
        return Nic(
            ref=ref,
            model=nic.facts.model,
            mac=nic.facts.mac,
            mtu=nic.facts.mtu,
            state=NicState.UNKNOWN,
            link=None,
            wanted_link=nic.wanted,
            wiring="hub" if nic.facts.managed else None,
            since=self.since,
            connection=Connection(
                nic=ref,
                port=nic.cable.port,
                endpoint=nic.cable.endpoint,
                attachment=nic.cable.attachment,
                device=nic.cable.device,
                since=nic.cable.since,
            )
            if nic.cable
            else None,
        )


class Reconnector:
    """Reconnects to pending VMs: brings each back as soon as its QEMU answers.

    :param connect: makes the `Vm` of a journal's record.
    :param connectors: know which errors prove that nobody is there.
    :param back: takes a VM that is here again, or ``None`` for one that has ended.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        networks: Networks,
        host: Host,
        bus: EventBus,
        connect: Connect,
        connectors: ConnectorFactory,
        back: Callable[[Vm | None], None],
        probe: Probe,
    ) -> None:
        self._journal = journal
        self._networks = networks
        self._host = host
        self._bus = bus
        self._connect = connect
        self._connectors = connectors
        self._back = back
        self._probe = probe
        self.vms: dict[str, PendingVm] = {}

    async def start(self, records: list[VmRecord], timeout: float) -> None:
        """Reconnect to these VMs, all at once; go on in the background where none answers.

        :param timeout: seconds that this waits for them.
        """
        for record in records:
            claim_ports(record, self._networks)
        tagged = await self._host.tagged_devices()
        for record in records:
            pending = self.vms[record.vm] = PendingVm(record)
            self._start_task(pending, tagged)
        if records:
            await asyncio.wait([pending.task for pending in self.vms.values()], timeout=timeout)

    async def close(self) -> None:
        """Cancel all attempts."""
        tasks = [pending.task for pending in self.vms.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_task(self, pending: PendingVm, tagged: TaggedDevices) -> None:
        work = self._reconnect(pending, tagged)
        pending.task = asyncio.create_task(work, name=f"reconnect to VM {pending.record.vm}")

    async def _reconnect(self, pending: PendingVm, tagged: TaggedDevices) -> None:
        name = pending.record.vm
        told = False
        refusals = 0
        while True:
            if pending.has_ended():
                await self._forget(pending, tagged)
                return
            try:
                vm = await self._reach(pending, tagged)
            except LinkmgrError as error:
                refusals = refusals + 1 if self._proves_absence(pending, error) else 0
                # Without a pid to look at, one refusal says little.
                enough = 1 if pending.record.pid is not None else REFUSALS_MAX
                if refusals >= enough and not pending.record.process_lives():
                    await self._forget(pending, tagged)
                    return
                pending.note_error(error)
            except Exception as error:
                if pending.note_error(error):
                    log.exception("VM %s cannot be brought back; trying again", name)
            else:
                del self.vms[name]
                self._back(vm)
                self._bus.publish(EventKind.VM_ANSWERS if told else EventKind.VM_ADDED, name)
                return
            if not told and refusals == 0:
                self._bus.publish(EventKind.VM_UNKNOWN, name)
                told = True
            await asyncio.sleep(RECONNECT_INTERVAL_S)
            tagged = await self._host.tagged_devices()

    async def _reach(self, pending: PendingVm, tagged: TaggedDevices) -> Vm:
        vm = await self._connect(VmJournal(self._journal, pending.record))
        try:
            await recover_vm(vm, self._host, self._networks, tagged, self._probe)
        except BaseException:
            await vm.close()
            raise
        return vm

    def _proves_absence(self, pending: PendingVm, error: LinkmgrError) -> bool:
        try:
            return self._connectors(pending.record.qmp).proves_absence(error)
        except LinkmgrError:  # it cannot be reached from here at all
            return False

    async def _forget(self, pending: PendingVm, tagged: TaggedDevices) -> None:
        """Its QEMU has ended while nobody looked: free what its NICs held."""
        name = pending.record.vm
        log.warning("the QEMU of VM %s (%s) has ended", name, pending.record.qmp)
        await remove_devices(name, self._host, tagged, unless_held=True)
        free_ports(pending.record, self._networks)
        try:
            await self._journal.drop_vm(name)
        except LinkmgrError as error:
            log.warning("VM %s: %s", name, error)
        self.vms.pop(name, None)
        self._bus.publish(EventKind.VM_GONE, name)
        self._back(None)

    async def forget(self, name: str) -> bool:
        """Forget a VM without asking its QEMU: its NICs stay on their cables.

        :return: false if it is not pending any more.
        :raise StateError: when its document is still there; it is not forgotten then.
        """
        pending = self.vms[name]
        pending.task.cancel()  # first: what brings a VM back writes its document
        await asyncio.gather(pending.task, return_exceptions=True)
        if self.vms.get(name) is not pending:
            return False
        try:
            await self._journal.drop_vm(name)
        except LinkmgrError:
            self._start_task(pending, await self._host.tagged_devices())
            raise
        free_ports(pending.record, self._networks)
        del self.vms[name]
        return True
