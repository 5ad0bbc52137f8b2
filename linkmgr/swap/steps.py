"""The ordered steps of plug, replug and unplug, each with its undo.

Until the switch every step only adds something beside the old cable, so that its undo can take it
away unseen. In the switch the undo puts the old cable back. After it there is no way back and no
need for one: what fails then is done later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from linkmgr.drivers import Attachment, NetworkDriver
from linkmgr.drivers.fd import FD_NETWORK
from linkmgr.errors import (
    HostError,
    HubCrowded,
    MonitorGone,
    MonitorTimeout,
    StateError,
    UnusableNicId,
)
from linkmgr.model import Connection, Endpoint, LinkState, NicRef, NotifyMode, Offer, Port
from linkmgr.state.journal import CableRecord, Intent, VmJournal
from linkmgr.swap.carrier import Carrier
from linkmgr.wirings import Cable, Wiring

log = logging.getLogger(__name__)


class Step(StrEnum):
    """The steps, in their order. A replug has all, a plug no old side, an unplug no new one."""

    OFFER = "offer"  #: ask the wiring what the NIC can take
    INIT = "init"  #: claim the port
    INTEND = "intend"  #: write down what is to be done
    REALISE = "realise"  #: make the endpoint exist
    STAGE = "stage"  #: make the new cable, plugged into nothing yet
    LINK_DOWN = "link-down"  #: unplug only: the guest sees its carrier go first
    SWITCH = "switch"  #: old cable out, new cable in
    ACTIVATE = "activate"  #: tell the network side
    NOTIFY = "notify"  #: tell the guest and the network
    RECORD = "record"  #: write down what was done
    RELEASE = "release"  #: take the old cable down
    TERMINATE = "terminate"  #: free the old attachment
    NAME = "name"  #: give the new device the name that was asked for, now that it is free
    RECOVER = "recover"  #: after a restart: finish or undo what was in flight
    SWEEP = "sweep"  #: after a restart: remove what belongs to no cable
    REMEMBER = "remember"  #: after a restart: write down what is


DeferredStep = Callable[[], Awaitable[None]]
#: Called before each step: a fault point for tests, and where progress is shown.
Probe = Callable[[Step], Awaitable[None]]


async def no_probe(_step: Step) -> None:
    """The probe that does nothing."""


@dataclass
class LiveConnection:
    """A connection with its network side and its NIC side."""

    driver: NetworkDriver
    attachment: Attachment
    cable: Cable
    free_port: DeferredStep
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    def as_record(self) -> CableRecord:
        """What the journal keeps of it."""
        assert self.cable.endpoint is not None
        return CableRecord(
            attachment=self.attachment.id,
            id=self.cable.id,
            port=self.attachment.port,
            endpoint=self.cable.endpoint,
            device=self.cable.device or "",
            mac=self.cable.mac,
            since=self.since,
        )

    def as_connection(self) -> Connection:
        """What a caller sees of it."""
        assert self.cable.endpoint is not None
        return Connection(
            nic=self.cable.nic,
            port=self.attachment.port,
            endpoint=self.cable.endpoint,
            attachment=self.attachment.id,
            device=self.cable.device or "",
            since=self.since,
        )

    async def terminate(self) -> None:
        """Free the network side and the port."""
        try:
            await self.driver.terminate_attachment(self.attachment)
        finally:
            await self.free_port()


class NicLock(asyncio.Lock):
    """The lock of a NIC.

    :param turns: how often it was taken: what is seen without it holds if that did not change.
    """

    turns: int = 0

    async def acquire(self) -> Literal[True]:
        """Take it, and count that."""
        await super().acquire()
        self.turns += 1
        return True


@dataclass
class ManagedNic:
    """A NIC with all that is needed to plug it. Hold its lock to use it.

    :param deferred: steps that failed when they were due, in order. See `run_deferred`.
    :param filter_refusals: what the guest's receive filter asked for and does not get.
    :param wanted_ifname: the name for the host's device; ``None`` for one of our own.
    :param rename_error: why the device could not have it the last time.
    """

    ref: NicRef
    wiring: Wiring
    carrier: Carrier
    journal: VmJournal
    wanted_link: LinkState = LinkState.UP
    wanted_ifname: str | None = None
    rename_error: HostError | None = None
    connection: LiveConnection | None = None
    foreign: bool = False  #: on a cable that somebody else plugged
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    deferred: list[DeferredStep] = field(default_factory=list)
    filter_refusals: list[str] = field(default_factory=list)
    journal_error: StateError | None = None  #: why the journal lacks what was done
    logged_failure: str | None = None  #: the last failure of a deferred step in the log
    recovery_error: str | None = None  #: why a restart could not bring its cable back
    id_error: UnusableNicId | None = None  #: why it cannot be named to QEMU
    removed: bool = False  #: the NIC or its guest does not exist any more
    lock: NicLock = field(default_factory=NicLock)

    def check_usable(self) -> None:
        """Refuse a NIC that cannot be named to QEMU.

        :raise UnusableNicId: the hint says how to boot it.
        """
        if (why := self.id_error) is not None:
            raise UnusableNicId(why.what, hint=why.hint).about(str(self.ref))

    async def save(self) -> None:
        """Write down what is, with nothing in flight.

        :raise StateError: when that could not be written.
        """
        if not self.removed:
            record = self.connection.as_record() if self.connection else None
            try:
                await self.journal.change(
                    self.ref.alias, wanted=self.wanted_link, cable=record, intent=None
                )
            except StateError as error:
                self.journal_error = error
                raise
        self.journal_error = None

    async def apply_link(self, *, hold_down: bool = True, force: bool = False) -> None:
        """Show the guest the wanted link if the NIC is on a cable, else none: see `Carrier.set`."""
        if self.removed:
            return
        up = (self.connection is not None or self.foreign) and self.wanted_link is LinkState.UP
        await self.carrier.set(up=up, hold_down=hold_down, force=force)


class StepTimer(dict[str, float]):
    """Milliseconds per step, in the order in which the steps were taken."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self._probe = probe

    async def begin(self, step: Step) -> None:
        """Announce a step before it is timed."""
        await self._probe(step)

    @contextmanager
    def of(self, step: Step) -> Iterator[None]:
        """Time a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self[step] = (time.perf_counter() - start) * 1000


async def plug(
    nic: ManagedNic,
    driver: NetworkDriver,
    port: Port,
    free_port: DeferredStep,
    *,
    notify: NotifyMode,
    probe: Probe = no_probe,
) -> StepTimer:
    """Bring the NIC to the port, from wherever it is.

    :raise LinkmgrError: then the NIC is on the cable that it had, or will be as soon as QEMU
        answers again (`ManagedNic.deferred`). Only an error of the notification comes after the
        switch: then it is on the new one.
    """
    timings = StepTimer(probe)
    old = nic.connection
    undo: list[DeferredStep] = [nic.save, free_port]
    try:
        await timings.begin(Step.OFFER)
        with timings.of(Step.OFFER):
            offer = await nic.wiring.offer(nic.ref)
            old_cable = await _current_cable(nic)
        await timings.begin(Step.INIT)
        with timings.of(Step.INIT):
            attachment = await driver.init_attachment(offer, port)
        undo.append(lambda: driver.terminate_attachment(attachment))
        await timings.begin(Step.INTEND)
        with timings.of(Step.INTEND):
            intent = Intent(attachment.id, port, notify, _foreign(old, old_cable))
            await nic.journal.change(nic.ref.alias, intent=intent)
        await timings.begin(Step.REALISE)
        with timings.of(Step.REALISE):
            endpoint = await attachment.realise()
        cable = _new_cable(nic, attachment.id, offer, endpoint)
        undo.append(lambda: nic.wiring.release(cable))
        await timings.begin(Step.STAGE)
        with timings.of(Step.STAGE):
            await nic.wiring.stage(cable, old_cable)
        if old:
            undo.append(old.attachment.activate)
        undo.append(lambda: _switch_back(nic, cable, old_cable, old))
        await timings.begin(Step.SWITCH)
        with timings.of(Step.SWITCH):
            await nic.wiring.switch(nic.ref, cable, old_cable)
        await timings.begin(Step.ACTIVATE)
        with timings.of(Step.ACTIVATE):
            await attachment.activate()
    except BaseException:
        await _do_or_defer(nic, reversed(undo))
        raise
    nic.connection, nic.foreign = LiveConnection(driver, attachment, cable, free_port), False
    nic.recovery_error = None
    changed = leads_elsewhere(old.attachment.port if old else None, port)
    try:
        await timings.begin(Step.NOTIFY)
        with timings.of(Step.NOTIFY):
            await notify_of(nic, cable, notify, changed=changed)
    except BaseException:
        nic.deferred.append(lambda: notify_of(nic, cable, notify, changed=changed))
        raise
    finally:
        await _record_and_release_old(nic, old_cable, old, timings)
    return timings


async def unplug(nic: ManagedNic, *, probe: Probe = no_probe) -> StepTimer:
    """Take the NIC off its cable. The guest sees its carrier go before the cable does.

    :raise LinkmgrError: then the NIC is on the cable that it had, or will be as soon as QEMU
        answers again.
    """
    timings = StepTimer(probe)
    old = nic.connection
    undo: list[DeferredStep] = []
    try:
        await timings.begin(Step.INTEND)
        with timings.of(Step.INTEND):
            old_cable = await _current_cable(nic)
            undo.append(nic.save)
            intent = Intent(foreign=_foreign(old, old_cable))
            try:
                await nic.journal.change(nic.ref.alias, intent=intent)
            except StateError as error:
                # To pull a cable needs no disk. A restart finds the NIC on nothing, and its backend
                # gone; one that comes before that puts the cable back.
                nic.journal_error = error
        await timings.begin(Step.LINK_DOWN)
        undo.append(lambda: nic.apply_link(hold_down=False))
        with timings.of(Step.LINK_DOWN):
            await nic.carrier.set(up=False)
        if old_cable is not None:
            undo.append(lambda: _switch_back(nic, None, old_cable, old))
            await timings.begin(Step.SWITCH)
            with timings.of(Step.SWITCH):
                await nic.wiring.switch(nic.ref, None, old_cable)
    except BaseException:
        await _do_or_defer(nic, reversed(undo))
        raise
    nic.connection, nic.foreign, nic.since, nic.filter_refusals = None, False, datetime.now(UTC), []
    nic.recovery_error = None
    await _record_and_release_old(nic, old_cable, old, timings)
    return timings


async def discard_dead(nic: ManagedNic) -> None:
    """Discard a NIC that was removed: free what it held."""
    old, nic.connection, nic.filter_refusals, nic.removed = nic.connection, None, [], True
    nic.carrier.up = None
    try:
        await run_deferred(nic)
    finally:
        if old:
            await _release_old(nic, old.cable, old, StepTimer(no_probe))


async def run_deferred(nic: ManagedNic) -> None:
    """Run the deferred steps of a NIC in order. One that fails stays for the next time.

    :raise MonitorGone, MonitorTimeout: QEMU still does not answer; the rest stays too.
    """
    # A step stays deferred while it runs: check reports it, and a cancelled one is not lost.
    for step in list(nic.deferred):
        try:
            await step()
        except (MonitorGone, MonitorTimeout):
            raise
        except Exception as error:  # noqa: BLE001 - a driver may raise anything
            # It says what to do; a traceback would bury that. Of the same it is enough once.
            if str(error) != nic.logged_failure:
                nic.logged_failure = str(error)
                log.error("%s: a clean-up stays to be done: %s", nic.ref, error)
        else:
            nic.deferred.remove(step)


async def set_device_name(nic: ManagedNic) -> None:
    """Give the device of the NIC's cable the name that was asked for, if it can have it.

    Two devices cannot share a name, so this comes when the old one is gone. A device that cannot
    have it keeps its own: what depends on names is told less, and no cable suffers.

    :raise StateError: when the name that it has now could not be written down.
    """
    if nic.removed or nic.connection is None:
        return
    try:
        await nic.wiring.name_device(nic.connection.cable, nic.wanted_ifname)
    except HostError as error:
        if nic.rename_error is None or nic.rename_error.code != error.code:
            device = nic.connection.cable.device
            log.warning("%s: its device keeps the name %s: %s", nic.ref, device, error)
        nic.rename_error = error
    else:
        nic.rename_error = None
    await nic.save()


def _new_cable(nic: ManagedNic, ident: str, offer: Offer, endpoint: Endpoint) -> Cable:
    cable = nic.wiring.new_cable(ident, offer, endpoint)
    cable.preferred_ifname = nic.wanted_ifname
    return cable


async def _current_cable(nic: ManagedNic) -> Cable | None:
    """The cable that the NIC is on now, ours or not.

    :raise HubCrowded: when there are several.
    """
    found = await nic.wiring.inspect(nic.ref)
    if nic.connection:
        unexpected = [
            cable.hubport_id
            for cable in found
            if cable.hubport_id != nic.connection.cable.hubport_id
        ]
    else:
        unexpected = [cable.hubport_id for cable in found[1:]]
    if unexpected:
        raise HubCrowded(
            f"cables are plugged into it that do not belong there: {', '.join(unexpected)}",
            hint="take these out with netdev_del",
        )
    if nic.connection or not found:
        return nic.connection.cable if nic.connection else None
    await nic.wiring.recognise(found[0])
    return found[0]


def _foreign(old: LiveConnection | None, cable: Cable | None) -> tuple[str, str] | None:
    """What the journal keeps of a cable that it does not know."""
    return (cable.hubport_id, cable.netdev_id) if old is None and cable is not None else None


async def _switch_back(
    nic: ManagedNic, new: Cable | None, old_cable: Cable | None, old: LiveConnection | None
) -> None:
    """Put the old cable back, unless that was put off and the NIC has another one by now."""
    if not nic.removed and nic.connection is old:
        await nic.wiring.switch_back(nic.ref, new, old_cable)


def leads_elsewhere(old: Port | None, new: Port) -> bool:
    """Whether a port leads to another network than the one before. Two fds always do."""
    return old is None or old.network.name != new.network.name or new.network == FD_NETWORK


async def notify_of(nic: ManagedNic, cable: Cable, notify: NotifyMode, *, changed: bool) -> None:
    """Tell the guest and the network of the cable that the NIC is on now.

    :param changed: whether it leads to another network than the one before.
    """
    if nic.removed or nic.connection is None or nic.connection.cable is not cable:
        return  # put off, and by now about a cable of the past
    nic.filter_refusals = await nic.wiring.follow_rx_filter(cable)
    teach = notify is NotifyMode.AUTO and changed
    if notify is NotifyMode.AUTO:
        notify = NotifyMode.FLAP if changed else NotifyMode.ANNOUNCE
    # A carrier that nobody has set yet may be up.
    if (
        nic.carrier.up is not False
        and nic.wanted_link is LinkState.UP
        and notify is NotifyMode.FLAP
    ):
        await nic.carrier.flap()
    else:
        await nic.apply_link(hold_down=notify is not NotifyMode.SILENT)
    if nic.carrier.up and notify is NotifyMode.ANNOUNCE:
        await nic.wiring.announce(cable, moved=changed)
    elif nic.carrier.up and teach:
        await nic.wiring.teach_address(cable)


async def _record_and_release_old(
    nic: ManagedNic, cable: Cable | None, old: LiveConnection | None, timings: StepTimer
) -> None:
    """Write down the outcome, and only then free the old side: both, also when a probe raises."""
    try:
        await _record(nic, timings)
    finally:
        await _release_old(nic, cable, old, timings)


async def _record(nic: ManagedNic, timings: StepTimer) -> None:
    """Write down the outcome. The intent that is on disk says enough if that fails."""
    try:
        await timings.begin(Step.RECORD)
    finally:
        with timings.of(Step.RECORD):
            await _do_or_defer(nic, [nic.save])


async def _release_old(
    nic: ManagedNic, cable: Cable | None, old: LiveConnection | None, timings: StepTimer
) -> None:
    """Free the old side. It has nothing to do with the guest any more, so it never fails a verb.

    All of it is freed, also when the probe raises, and always in this order. Its name is free then.
    """
    steps: list[tuple[Step, DeferredStep]] = []
    if cable:
        steps.append((Step.RELEASE, lambda: nic.wiring.release(cable)))
    if old:
        steps.append((Step.TERMINATE, old.terminate))
    if nic.connection and nic.wanted_ifname is not None:
        steps.append((Step.NAME, lambda: set_device_name(nic)))

    async def take(step: Step, action: DeferredStep, *later: tuple[Step, DeferredStep]) -> None:
        try:
            await timings.begin(step)
        finally:
            with timings.of(step):
                done = await _do_or_defer(nic, [action])
            if not done:
                nic.deferred += [each for _, each in later]
            elif later:
                await take(*later[0], *later[1:])

    if steps:
        await take(*steps[0], *steps[1:])


async def _do_or_defer(nic: ManagedNic, steps: Iterable[DeferredStep]) -> bool:
    """Do the steps in order; from the first that fails on, defer them to `run_deferred`.

    :return: whether all is done.
    """
    steps = iter(steps)
    for step in steps:
        try:
            await step()
        except Exception as error:  # noqa: BLE001 - a driver may raise anything
            log.warning("%s: a clean-up is put off: %s", nic.ref, error)
            nic.deferred += [step, *steps]
            return False
    return True
