"""Link state in two places that agree: what libvirt says of a NIC, and what linkmgr does.

``virsh domif-setlink`` goes to QEMU through libvirt's own monitor and emits no event. But libvirt
writes its status file of the domain anew (`linkmgr.libvirt.xml.status_file`): that is watched. What
libvirt says then is compared with what it said before. If it has changed, the operator wants it so.
If not, and the NIC's link is another one, then linkmgr has changed it, and libvirt is told.

libvirt is told what the guest sees: an unplugged NIC is down, so ``domif-getlink`` says down.
``domif-setlink up`` on it is kept as the wanted link, shown at the next plug, and taken back in
libvirt.

Both directions are one comparison, made for one domain at a time, of what is then; so neither runs
after the echo of the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from asyncinotify import Inotify, Mask

from linkmgr.aio.token_bucket import TimeBudget
from linkmgr.errors import LinkmgrError
from linkmgr.events import EventKind
from linkmgr.libvirt.xml.status_file import BadDomainStatus, DomainStatus, read_status
from linkmgr.manager.manager import LinkManager
from linkmgr.model import LinkState, MonitorTransport, Nic, NicRef, NicState, VmInfo
from linkmgr.state.codec import JsonReader
from linkmgr.state.directory import SavedDocument
from linkmgr.state.journal import started_at

log = logging.getLogger(__name__)

DOCUMENT_NAME = "links"
RETRY_INTERVAL_S = 5.0  #: seconds until what failed, or was not there, is tried again

#: Sets a link in libvirt: uuid of the domain, MAC of the NIC, whether it is up.
SetLink = Callable[[str, str, bool], Awaitable[None]]
#: Sets the link of a NIC.
ApplyLink = Callable[[NicRef, LinkState], Awaitable[object]]

_WRITTEN = Mask.MOVED_TO | Mask.CLOSE_WRITE
_GONE = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.IGNORED | Mask.UNMOUNT
#: After these a NIC's link may have changed, or can be known.
_LINK_EVENTS = {
    EventKind.VM_ADDED, EventKind.VM_ANSWERS, EventKind.VM_RESUMED, EventKind.PLUGGED,
    EventKind.REPLUGGED, EventKind.UNPLUGGED, EventKind.LINK, EventKind.VM_REMOVED,
}  # fmt: skip


@dataclass(frozen=True)
class SyncAction:
    """How to bring the link of one NIC in line.

    :param requested: the link that an operator set through libvirt.
    :param resync: whether the guest is to be shown its link again: libvirt has set another one.
    :param report: the link to set in libvirt.
    """

    requested: LinkState | None = None
    resync: bool = False
    report: LinkState | None = None


def link_of(nic: Nic) -> LinkState | None:
    """The link that a NIC is to show, without the flaps of a swap; ``None`` when that is nobody's.

    Not `Nic.link`: in the middle of a swap it is down for a moment, and nobody asked for that.
    """
    match nic.state:
        case NicState.PLUGGED:
            return nic.wanted_link
        case NicState.FOREIGN:  # whoever plugged it may have set its link, too
            return nic.wanted_link if nic.link is not None else None
        case NicState.UNPLUGGED:  # one that migrates here keeps its carrier until it is plugged
            return LinkState.DOWN if nic.link is not None else None
        case NicState.UNMANAGED | NicState.UNKNOWN | NicState.GONE:
            return None


def decide(before: LinkState | None, said: LinkState, nic: Nic) -> SyncAction:
    """Decide how to bring the link of a NIC in line.

    :param before: what libvirt said the last time, or was told; ``None`` when that is not known:
        then nobody asked for what it says.
    :param said: what libvirt says now.
    """
    shown = link_of(nic)
    if shown is None or said is shown:
        return SyncAction()
    if before is None or said is before:
        return SyncAction(report=shown)
    if nic.state is NicState.UNPLUGGED:  # so libvirt says up, and has made it so
        return SyncAction(requested=said, resync=True, report=shown)
    return SyncAction(requested=said)


@dataclass
class _ReportedLinks:
    """The links that libvirt last had for a running domain.

    :param process_key: which QEMU process; what was said of another one says nothing of this one.
    """

    process_key: str
    links: dict[str, LinkState] = field(default_factory=dict)


class LinkSync:
    """Keeps link state the same in libvirt and in linkmgr. `run` is a task for its whole life.

    :param run_dir: where libvirt keeps its status files; without it nothing happens, until it is
        there. Domains are the VMs of the same name.
    :param set_link: tells libvirt; ``None`` when there is no connection to it.
    :param apply_link: applies a link that was set through libvirt; by default the verb alone.

    What libvirt said is kept in the state directory, so that what an operator does while linkmgr is
    away is seen when it is back.
    """

    def __init__(
        self,
        run_dir: Path,
        manager: LinkManager,
        *,
        set_link: SetLink | None = None,
        apply_link: ApplyLink | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._manager = manager
        self._set_link = set_link
        self._apply_link = apply_link or manager.set_link
        self._domains: dict[str, _ReportedLinks] = {}  # by name
        self._requests: dict[str, asyncio.Event] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._last_errors: dict[str, str] = {}
        #: By name: what may be spent on a domain's status file, which has its author's words in it.
        self._budgets: dict[str, TimeBudget] = {}
        self._saved = SavedDocument(
            manager.documents, DOCUMENT_NAME, "what libvirt said of links", self._content
        )

    async def run(self) -> None:
        """Sync until cancelled."""
        await self.load()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch_status_files())
                tasks.create_task(self._follow_events())
        finally:
            workers = list(self._workers.values())
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def schedule(self, vm: str) -> None:
        """Sync a domain soon, once more if that is going on."""
        request = self._requests.setdefault(vm, asyncio.Event())
        request.set()
        if vm not in self._workers:
            task = asyncio.create_task(self._work(vm, request), name=f"sync links of {vm}")
            self._workers[vm] = task
            task.add_done_callback(lambda task: self._worker_ended(vm, task))

    def _worker_ended(self, vm: str, task: asyncio.Task[None]) -> None:
        """Drop a worker, and start another if a request came after its last look."""
        del self._workers[vm]
        if self._requests.pop(vm).is_set() and not task.cancelled():
            self.schedule(vm)

    def schedule_all(self) -> None:
        """Sync all domains: something may have been missed."""
        for vm in self._manager.snapshot()[0]:
            self.schedule(vm.name)

    async def sync(self, vm: str) -> None:
        """Compare one domain's NICs with what libvirt says of them, and make both agree.

        Not for two callers at once with one domain; `schedule` sees to that.

        :raise LinkmgrError: when something cannot be done; look again.
        :raise BadDomainStatus: when libvirt's file cannot be understood.
        """
        info = next((each for each in self._manager.snapshot()[0] if each.name == vm), None)
        if info is None:
            self._budgets.pop(vm, None)
            await self._forget(vm)
            return
        # A string, because this comes with every change: see `linkmgr.host.sysfs`.
        status = await asyncio.to_thread(self._read, vm)
        if status is None or status.name != vm or not self._is_domain(info, status):
            await self._forget(vm)
            return
        domain = self._domain(status)
        try:
            for nic in [nic for nic in self._manager.snapshot()[1] if nic.ref.vm == vm]:
                about = status.nics.get(nic.ref.alias)
                if about is None or about.mac != nic.mac or link_of(nic) is None:
                    continue
                if nic.ref in self._manager.bindings:
                    continue  # it comes from another host, and what libvirt says came with it
                before = domain.links.get(nic.ref.alias)
                domain.links[nic.ref.alias] = about.link
                await self._carry_out(domain, status, nic, decide(before, about.link, nic))
        finally:
            await self._saved.save()

    async def _forget(self, vm: str) -> None:
        """Drop what libvirt said of a domain that has ended, on disk too: nothing else would."""
        if self._domains.pop(vm, None) is not None:
            await self._saved.save()

    def _is_domain(self, vm: VmInfo, status: DomainStatus) -> bool:
        """Whether a status file is of a VM as it runs now.

        Not of another QEMU that was added under the domain's name, nor of one that has ended: files
        may be renamed, or left behind.
        """
        pid, _ = self._manager.process_of(vm.name) or (None, None)
        if pid is None:
            return vm.transport is not MonitorTransport.SOCKET  # libvirt's uuid led to it
        return pid == status.pid

    def _read(self, vm: str) -> DomainStatus | None:
        with self._budgets.setdefault(vm, TimeBudget()).spending():
            return read_status(f"{self._run_dir}/{vm}.xml")

    async def _carry_out(
        self, domain: _ReportedLinks, status: DomainStatus, nic: Nic, action: SyncAction
    ) -> None:
        alias, ref = nic.ref.alias, nic.ref
        if action.requested is not None:
            log.info("%s: link %s, as libvirt was told", ref, action.requested)
            try:
                await self._apply_link(ref, action.requested)
            except LinkmgrError:
                # It is still to be applied: the next sync is to take it for a change.
                domain.links[alias] = _other(action.requested)
                raise
        if action.resync:
            await self._manager.resync_link(ref)
        if action.report is not None and self._set_link is not None:
            # If this fails it is not known what libvirt has: then nobody asked for what it says.
            del domain.links[alias]
            up = action.report is LinkState.UP
            await self._set_link(status.uuid, status.nics[alias].mac, up)
            domain.links[alias] = action.report

    def _domain(self, status: DomainStatus) -> _ReportedLinks:
        began = started_at(status.pid) if status.pid else None
        process_key = f"{status.uuid} {status.pid} {began}"
        known = self._domains.get(status.name)
        if known is None or known.process_key != process_key:
            known = self._domains[status.name] = _ReportedLinks(process_key)
        return known

    async def _work(self, vm: str, request: asyncio.Event) -> None:
        while request.is_set():
            if vm in self._budgets:
                await asyncio.sleep(self._budgets[vm].wait)
            request.clear()
            try:
                await self.sync(vm)
                self._last_errors.pop(vm, None)
            except (LinkmgrError, BadDomainStatus) as error:
                if self._last_errors.get(vm) != str(error):
                    self._last_errors[vm] = str(error)
                    log.warning("VM %s: link state and libvirt do not agree yet: %s", vm, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(request.wait(), RETRY_INTERVAL_S)
                if vm in {each.name for each in self._manager.snapshot()[0]}:
                    request.set()
            except Exception:
                log.exception("VM %s: link state cannot be compared with libvirt", vm)

    async def _watch_status_files(self) -> None:
        while True:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                await self._watch_directory()
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _watch_directory(self) -> None:
        with Inotify() as inotify:
            inotify.add_watch(self._run_dir, _WRITTEN | Mask.DELETE_SELF | Mask.MOVE_SELF)
            self.schedule_all()
            async for event in inotify:
                if event.mask & _GONE:
                    return
                if event.mask & Mask.Q_OVERFLOW:
                    self.schedule_all()
                elif event.name is not None and event.name.suffix == ".xml":
                    vm = event.name.stem
                    if self._manager.process_of(vm) is not None:  # a guest's user may make any file
                        self.schedule(vm)

    async def _follow_events(self) -> None:
        events = self._manager.events()
        try:
            async for event in events:
                if event.kind in _LINK_EVENTS:
                    self.schedule(event.subject.partition("/")[0])
                elif event.kind is EventKind.OVERFLOW:
                    self.schedule_all()
        finally:
            events.close()

    # --- what is kept over a restart ----------------------------------------------------------
    async def load(self) -> None:
        """Read what an earlier run kept; `run` does it."""
        found = await self._manager.documents.read(DOCUMENT_NAME, _read)
        if found is not None:
            self._domains = found

    def _content(self) -> dict[str, object]:
        known = self._domains.items()
        said = {vm: {"life": each.process_key, "said": {**each.links}} for vm, each in known}
        return {"domains": said} if said else {}


def _read(reader: JsonReader) -> dict[str, _ReportedLinks]:
    return reader.children("domains", _read_domain)


def _read_domain(reader: JsonReader) -> _ReportedLinks:
    said = reader.mapping("said")
    return _ReportedLinks(
        reader.text("life"), {alias: LinkState(str(each)) for alias, each in said.items()}
    )


def _other(link: LinkState) -> LinkState:
    return LinkState.DOWN if link is LinkState.UP else LinkState.UP
