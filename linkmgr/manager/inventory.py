"""What there is: VMs, networks, ports; from its start to its end, looked at and worked on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

from linkmgr.aio.log_limit import LogLimit
from linkmgr.aio.singleflight import SingleFlight
from linkmgr.aio.threads import shield_and_wait
from linkmgr.api import ORPHAN_MIN_AGE_S
from linkmgr.errors import (
    BadRequest,
    BeingRemoved,
    LinkmgrError,
    MonitorGone,
    MonitorTimeout,
    NotFound,
    Stopping,
    UnknownVm,
)
from linkmgr.events import EventBus, EventKind, EventSubscription
from linkmgr.host import Host
from linkmgr.host.fds.registry import FdRegistry
from linkmgr.host.fds.store import FdStore
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp.admission import Admission, MayUse, PeerCredentials
from linkmgr.hypervisors.qemu.qmp.connector import (
    ConnectorFactory,
    SocketConnector,
    socket_connector,
)
from linkmgr.inventory.bindings import PortBindings
from linkmgr.inventory.machine import Vm
from linkmgr.inventory.networks import Networks
from linkmgr.manager.vm_locks import VmLocks
from linkmgr.model import (
    BridgeEndpoint,
    Connection,
    Finding,
    Network,
    NetworkInfo,
    Nic,
    NicRef,
    OrphanDevice,
    Outcome,
    OwnerTag,
    Port,
    VmInfo,
)
from linkmgr.naming import NicCandidate, NicName, find_nic
from linkmgr.reconcile.drift import DriftWatch
from linkmgr.reconcile.firewall import find_filtered_bridges
from linkmgr.reconcile.inspection import Inspection
from linkmgr.reconcile.orphans import OrphanCollector
from linkmgr.reconcile.reconnect import Reconnector
from linkmgr.reconcile.supervisor import VmSupervisor
from linkmgr.state.directory import StateDirectory
from linkmgr.state.journal import Journal, VmJournal
from linkmgr.swap import steps
from linkmgr.swap.steps import LiveConnection, ManagedNic, Probe, no_probe
from linkmgr.text.suggest import hint_for_unknown
from linkmgr.wirings.hub.nic_models import shows_carrier, unseen_carrier

#: Seconds that a start waits for QEMUs that do not answer.
RECONNECT_TIMEOUT_S = 3.0
#: Seconds between two looks for new NICs, for those who list them.
SCAN_INTERVAL_S = 1.0
#: Seconds that those who list NICs wait for a QEMU to tell of new ones, each of which it is asked
#: about one by one: one that answers each question slowly holds nobody up for long.
LISTING_TIMEOUT_S = 2.0
#: Seconds until such a look is given up: nothing else is added to or removed from the VM meanwhile.
#: A guest with 28 NICs needs a tenth of a second.
SCAN_TIMEOUT_S = 10.0
#: Seconds that QEMUs get to tell of new NICs when no known NIC has the name that is asked for.
NAMING_TIMEOUT_S = 1.0

log = logging.getLogger(__name__)
_limit = LogLimit(__name__)

T = TypeVar("T")


class Inventory(ABC):
    """The VMs, networks and ports that there are. `LinkManager` says what it takes and does."""

    def __init__(
        self,
        *,
        state: str | Path | None = None,
        fd_store: FdStore | None = None,
        watch: bool | None = None,
        timeout: float = 5.0,
        probe: Probe = no_probe,
        connectors: ConnectorFactory = socket_connector,
    ) -> None:
        self.timeout = timeout
        self._connectors = connectors
        self._probe = probe
        self._stack = contextlib.AsyncExitStack()
        self._host = Host(fd_store)
        #: What the state directory holds.
        self.documents = StateDirectory(None if state is None else Path(state))
        self._journal = Journal(self.documents)
        self._networks = Networks(self._host)
        self._under_way: list[Network] = []  #: of the plugs that an earlier run did not finish
        self._orphans = OrphanCollector(
            self._host, lambda: self._networks.may_make([*self._networks, *self._under_way])
        )
        self._vms: dict[str, Vm] = {}
        self._locks = VmLocks()
        self._bus = EventBus()
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Port bindings of guests that are on their way here.
        self.bindings = PortBindings(
            self._networks, mac_of=self._mac_of, is_here=self._is_here, start=self._start
        )
        self._supervisor = VmSupervisor(self._bus, self._start, self.bindings)
        self._pending = Reconnector(
            journal=self._journal,
            networks=self._networks,
            host=self._host,
            bus=self._bus,
            connect=self._connect,
            connectors=connectors,
            back=self._is_back,
            probe=probe,
        )
        self._watches = state is not None if watch is None else watch
        self._watcher: asyncio.Task[None] | None = None
        self._started = False
        #: Anybody may ask for these, as often as he likes.
        self._pinging = SingleFlight(self._ping_all, "ask every QEMU for a sign of life")
        self._checking = SingleFlight(self._check, "check")
        self._drift = DriftWatch(self._host, self._bus, self._all_nics, self._repair)
        self._closed = False

    @property
    def fds(self) -> FdRegistry:
        """Where callers leave the fds that are then plugged as ``fd:NAME``."""
        return self._host.fds

    async def __aenter__(self) -> Self:
        """Begin, and bring back what the state directory knows.

        :raise Conflict: when another linkmgr uses the state directory.
        :raise StateError: when the state directory cannot be used.
        """
        self._stack.callback(self.documents.close)
        await self._stack.enter_async_context(self._host)
        try:
            await self._remember()
        except BaseException:
            await self.close()
            raise
        return self

    async def _remember(self) -> None:
        await self.documents.lock()
        vms, networks, ports = await self._journal.load()
        for network in networks:
            try:
                self._networks.restore(network)
            except LinkmgrError as error:  # its driver is not installed any more, say
                log.error("network %s cannot be had again: %s", network, error)
        for port in ports:
            self._networks.restore_port(port)
        intents = [nic.intent for vm in vms for nic in vm.nics.values()]
        self._under_way = [each.port.network for each in intents if each and each.port]
        if self.documents.folder is not None:
            await self._orphans.remove_untagged()
        await self._pending.start(vms, RECONNECT_TIMEOUT_S)
        await self._tidy()
        self._started = True
        await self._orphans.find(*self._recorded())
        if self._watches:
            self._watcher = asyncio.create_task(self._drift.run(), name="watch for drift")

    async def _connect(
        self,
        journal: VmJournal,
        check: Callable[[QemuProcess], None] = lambda _: None,
        may_use: MayUse | None = None,
    ) -> Vm:
        record = journal.record
        connector = self._connectors(record.qmp)
        if isinstance(connector, SocketConnector):
            is_new = record.pid is None and record.owner is None
            known = None if is_new else PeerCredentials(record.pid, record.owner)
            connector.uid = record.adder
            connector.admit = Admission(may_use=may_use, known=known)
        return await Vm.connect(
            record.vm,
            connector,
            self._host,
            timeout=self.timeout,
            handler=self._supervisor.on_event,
            journal=journal,
            check=check,
        )

    async def _tidy(self) -> None:
        """Free what no cable needs any more, now that more is known of what there is."""
        await self._networks.tidy()
        claimed, pending = self._cables()
        self._host.fd_store.prune(claimed, pending)

    def _is_back(self, vm: Vm | None) -> None:
        """A VM that an earlier run knew answers, or has ended."""
        if vm is not None:
            self._vms[vm.name] = vm
            if any(nic.deferred for nic in vm.nics.values()):
                self._supervisor.schedule_retry(vm)
        if self._started:
            self._start(self._tidy())

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def begin_close(self) -> None:
        """Begin nothing more: verbs that wait for a NIC end with `Stopping`, and so does an adding.

        What is in the middle of its steps goes on; `close` waits for it.
        """
        self._locks.stop()
        self._supervisor.stop()

    async def close(self) -> None:
        """Finish the verbs under way, then let go of every guest. Repeats freely."""
        self.begin_close()
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await asyncio.gather(self._pinging.close(), self._checking.close())
        await self._pending.close()
        await self.bindings.release_all()
        for vm in self._vms.values():
            if vm.scan_task is not None:
                vm.scan_task.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._leave(vm) for vm in self._vms.values()))
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._vms.clear()
        self._bus.close()
        await self._stack.aclose()

    # ------------------------------------------------------------------ looking

    async def vms(self) -> list[VmInfo]:
        """All VMs as they are now. Asks every QEMU for a sign of life, all at once."""
        await self._pinging.get()
        return self.snapshot()[0]

    async def nics(self) -> list[Nic]:
        """All NICs as they are now. Asks every QEMU for a sign of life, all at once.

        One that was hot-plugged within the last `SCAN_INTERVAL_S` may be missing.
        """
        await self._pinging.get()
        return self.snapshot()[1]

    async def _ping_all(self) -> None:
        looks = (self._scan_nics(each, SCAN_INTERVAL_S) for each in self._vms.values())
        await asyncio.gather(*looks)

    def snapshot(self) -> tuple[list[VmInfo], list[Nic]]:
        """All VMs and NICs as last known, by name, without asking any QEMU."""
        vms = [vm.info() for vm in self._vms.values()]
        nics = [vm.snapshot(managed) for vm in self._vms.values() for managed in vm.nics.values()]
        for pending in self._pending.vms.values():
            vms.append(pending.info())
            nics += pending.nics()
        return sorted(vms, key=lambda vm: vm.name), sorted(nics, key=lambda nic: nic.ref)

    def snapshot_vm(self, name: str) -> VmInfo | None:
        """One VM as last known, ``None`` when there is none of that name. Asks no QEMU."""
        known = self._vms.get(name) or self._pending.vms.get(name)
        return known.info() if known else None

    async def nic(self, nic: str | NicRef) -> Nic:
        """One NIC as it is now.

        :raise NotFound: when there is none of that name.
        """
        ref = await self.resolve(nic)
        if pending := self._pending.vms.get(ref.vm):
            for each in pending.nics():
                if each.ref == ref:
                    return each
        vm, managed = await self._find_now(ref)
        await self._supervisor.ping(vm)
        return vm.snapshot(managed)

    async def resolve(self, nic: str | NicRef) -> NicRef:
        """Which NIC a name means: ``VM/ALIAS``, a MAC address, a device, or a VM with one NIC.

        Behind a VM's name stands its alias, or an address or device of it. All verbs read names
        so. A NIC of a guest that has ended has no address any more.

        :raise BadName: when it cannot be the name of a NIC.
        :raise AmbiguousNic: when several NICs have it; the hint names them.
        :raise NotFound: when none has it. ``VM/ALIAS`` is returned whether there is one or not.
        """
        self._check_open()
        if isinstance(nic, NicRef):
            return nic
        name = NicName.parse(nic)
        named = self._vms.get(name.vm or name.word)
        if named and name.vm and name.word in named.nics:  # as all programs name it
            return NicRef(name.vm, name.word)
        if named and name.vm is None:
            await self._scan_nics(named, SCAN_INTERVAL_S)
        try:
            return find_nic(name, self._nic_candidates(), self._vm_names())
        except NotFound as error:
            if name.vm is None and not name.is_mac:
                if self._networks.find(name.word):
                    error.hint = f"{name} is a network: name the NIC first, then the network"
                raise
        due = time.monotonic() - SCAN_INTERVAL_S
        vms = [vm for vm in self._vms.values() if name.vm in (None, vm.name) and vm.last_scan < due]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NAMING_TIMEOUT_S):
                await asyncio.gather(*map(self._scan_nics, vms))
        return find_nic(name, self._nic_candidates(), self._vm_names())

    def _nic_candidates(self) -> Iterator[NicCandidate]:
        for vm in self._vms.values():
            for managed in vm.nics.values():
                here = managed.connection.cable.device if managed.connection else None
                yield NicCandidate(
                    managed.ref, self._mac_of(managed.ref), here, managed.wanted_ifname
                )
        for pending in self._pending.vms.values():
            for alias, nic in pending.record.nics.items():
                device = nic.cable.device if nic.cable else None
                yield NicCandidate(
                    NicRef(pending.record.vm, alias), nic.facts.mac, device, nic.name
                )

    def _vm_names(self) -> list[str]:
        return [*self._vms, *self._pending.vms]

    async def networks(self) -> list[Network]:
        """All networks."""
        return list(self._networks)

    async def network(self, name: str) -> NetworkInfo:
        """One network, its ports, the NICs on it, and what it lacks on this host.

        :raise UnknownNetwork: when there is no such network.
        """
        network = self._networks.network(name)
        return NetworkInfo(
            network,
            tuple(self._networks.ports(name)),
            tuple(sorted(self._networks.nics_on(name))),
            await self._networks.driver(network.driver).missing(network),
        )

    async def ports(self, network: str) -> list[Port]:
        """The ports that were created on a network.

        :raise UnknownNetwork: when there is no such network.
        """
        return self._networks.ports(self._networks.network(network).name)

    async def connections(self) -> list[Connection]:
        """All NICs that are plugged, with what they are plugged into."""
        nics = [managed for vm in self._vms.values() for managed in vm.nics.values()]
        pending = [nic for each in self._pending.vms.values() for nic in each.nics()]
        return [managed.connection.as_connection() for managed in nics if managed.connection] + [
            nic.connection for nic in pending if nic.connection
        ]

    async def check(self) -> list[Finding]:
        """Compare what should be with QEMU and the kernel. Changes nothing; empty is good.

        One look for all who ask at once, which holds no lock and waits for no verb: what is under
        way, or fails to be repaired, is told as what it is. No guest holds it up for long.
        """
        return list(await self._checking.get())

    async def _check(self) -> list[Finding]:
        inspection = Inspection(self._host, self._supervisor.ping_once, self._drift.repairs)
        looks = await asyncio.gather(*(inspection.look(vm) for vm in list(self._vms.values())))
        findings = [finding for found in looks for finding in found]
        for pending in self._pending.vms.values():
            error = pending.refusal()
            findings.append(Finding(error.code, pending.record.vm, error.what, error.hint or ""))
        findings += [
            Finding("state-damaged", damage.subject, f"{damage.file} {damage.why}", damage.hint)
            for damage in self.documents.damages()
        ]
        findings += [
            Finding(
                "not-written", document.name, f"{document.what} is not written down: {error.what}",
                error.hint or "see the log",
            )
            for document, error in self.documents.unwritten()
        ]  # fmt: skip
        findings += await find_filtered_bridges(self._bridges())
        try:
            orphans = await self._orphans.find(*self._recorded())
        except LinkmgrError as error:
            hint = error.hint or "see the service's log"
            return [*findings, Finding(error.code, "host", error.what, hint)]
        known, busy = self._recorded()  # a verb may have begun meanwhile
        ours = {str(nic.ref) for vm in self._vms.values() for nic in vm.nics.values()} - busy
        return findings + [
            Finding(
                "orphan-device",
                orphan.owner,
                f"device {orphan.device} carries its tag, but belongs to no cable of it",
                "run 'linkmgr gc'",
            )
            for orphan in orphans
            if orphan.owner in ours and orphan.owner_tag not in known
        ]

    async def gc(
        self, *, older_than: float = ORPHAN_MIN_AGE_S, dry_run: bool = False
    ) -> list[OrphanDevice]:
        """Remove devices that carry our tag and that nothing recorded. Goes on past errors.

        :param older_than: seconds since a device was first seen to be one.
        :param dry_run: only tell.
        :return: all that were found, removed or not.
        """
        return await self._orphans.remove(self._recorded, older_than=older_than, dry_run=dry_run)

    def _bridges(self) -> dict[str, set[str]]:
        """The bridges that NICs are plugged into, and by which networks."""
        found: dict[str, set[str]] = {}
        for vm in self._vms.values():
            for nic in vm.nics.values():
                if nic.connection and isinstance(nic.connection.cable.endpoint, BridgeEndpoint):
                    network = nic.connection.attachment.port.network.name
                    found.setdefault(nic.connection.cable.endpoint.bridge, set()).add(network)
        return found

    def _recorded(self) -> tuple[set[OwnerTag], set[str]]:
        """The tags of what is recorded, and the owners of what may be in the making."""
        known: set[OwnerTag] = set()
        busy: set[str] = set()
        for vm in self._vms.values():
            for nic in vm.nics.values():
                if nic.connection:
                    known.add(OwnerTag(str(nic.ref), nic.connection.cable.id))
                if nic.deferred or nic.foreign or nic.lock.locked():
                    busy.add(str(nic.ref))
        for pending in self._pending.vms.values():
            busy |= {f"{pending.record.vm}/{alias}" for alias in pending.record.nics}
        busy |= {OwnerTag.of_network(name, "").owner for name in self._networks.in_use()}
        return known, busy

    def _cables(self) -> tuple[set[str], set[str]]:
        """Ids of the cables that we have, and of those of VMs that have not answered yet."""
        nics = [nic for each in self._pending.vms.values() for nic in each.record.nics.values()]
        pending = {nic.cable.id for nic in nics if nic.cable}
        pending |= {nic.intent.attachment for nic in nics if nic.intent and nic.intent.attachment}
        return {
            managed.connection.cable.id for managed in self._all_nics() if managed.connection
        }, pending

    def events(self) -> EventSubscription:
        """Listen from now on: an asynchronous iterator of events."""
        return self._bus.subscribe()

    def publish(self, kind: EventKind, subject: object, **details: object) -> None:
        """Publish an event, for code that is built upon the verbs."""
        self._bus.publish(kind, subject, **details)

    def process_of(self, vm: str) -> tuple[int | None, int | None] | None:
        """Which process a VM is: its pid, and when it began; ``None`` for a VM that is not known.

        Both are ``None`` for one of another pid namespace. When it began is in clock ticks since
        boot, as in proc(5).
        """
        if pending := self._pending.vms.get(vm):
            return pending.record.pid, pending.record.started
        known = self._vms.get(vm)
        return (known.journal.record.pid, known.journal.record.started) if known else None

    # ------------------------------------------------------------------ inside

    def _find(self, ref: NicRef) -> tuple[Vm, ManagedNic]:
        self._check_open()
        if pending := self._pending.vms.get(ref.vm):
            raise pending.refusal(ref.alias)
        if ref.vm not in self._vms:
            raise UnknownVm(
                f"there is no VM {ref.vm}",
                hint=hint_for_unknown(ref.vm, self._vm_names(), "the VMs are", "add it first"),
            )
        vm = self._vms[ref.vm]
        return vm, vm.find_nic(ref.alias)

    async def _find_now(self, ref: NicRef) -> tuple[Vm, ManagedNic]:
        """As `_find`; a NIC that was hot-plugged since is found, too."""
        vm = self._vms.get(ref.vm)
        if vm is not None and ref.alias not in vm.nics:
            await self._scan_nics(vm)
        return self._find(ref)

    async def _scan_nics(self, vm: Vm, seconds: float = 0.0) -> None:
        """Ask QEMU for a sign of life, and for NICs that were hot-plugged since.

        One look at a time, which goes on when it takes longer than anybody waits.

        :param seconds: for which what was seen is good enough: many may ask at once.
        """
        await self._supervisor.ping(vm)
        due = time.monotonic() - seconds
        patience = LISTING_TIMEOUT_S if seconds else vm.qemu.timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while (
                    vm.last_scan < due
                    and vm.qemu.alive
                    and not vm.unresponsive
                    and not self._closed
                ):
                    if vm.scan_task is None or vm.scan_task.done():
                        vm.last_scan = time.monotonic()
                        vm.scan_task = self._start(self._find_new_nics(vm))
                    await asyncio.wait({vm.scan_task})

    async def _find_new_nics(self, vm: Vm) -> None:
        async with self._locks.vm_lock(vm.name):
            if self._vms.get(vm.name) is not vm:  # removed meanwhile
                return
            why: object = f"QEMU has not told of all within {SCAN_TIMEOUT_S:g} s"
            try:
                async with asyncio.timeout(SCAN_TIMEOUT_S):
                    await vm.scan_nics()
            except TimeoutError:
                pass
            except LinkmgrError as error:
                why = error
            else:
                return
            _limit.warning(f"VM {vm.name}", "VM %s: cannot look for new NICs: %s", vm.name, why)

    def _mac_of(self, ref: NicRef) -> str | None:
        """The address of a NIC, ``None`` for one that is gone."""
        if pending := self._pending.vms.get(ref.vm):
            known = pending.record.nics.get(ref.alias)
            return known.facts.mac if known else None
        vm = self._vms.get(ref.vm)
        facts = vm.facts.get(ref.alias) if vm and vm.qemu.alive else None
        return facts.mac if facts else None

    def _is_here(self, vm: str) -> bool:
        return vm in self._pending.vms or (vm in self._vms and self._vms[vm].qemu.alive)

    def _all_nics(self) -> list[ManagedNic]:
        return [nic for vm in self._vms.values() for nic in vm.nics.values()]

    async def _leave(self, vm: Vm) -> None:
        """Disconnect from a VM; free what it held if it has ended.

        Cancelling the caller does not cut it off: a VM that is closed and not cleaned up would keep
        its devices, as no event comes of it any more.
        """
        await shield_and_wait(self._start(self._disconnect(vm)))

    async def _disconnect(self, vm: Vm) -> None:
        ended = not vm.qemu.alive or await vm.qemu.confirm_exit()
        await vm.close()
        if ended:
            await self._supervisor.clean_up(vm)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone away; do not warn of an error unread

    # ------------------------------------------------------------------ how a verb runs

    async def _verb(
        self, vm: Vm, nic: ManagedNic, change: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """Run a verb in its own task under the NIC's lock: who goes away stops nothing."""
        self._check_open()
        return await asyncio.shield(self._start(self._locked(vm, nic, change)))

    def _check_open(self) -> None:
        if self._closed:
            raise BadRequest("this LinkManager is closed", hint="enter a new one")

    async def _locked(
        self, vm: Vm, nic: ManagedNic, change: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        async with contextlib.AsyncExitStack() as held:
            try:
                await held.enter_async_context(self._locks.nic_lock(vm.name, nic.lock))
            except (BeingRemoved, Stopping) as error:
                error.about(str(nic.ref), vm.snapshot(nic).describe())
                raise
            if self._vms.get(vm.name) is not vm:
                raise UnknownVm(f"VM {vm.name} was removed meanwhile", hint="add it again")
            return await self._guarded(vm, nic, change)

    async def _guarded(
        self, vm: Vm, nic: ManagedNic, change: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """Do what was left undone, then the change; publish a failure. The NIC's lock is held."""
        before = nic.connection
        try:
            nic.check_usable()
            if vm.qemu.alive:
                await steps.run_deferred(nic)
            elif nic.deferred:
                await steps.discard_dead(nic)
            changes = nic.carrier.changes
            outcome = await change()
            model = vm.snapshot(nic).model
            if nic.carrier.changes == changes or shows_carrier(model, vm.qemu.features.build):
                return outcome
            return replace(outcome, notes=(*outcome.notes, unseen_carrier(model)))
        except LinkmgrError as error:
            if isinstance(error, MonitorTimeout | MonitorGone):
                self._supervisor.on_unresponsive(vm)
            if isinstance(error, MonitorTimeout):
                error.hint = f"{error.hint}; {_later(before, nic.connection)}"
            error.about(str(nic.ref), vm.snapshot(nic).describe())
            self._bus.publish(EventKind.FAILED, nic.ref, code=error.code, what=error.what)
            raise
        finally:
            if nic.deferred:
                self._supervisor.schedule_retry(vm)

    @abstractmethod
    async def _repair(self, nic: ManagedNic) -> bool:
        """Plug a NIC into its own port again, if that is still called for; whether it was."""


def _later(before: LiveConnection | None, now: LiveConnection | None) -> str:
    """What becomes of a verb that QEMU did not answer."""
    if now is not before and now is not None:
        return "the new cable is in, and the guest is told of it when QEMU answers again"
    return "what was begun is settled when QEMU answers again: repeat it then"
