"""One VM: its QEMU, its NICs, and whether it answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from uuid import UUID

from linkmgr.errors import (
    CannotAttach,
    CommandFailed,
    MonitorError,
    MonitorReplaced,
    MonitorTooOld,
    StateError,
    UnknownNic,
    UnusableNicId,
)
from linkmgr.host import Host
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp import MonitorEvent
from linkmgr.hypervisors.qemu.qmp.connector import Connector
from linkmgr.hypervisors.qemu.qmp.info_network import MAX_NICS
from linkmgr.model import DEFAULT_MTU, LinkState, Nic, NicRef, NicState, VmInfo, VmState
from linkmgr.state.journal import NicFacts, NicRecord, VmJournal
from linkmgr.swap.carrier import Carrier, CarrierClock
from linkmgr.swap.steps import ManagedNic
from linkmgr.text.suggest import hint_for_unknown
from linkmgr.wirings import HubWiring
from linkmgr.wirings.hub.alias import alias_of, unusable_id_error

#: Events of QEMU that say whether the processors run.
RUN_STATE_EVENTS: Mapping[str, bool] = MappingProxyType({"RESUME": True, "STOP": False})


class Vm:
    """A VM with its NICs. Made by `Vm.connect`."""

    def __init__(self, name: str, qemu: QemuProcess, host: Host, journal: VmJournal) -> None:
        self.name = name
        self.qemu = qemu
        self.journal = journal
        self.wiring = HubWiring(qemu, host)
        self.facts: dict[str, NicFacts] = {}
        self.nics: dict[str, ManagedNic] = {}
        self.since = datetime.now(UTC)
        self.unresponsive = False
        self.last_scan = float("-inf")  #: when its NICs were last scanned, in monotonic seconds
        self.scan_task: asyncio.Task[None] | None = None  #: scans for new NICs
        self.running: bool | None = None  #: what QEMU last said of its processors
        self.cleanup_task: asyncio.Task[None] | None = None  #: frees what an ended QEMU held
        self.retry_task: asyncio.Task[None] | None = None
        self.ping_task: asyncio.Task[None] | None = None  #: asks it for a sign of life
        self.uuid: str | None = None  #: what QEMU says that it has
        self._carrier_clock = CarrierClock()

    @classmethod
    async def connect(
        cls,
        name: str,
        connector: Connector,
        host: Host,
        *,
        timeout: float,
        handler: Callable[[Vm, MonitorEvent], None],
        journal: VmJournal,
        check: Callable[[QemuProcess], None] = lambda _: None,
    ) -> Vm:
        """Connect to QEMU, find its NICs and take the unplugged ones down.

        A NIC on a hub boots with its carrier up, whether there is a cable or not; QEMU has no
        argument against that.

        :param journal: what is known of it. A NIC with a cable or an intent there is left as it is.
        :param check: raises if this QEMU is not to be had; before anything is done to its NICs.
        :raise MonitorError: when QEMU is not there or does not answer.
        :raise StateError: when the NICs cannot be written down.
        """
        made: list[Vm] = []
        early: list[MonitorEvent] = []

        def hand_on(event: MonitorEvent) -> None:
            if made:
                handler(made[0], event)
            elif event.name in RUN_STATE_EVENTS:
                early.append(event)

        qemu = await QemuProcess.connect(
            connector, name=f"VM {name}", timeout=timeout, handler=hand_on
        )
        try:
            vm = cls(name, qemu, host, journal)
            check(qemu)
            _require(qemu)
            await vm._identify()
            await vm.find_nics()
            while True:
                early.clear()
                await vm.query_run_state()
                if not early:  # else: was it before the answer, or after?
                    break
            made.append(vm)
        except BaseException:
            await qemu.close()
            raise
        return vm

    def find_nic(self, alias: str) -> ManagedNic:
        """The NIC of that alias.

        :raise UnknownNic: when there is none.
        """
        if alias not in self.nics:
            raise UnknownNic(
                f"VM {self.name} has no NIC {alias}",
                hint=hint_for_unknown(alias, self.nics, "name one of its NICs"),
            )
        return self.nics[alias]

    def snapshots(self) -> list[Nic]:
        """Its NICs as a caller sees them, by name."""
        return sorted(
            (self.snapshot(managed) for managed in self.nics.values()), key=lambda nic: nic.ref
        )

    def snapshot(self, nic: ManagedNic) -> Nic:
        """The NIC as a caller sees it."""
        facts = self.facts[nic.ref.alias]
        state, since = self._state(nic, facts)
        link = {True: LinkState.UP, False: LinkState.DOWN, None: None}[nic.carrier.up]
        return Nic(
            ref=nic.ref,
            model=facts.model,
            mac=facts.mac,
            mtu=facts.mtu,
            state=state,
            link=None if state is NicState.UNKNOWN else link,
            wanted_link=nic.wanted_link,
            wiring=self.wiring.name if facts.managed else None,
            since=since,
            connection=nic.connection.as_connection() if nic.connection else None,
        )

    def info(self) -> VmInfo:
        """The VM as a caller sees it."""
        state = VmState.UNKNOWN if self.unresponsive else VmState.ANSWERS
        state = state if self.qemu.alive else VmState.GONE
        return VmInfo(
            name=self.name,
            qmp=self.address,
            state=state,
            since=self.since,
            nics=tuple(sorted(nic.ref for nic in self.nics.values())),
            transport=self.qemu.transport,
            running=self.running if state is VmState.ANSWERS else None,
        )

    @property
    def address(self) -> str:
        """Of its monitor."""
        return self.qemu.address

    async def query_run_state(self) -> bool:
        """Ask QEMU whether the processors run; true if that is news.

        :raise MonitorError: when it does not answer.
        """
        said = await self.qemu.execute("query-status")
        running = bool(said.get("running")) if isinstance(said, dict) else None
        return self.set_running(running)

    def set_running(self, running: bool | None) -> bool:
        """Note whether the processors run; true if that is news."""
        before, self.running = self.running, running
        return before is not running

    async def check_managed(self, nic: ManagedNic) -> None:
        """Refuse a NIC whose cable cannot change. Looks again: a sink may have been added since.

        :raise CannotAttach: the hint says how to boot it.
        """
        facts = self.facts[nic.ref.alias]
        if not facts.managed:
            nic.foreign = bool(await self.wiring.inspect(nic.ref))
            self.facts[nic.ref.alias] = replace(facts, managed=True)

    def set_unresponsive(self, unknown: bool) -> bool:
        """Note whether QEMU answers; true if that is news."""
        if self.unresponsive is unknown:
            return False
        self.unresponsive = unknown
        self.since = datetime.now(UTC)
        return True

    def _state(self, nic: ManagedNic, facts: NicFacts) -> tuple[NicState, datetime]:
        if not self.qemu.alive:
            return NicState.GONE, self.since
        if self.unresponsive:
            return NicState.UNKNOWN, self.since
        if nic.connection:
            return NicState.PLUGGED, nic.connection.since
        if not facts.managed:
            return NicState.UNMANAGED, nic.since
        if nic.foreign:
            return NicState.FOREIGN, nic.since
        return NicState.UNPLUGGED, nic.since

    async def _identify(self) -> None:
        """Learn QEMU's uuid, which tells two apart whose processes cannot be seen.

        :raise MonitorReplaced: it is another one than the journal knows.
        """
        known, pid = self.journal.record, self.qemu.pid
        if known.uuid is not None and pid is not None and known.is_of(pid):
            self.uuid = known.uuid
            return
        try:
            said = await self.qemu.execute("query-uuid")
        except CommandFailed:
            return
        try:
            self.uuid = str(UUID(said["UUID"]))
        except (TypeError, KeyError, ValueError, AttributeError):  # it may say anything
            return
        if known.uuid not in (None, self.uuid) and pid is None:
            raise MonitorReplaced(
                f"the QEMU at {self.address} has the uuid {self.uuid}, not {known.uuid} as this VM",
                hint="if the guest was started anew, remove the VM and add it again",
            )

    async def find_nics(self) -> None:
        """Find the NICs that QEMU has and that are not known yet; take the unplugged ones down.

        :raise StateError: when they cannot be written down.
        """
        nics = (await self.qemu.query_network()).nics
        found = {
            alias: client
            for ident, client in nics.items()
            if (alias := alias_of(ident)) not in self.nics
        }
        if len(found) + len(self.nics) > MAX_NICS:  # it may always have others
            raise MonitorError(
                f"VM {self.name} has had more than {MAX_NICS} NICs",
                hint="look whether this is QEMU; its new NICs are left alone",
            )
        managed = set()
        managed_nics: dict[str, ManagedNic] = {}
        facts: dict[str, NicFacts] = {}
        for alias, client in found.items():  # the carrier first: the guest may be running already
            ref = NicRef(self.name, alias)
            nic = ManagedNic(
                ref, self.wiring, Carrier(self.wiring, ref, self._carrier_clock), self.journal
            )
            known = self.journal.record.nics.get(alias)
            if known is not None:
                nic.wanted_link, nic.wanted_ifname = known.wanted, known.name
            try:
                if client.id != alias:
                    raise unusable_id_error(client.id)
                cables = await self.wiring.inspect(ref)
                nic.foreign = bool(cables)
                if not cables and (known is None or not (known.cable or known.intent)):
                    await nic.carrier.set(up=False)
                managed.add(alias)
            except (CannotAttach, CommandFailed) as error:
                # It is listed all the same; plugging it says why not.
                nic.id_error = error if isinstance(error, UnusableNicId) else None
            managed_nics[alias] = nic
        same = self.journal.record.is_of(self.qemu.pid)
        for alias, client in found.items():
            if same and (known := self.journal.record.nics.get(alias)):
                facts[alias] = replace(known.facts, managed=alias in managed)
                continue
            mac, mtu = client.mac or "", DEFAULT_MTU
            if alias in managed:
                with contextlib.suppress(CannotAttach, CommandFailed):
                    offer = await self.wiring.offer(NicRef(self.name, alias))
                    mac, mtu = offer.mac, offer.mtu
            facts[alias] = NicFacts(client.model or "?", mac, mtu, alias in managed)
        self.facts.update(facts)  # all that is known of them at once: others look meanwhile
        self.nics.update(managed_nics)
        try:
            await self.save_nics()
        except StateError:  # what is not written down may not be plugged: a restart would miss it
            for alias in managed_nics:
                del self.nics[alias]
            raise

    async def scan_nics(self) -> None:
        """Find the NICs that were hot-plugged since, of which QEMU tells nobody.

        :raise LinkmgrError: as `find_nics`, and when QEMU does not answer.
        """
        nics = (await self.qemu.query_network()).nics
        if {alias_of(ident) for ident in nics} - self.nics.keys():
            await self.find_nics()

    async def removed_nics(self) -> list[ManagedNic]:
        """Its NICs that QEMU has not got any more.

        A NIC that is found while QEMU is asked may be newer than the answer, so it is not judged.

        :raise MonitorError: when QEMU does not answer.
        """
        known = list(self.nics.items())
        there = {alias_of(ident) for ident in (await self.qemu.query_network()).nics}
        return [nic for alias, nic in known if alias not in there]

    async def save_nics(self) -> None:
        """Write down which NICs there are, and of each what was known before.

        :raise StateError: when that could not be written.
        """
        before = self.journal.record.nics
        await self.journal.set_vm(
            {
                alias: replace(before.get(alias, NicRecord(facts)), facts=facts)
                for alias, facts in self.facts.items()
                if alias in self.nics
            },
            self.qemu.pid,
            owner=self.qemu.owner,
            uuid=self.uuid,
        )

    async def close(self) -> None:
        """Let go of QEMU. The guest stays on its cables, whose fds QEMU holds itself."""
        if self.retry_task is not None:
            self.retry_task.cancel()
            await asyncio.gather(self.retry_task, return_exceptions=True)
        await self.qemu.close()
        if self.ping_task is not None:  # not cancelled: somebody else's look waits for it
            await asyncio.gather(self.ping_task, return_exceptions=True)
        self.wiring.close()


def _require(qemu: QemuProcess) -> None:
    """Check that this QEMU build has what a swap needs.

    :raise MonitorTooOld: and names what is missing.
    """
    if missing := qemu.features.missing:
        raise MonitorTooOld(
            f"{qemu.name} runs on QEMU {qemu.features.build}, which lacks {', '.join(missing)}",
            hint="use QEMU 4.2 or newer, built with tap and hub",
        )
