"""The controller of libvirt's domains: applies the cables that their XML asks for.

It hears from four sides: from the listener that a QEMU has connected (`on_unclaimed`), from
`LinkManager` that QEMU runs, from libvirt that the metadata has changed, and from libvirt's hook
what is about to happen (`on_hook`). Each of them may be missing, late or twice:
what is done depends only on what is there. docs/metadata.md has the table of what wins when.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol, Self

from linkmgr.aio.singleflight import SingleFlight
from linkmgr.aio.token_bucket import TimeBudget
from linkmgr.errors import BadRequest, LibvirtError, LinkmgrError
from linkmgr.events import Event, EventKind, EventSubscription
from linkmgr.libvirt.client.events import DomainEvent, DomainEventKind, DomainEventSubscription
from linkmgr.libvirt.domains.applier import CableApplier
from linkmgr.libvirt.domains.domain_inventory import DomainInventory
from linkmgr.libvirt.domains.domains import (
    AppliedState,
    ApplyFailure,
    DesiredState,
    Domain,
    KnownDomains,
    Process,
)
from linkmgr.libvirt.domains.gateway import HookSafeLibvirt, LibvirtApi
from linkmgr.libvirt.domains.hook_handler import HookAnswer, HookHandler
from linkmgr.libvirt.domains.inline_networks import InlineNetworks
from linkmgr.libvirt.domains.unconnected import CONNECT_GRACE_S, find_unconnected
from linkmgr.libvirt.domains.verbs import DomainVerbs
from linkmgr.libvirt.xml.desired_cables import CABLES_NAMESPACE, desired_cables_of, read_document
from linkmgr.libvirt.xml.document import Document
from linkmgr.manager.manager import LinkManager
from linkmgr.model import DomainInfo, Finding, MonitorTransport, VmInfo, VmState
from linkmgr.state.journal import started_at

log = logging.getLogger(__name__)

#: Seconds between two tries of what could not be done; the last one again and again.
RETRY_INTERVALS_S = (1.0, 2.0, 5.0, 10.0, 30.0)

#: Processor seconds that may be spent at once on reading the XML of all domains: some hundreds are
#: listed without a pause, and ten that are as large as may be.
LISTING_BURST_S = 0.5
#: Processor seconds that it takes to try one cable, about (measured: 0.3 ms where it fails).
APPLY_COST_S = 0.001

_VM_READY = {EventKind.VM_ADDED, EventKind.VM_ANSWERS, EventKind.VM_RESUMED}
_TARGET_ADDED = {EventKind.NETWORK_ADDED, EventKind.PORT_ADDED}
_TARGET_FREED = {EventKind.UNPLUGGED, EventKind.REPLUGGED, EventKind.VM_REMOVED, EventKind.VM_GONE}


class QemuIdentity(Protocol):
    """The domain of a connected QEMU, which the listener has checked."""

    @property
    def name(self) -> str:
        """The domain's name."""

    @property
    def uuid(self) -> str:
        """The domain's uuid."""


class DomainController:
    """The controller of libvirt's domains. An asynchronous context manager.

    :param manager: entered already, and closed later.
    :param libvirt: ``None`` does without: then only hooks tell what a domain asks for.
    :param retry_intervals: seconds between two tries.
    """

    def __init__(
        self,
        manager: LinkManager,
        libvirt: LibvirtApi | None,
        *,
        retry_intervals: tuple[float, ...] = RETRY_INTERVALS_S,
    ) -> None:
        self.manager = manager
        self.known_domains = KnownDomains(manager.documents)
        self.gateway = HookSafeLibvirt(libvirt)
        self._libvirt = libvirt
        self._inline_networks = InlineNetworks(manager)
        self.applier = CableApplier(manager, self._inline_networks)
        self._hooks = HookHandler(self.known_domains, manager, self._inline_networks)
        self.verbs = DomainVerbs(manager, self.known_domains, self.gateway, self._on_save_failed)
        self._retry_intervals = retry_intervals
        self.start_time = 0.0  #: in the event loop's time
        self._tasks: set[asyncio.Task[Any]] = set()
        #: What looks at all domains may cost that anybody may ask for.
        self._budget = TimeBudget(burst=LISTING_BURST_S)
        self._listing = SingleFlight(self._list, "list domains")
        self._checking = SingleFlight(self._check, "check domains")
        self._subscriptions: list[EventSubscription | DomainEventSubscription] = []

    async def __aenter__(self) -> Self:
        """Begin: look at what is there, and listen."""
        self.start_time = asyncio.get_running_loop().time()
        await self.known_domains.load()
        events = self.manager.events()
        self._subscriptions.append(events)
        self._spawn(self._follow_events(events), "follow VMs")
        if self._libvirt is not None:
            domain_events = self._libvirt.events()
            self._subscriptions.append(domain_events)
            self._spawn(self._follow_libvirt(domain_events), "follow libvirt")
        self._reconcile_all()
        await self._inline_networks.remove_unused()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop. Guests stay on the cables that they have."""
        for each in self._subscriptions:
            each.close()
        await asyncio.gather(self._listing.close(), self._checking.close())
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------ what others call

    async def on_unclaimed(self, qemu: QemuIdentity) -> None:
        """Add a QEMU that has connected and that nobody waits for.

        :raise LinkmgrError: when that cannot be; it is told in the log and in `findings` too.
        """
        domain = self.known_domains.ensure(qemu.uuid, qemu.name)
        try:
            await self.manager.add_vm(qemu.name, f"{MonitorTransport.INBOUND}:{domain.uuid}")
        except LinkmgrError as error:
            before = domain.failures.get("")
            if before is None or before.code != error.code:  # the rest is what QEMU says, each time
                self.applier.note_failure(domain, "", ApplyFailure.of(error))
            raise

    async def on_hook(
        self, operation: str, sub_operation: str, extra: str, domain_xml: str
    ) -> HookAnswer:
        """What libvirt's hook was called with. libvirt waits: never calls libvirt, never raises.

        At ``started`` it waits until the cables are in; the caller bounds it.
        """
        return await self._hooks.on_hook(operation, sub_operation, extra, domain_xml)

    async def domains(self) -> list[DomainInfo]:
        """All guests of libvirt on this host, prepared or not, running or not.

        Without libvirt those that linkmgr has to do with. All who ask at once share one look:
        anybody may ask, and each look is some calls per domain.
        """
        return list(await self._listing.get())

    async def _list(self) -> list[DomainInfo]:
        return await DomainInventory(
            self.manager, self.known_domains, self._libvirt, self._budget
        ).all()

    def findings(self) -> list[Finding]:
        """What domains ask for and is not so."""
        return [
            Finding(each.code, domain.subject(alias, each), each.what, each.hint)
            for domain in self.known_domains
            for alias, each in domain.failures.items()
        ]

    async def check(self) -> list[Finding]:
        """`findings`, and the guests whose QEMU has not connected in time; one look for all."""
        return list(await self._checking.get())

    async def _check(self) -> list[Finding]:
        known = {vm.name for vm in self.manager.snapshot()[0]}
        known |= {
            domain.name for domain in self.known_domains if domain.failures or domain.running_hooks
        }
        if asyncio.get_running_loop().time() - self.start_time < CONNECT_GRACE_S:
            return self.findings()
        return [*self.findings(), *await find_unconnected(self._libvirt, known, self._budget)]

    # ------------------------------------------------------------------ events

    async def _follow_events(self, events: EventSubscription) -> None:
        async for event in events:
            try:
                self._on_event(event)
            except Exception:
                log.exception("the event %s of %s was not handled", event.kind, event.subject)

    def _on_event(self, event: Event) -> None:
        if event.kind in _VM_READY:
            self._spawn(self._reconcile(event.subject), f"reconcile domain {event.subject}")
        elif event.kind is EventKind.VM_REMOVED:
            if (domain := self.known_domains.by_name(event.subject)) is not None:
                domain.wired_for = None  # whoever adds it again does that anew
        elif event.kind is EventKind.VM_GONE:
            self._spawn(self._on_process_gone(event.subject), f"forget domain {event.subject}")
        elif event.kind is EventKind.OVERFLOW:
            self._reconcile_all()
        if event.kind in _TARGET_ADDED:
            self._retry_failed_with({"unknown-network", "unknown-port"})
        elif event.kind in _TARGET_FREED:
            self._retry_failed_with({"port-in-use", "mac-in-use"})
            self._spawn(self._inline_networks.remove_unused(), "tidy inline networks")

    def _reconcile_all(self) -> None:
        for vm in self.manager.snapshot()[0]:
            if vm.state is VmState.GONE:
                self._spawn(self._on_process_gone(vm.name), f"forget domain {vm.name}")
            else:
                self._spawn(self._reconcile(vm.name), f"reconcile domain {vm.name}")

    async def _follow_libvirt(self, events: DomainEventSubscription) -> None:
        async for event in events:
            try:
                await self._on_libvirt_event(event)
            except LinkmgrError as error:
                log.warning("libvirt: %s", error)
            except Exception:
                log.exception("the event %s of domain %s was not handled", event.kind, event.name)

    async def _on_libvirt_event(self, event: DomainEvent) -> None:
        match event.kind:
            case DomainEventKind.CONNECTED:
                for domain in self.known_domains:
                    domain.drop_hook_xml()
                self._reconcile_all()
            case DomainEventKind.METADATA if event.detail == CABLES_NAMESPACE:
                known = self.known_domains.by_uuid(event.uuid)
                if known is not None:
                    known.drop_hook_xml()
                if known is None or not known.reconcile_queued:  # else the queued one will see it
                    self._spawn(self._reconcile(event.name), f"reconcile domain {event.name}")
            case DomainEventKind.STOPPED:
                # For a process that we cannot watch this is the only notice of its exit.
                self._spawn(self._on_process_gone(event.name), f"forget domain {event.name}")
            case _:
                pass

    def _retry_failed_with(self, codes: set[str]) -> None:
        for domain in self.known_domains:
            if any(each.code in codes for each in domain.failures.values()):
                self._spawn(self._reconcile(domain.name), f"reconcile domain {domain.name}")

    # ------------------------------------------------------------------ what is done

    async def _reconcile(self, name: str) -> None:
        """Apply what the domain of a VM asks for, if it is one and its process runs."""
        vm = self._vm(name)
        if vm is None or vm.state is not VmState.ANSWERS:
            return
        found = await self._identify(vm)
        if found is None or found[0].reconcile_queued:
            return  # the queued one will see it
        domain, process = found
        domain.reconcile_queued = True
        await asyncio.sleep(domain.budget.wait)
        async with domain.lock:
            domain.reconcile_queued = False
            if self.known_domains.ensure(domain.uuid, domain.name) is not domain:
                # It ended meanwhile.
                self._spawn(self._reconcile(name), f"reconcile domain {name}")
                return
            vm = self._vm(name)
            if vm is None or vm.state is not VmState.ANSWERS:
                return
            try:
                await self._apply(domain, vm, process)
            except LinkmgrError as error:
                retried = not isinstance(error, BadRequest)  # somebody has to write it anew
                self.applier.note_failure(domain, "", ApplyFailure.of(error, retried=retried))
                if retried:
                    self._schedule_retry(domain)
            await self.known_domains.save()

    async def _apply(self, domain: Domain, vm: VmInfo, process: Process) -> None:
        """See `_reconcile`. The domain's lock is held.

        :raise LinkmgrError: what it asks for is not known, or cannot be read.
        """
        new = domain.applied_state is None or domain.applied_state.process != process
        if new and vm.running is False:
            return  # libvirt sets links itself until it runs; and a guest on its way in has no net
        try:
            xml = await self.gateway.live_xml(domain)
        except LibvirtError:
            if new and self._libvirt is None:
                return  # without libvirt only a hook says what is asked for
            if not new:
                await self._apply_pending(domain)  # that much is known
            if new or (self._libvirt is not None and self._libvirt.connected):
                raise
            return  # while it is away nobody need ask: all is compared when it is back
        try:
            domain.set_hook_xml(None)
            domain.xml_read_for = process
            if new:
                domain.failures.clear()
                domain.applied_state = AppliedState(process)
            assert domain.applied_state is not None
            with domain.budget.spending():
                document = read_document(xml, domain.name)
            if domain.wired_for != process:
                self.applier.check_wiring(domain, document)
            try:
                wanted = desired_cables_of(document)
                done = (
                    set(wanted.by_nic)
                    if new and self.known_domains.is_history_lost(process)
                    else domain.changed_early
                )
                domain.applied_state = domain.applied_state.rebase(wanted).mark_done(done)
                domain.budget.spend(APPLY_COST_S * len(domain.applied_state.pending))
                domain.changed_early.clear()
                self.applier.note_failure(domain, "", None)
                await self._save_edits(domain, document)
                # Before: what a crash cuts off is done after the restart.
                await self.known_domains.save()
                await self._apply_pending(domain)
            finally:  # also when its metadata cannot be read
                if domain.wired_for != process:
                    await self.applier.wire(domain, document)
                    domain.wired_for = process
        finally:
            domain.apply_finished.set()

    async def _save_edits(self, domain: Domain, document: Document) -> None:
        """Write edits to the live XML that failed earlier."""
        if not domain.unsaved_edits:
            return
        try:
            before, after = await self.verbs.save_edits(domain, document)
        except LinkmgrError as error:
            self._on_save_failed(domain, error)
            return
        assert domain.applied_state is not None
        nics = [
            nic for nic in {**before.by_nic, **after.by_nic} if before.get(nic) != after.get(nic)
        ]
        domain.applied_state = domain.applied_state.with_states(
            *(DesiredState(after.get(nic), done=True) for nic in nics)
        )

    def _on_save_failed(self, domain: Domain, error: LinkmgrError) -> None:
        what = f"its live XML does not say yet what was done to its NICs: {error.what}"
        hint = error.hint or "look at libvirt's log"
        self.applier.note_failure(domain, "", ApplyFailure(error.code, what, hint))
        self._schedule_retry(domain)

    async def _apply_pending(self, domain: Domain) -> None:
        if not await self.applier.apply_pending(domain):
            self._schedule_retry(domain)

    async def _on_process_gone(self, name: str) -> None:
        """A QEMU has ended: nothing of it is kept. One of that name may run anew by now."""
        vm, domain = self._vm(name), self.known_domains.by_name(name)
        if vm is not None and (domain is not None or vm.transport is not MonitorTransport.SOCKET):
            await self.manager.forget_ended(name)  # one that is not libvirt's stays known, as gone
        if domain is None:
            return
        async with domain.lock:
            process = domain.applied_state.process if domain.applied_state else None
            unseen = process is not None and process.pid is None and self._vm(name) is None
            if process is None or unseen or not process.lives():
                await self.known_domains.process_ended(domain)

    def _schedule_retry(self, domain: Domain) -> None:
        if domain.retry is None or domain.retry.done():
            domain.retry = self._spawn(self._retry(domain), f"try again {domain.name}")

    async def _retry(self, domain: Domain) -> None:
        number = 0
        while any(failure.retried for failure in domain.failures.values()):
            await asyncio.sleep(self._retry_intervals[min(number, len(self._retry_intervals) - 1)])
            number += 1
            await self._reconcile(domain.name)

    async def _identify(self, vm: VmInfo) -> tuple[Domain, Process] | None:
        """Which domain a VM is, and which process; ``None`` if libvirt knows nothing of it."""
        known = self.manager.process_of(vm.name)
        if known is None:
            return None
        process = Process(*known)
        _, _, uuid = vm.qmp.partition(":")
        if vm.transport is MonitorTransport.INBOUND:
            return self.known_domains.ensure(uuid, vm.name), process
        if self._libvirt is None or not self._libvirt.connected:
            return None
        through_libvirt = vm.transport is MonitorTransport.LIBVIRT
        try:
            view = await self._libvirt.domain(uuid if through_libvirt else vm.name)
        except LinkmgrError as error:
            log.debug("VM %s is no domain: %s", vm.name, error)
            return None
        seen = Process(view.pid, None if view.pid is None else started_at(view.pid))
        if not through_libvirt and (view.pid is None or seen != process):
            return None  # of the same name, no more
        return self.known_domains.ensure(view.uuid, vm.name), seen

    def _vm(self, name: str) -> VmInfo | None:
        return self.manager.snapshot_vm(name)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guarded(coroutine, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await coroutine
        except LinkmgrError as error:
            log.warning("%s: %s", name, error)
        except Exception:
            log.exception("%s: a fault", name)
