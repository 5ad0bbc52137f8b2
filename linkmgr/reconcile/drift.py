"""Finds cables that are not what they should be any more, and plugs them again if so wanted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from linkmgr.errors import LinkmgrError
from linkmgr.events import EventBus, EventKind
from linkmgr.host import Host, NetDevice
from linkmgr.host.netlink.monitor import NetDeviceChanges
from linkmgr.model import BridgeEndpoint, Drift, Finding
from linkmgr.reconcile.checks import device_faults
from linkmgr.swap.steps import ManagedNic
from linkmgr.wirings.endpoints.attributes import Repair, find_faults, read_devices

log = logging.getLogger(__name__)

BUSY_NIC_INTERVAL_S = 0.5  #: seconds until a NIC that a verb had is looked at again
#: Seconds from one failed repair to the next try: the first pause, and the longest.
REPAIR_BACKOFF_S = (0.5, 8.0)


def may_repair(nic: ManagedNic, devices: Mapping[str, NetDevice]) -> bool:
    """Whether something of a NIC's cable can be repaired, and its network wants that.

    :param devices: the devices of this host as they are now, by name.
    """
    if nic.connection is None or nic.connection.attachment.port.network.drift is not Drift.REPAIR:
        return False
    faults = find_faults(nic.connection.cable, devices)
    return any(fault.attribute.repair is not Repair.NONE for fault in faults)


async def reported(nic: ManagedNic, host: Host, *, watched: bool) -> tuple[str, ...]:
    """What is wrong with a cable and not repaired, or not yet, as `Outcome.notes`.

    Asks the kernel about two devices at most.

    :param watched: whether a `DriftWatch` runs.
    """
    if nic.connection is None:
        return ()
    try:
        devices = await read_devices(host, [nic.connection.cable])
    except LinkmgrError as error:
        return (f"its device cannot be looked at: {error}",)
    network = nic.connection.attachment.port.network
    faults = device_faults(nic, devices)
    if network.drift is Drift.REPORT:
        then = f"network {network} says to report that only"
    elif not watched:
        then = "nobody watches cables to repair that"
    elif may_repair(nic, devices):
        then = "that is not repaired yet"
    else:
        then = "linkmgr does not repair that by itself"
    return tuple(f"{what}, and {then}. To do: {hint}" for _, what, hint in faults)


@dataclass(frozen=True)
class RepairState:
    """A cable that is being repaired, or is still to be.

    :param faults: what was found, in words.
    :param since: when it was tried first.
    :param tries: that have failed.
    :param error: what the last of them failed with.
    """

    code: str
    faults: str
    since: datetime
    tries: int = 0
    error: LinkmgrError | None = None

    def finding(self, subject: str) -> Finding:
        """What `check` says of it."""
        since = self.since.astimezone().strftime("%H:%M:%S")
        if self.error is None:
            what = f"{self.faults}; it is being repaired since {since}"
            return Finding(self.code, subject, what, "wait until that has ended, and check again")
        what = (
            f"{self.faults}; repairs fail since {since}, {self.tries} until now: {self.error.what}"
        )
        return Finding(self.code, subject, what, self.error.hint or "see the service's log")


class DriftWatch:
    """Looks at every cable's device after each change of the host's devices.

    What cannot be repaired now, because its bridge is gone, say, is tried again after a while and
    after a change: so also when the bridge comes back.

    :param nics: gives the NICs as they are when it is called.
    :param repair: sets again what was changed, or plugs a NIC into its own port again, under its
        lock, if `may_repair` still holds then; whether it did. Raises if that fails.
    """

    def __init__(
        self,
        host: Host,
        bus: EventBus,
        nics: Callable[[], Iterable[ManagedNic]],
        repair: Callable[[ManagedNic], Awaitable[bool]],
    ) -> None:
        self._host = host
        self._bus = bus
        self._nics = nics
        self._repair = repair
        self._told: dict[str, list[str]] = {}  # NIC -> codes of what was wrong at the last look
        self._pauses: dict[str, tuple[float, float]] = {}  # NIC -> not before, and how long it was
        self._mending: dict[str, asyncio.Task[float]] = {}  # NIC -> its repair under way
        self.repairs: dict[str, RepairState] = {}  #: by NIC: what is being repaired, or fails to be

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                try:
                    async with NetDeviceChanges() as changes:
                        await self._watch(changes)
                except OSError:  # no fd was left for the socket, say
                    log.exception("changes of the host's devices cannot be heard; trying again")
                await asyncio.sleep(REPAIR_BACKOFF_S[1])
        finally:
            for task in self._mending.values():
                task.cancel()
            await asyncio.gather(*self._mending.values(), return_exceptions=True)

    async def _watch(self, changes: NetDeviceChanges) -> None:
        pause: float | None = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changes.wait(), pause)
            try:
                pause = await self.look()
            except Exception:
                log.exception("looking for drift failed")
                pause = REPAIR_BACKOFF_S[1]

    async def look(self) -> float | None:
        """Look once at every cable.

        :return: seconds until it has to be looked at again whether something changes or not.
        """
        before = [(nic, nic.connection, _device(nic)) for nic in self._nics()]
        for ref in self.repairs.keys() - {str(nic.ref) for nic, _, _ in before}:
            del self.repairs[ref]
        cables = [connection.cable for _, connection, _ in before if connection]
        devices = await read_devices(self._host, cables)
        await self._keep_addresses(nic for nic, _, _ in before)
        later: list[float] = []
        broken: list[ManagedNic] = []
        for nic, connection, device in before:
            ref = str(nic.ref)
            if nic.connection is None:
                self._told.pop(ref, None)
                self.repairs.pop(ref, None)
                continue
            if nic.lock.locked() or nic.connection is not connection or _device(nic) != device:
                later.append(BUSY_NIC_INTERVAL_S)
                continue
            faults = device_faults(nic, devices)
            codes = [code for code, _, _ in faults]
            if not codes:
                self._told.pop(ref, None)
                self._pauses.pop(ref, None)
                self.repairs.pop(ref, None)
                continue
            if codes != self._told.get(ref):
                self._told[ref] = codes
                what = "; ".join(what for _, what, _ in faults)
                log.warning("%s: %s", ref, what)
                self._bus.publish(EventKind.DRIFT, ref, codes=codes, what=what)
            if may_repair(nic, devices):
                told = "; ".join(what for _, what, _ in faults)
                now = RepairState(codes[0], told, datetime.now(UTC))
                known = self.repairs.get(ref, now)
                self.repairs[ref] = replace(known, code=now.code, faults=now.faults)
                broken.append(nic)
        for nic in broken:
            if str(nic.ref) not in self._mending:
                self._mending[str(nic.ref)] = asyncio.create_task(self._mend(nic))
        # Each is a task of its own, for which no other waits: one QEMU that does not answer keeps
        # neither those that are broken nor those that break meanwhile.
        if self._mending:
            await asyncio.wait(self._mending.values(), timeout=BUSY_NIC_INTERVAL_S)
        for ref, task in list(self._mending.items()):
            later.append(task.result() if task.done() else BUSY_NIC_INTERVAL_S)
            if task.done():
                del self._mending[ref]
        return min(later) if later else None

    async def _keep_addresses(self, nics: Iterable[ManagedNic]) -> None:
        """Set the address of bridges that have lost the last port but those of cables."""
        bridges = {
            endpoint.bridge
            for nic in nics
            if nic.connection and nic.connection.attachment.port.network.drift is Drift.REPAIR
            if isinstance(endpoint := nic.connection.cable.endpoint, BridgeEndpoint)
        }
        for bridge in bridges:
            try:
                await self._host.pin_bridge_mac(bridge)
            except LinkmgrError as error:
                log.warning("bridge %s: its address is not kept: %s", bridge, error)

    async def _mend(self, nic: ManagedNic) -> float:
        """Repair a cable, unless that was tried a short while ago.

        :return: seconds until it is worth another look.
        """
        ref, now = str(nic.ref), asyncio.get_running_loop().time()
        not_before, pause = self._pauses.get(ref, (now, REPAIR_BACKOFF_S[0] / 2))
        if now < not_before:
            return not_before - now
        pause = min(2 * pause, REPAIR_BACKOFF_S[1])
        self._pauses[ref] = (now + pause, pause)  # until a look finds nothing wrong
        try:
            if not await self._repair(nic):
                return BUSY_NIC_INTERVAL_S
        except LinkmgrError as error:
            log.warning("%s: not repaired yet: %s", ref, error)
            self._has_failed(ref, error)
            return pause
        except Exception as error:  # a driver may raise anything
            log.exception("%s: not repaired yet", ref)
            what = f"the service failed: {type(error).__name__}"
            self._has_failed(ref, LinkmgrError(what, hint="see the service's log"))
            return pause
        self._told.pop(ref, None)
        self.repairs.pop(ref, None)
        log.warning("%s: repaired", ref)
        self._bus.publish(EventKind.REPAIRED, ref)
        return BUSY_NIC_INTERVAL_S

    def _has_failed(self, ref: str, error: LinkmgrError) -> None:
        if (known := self.repairs.get(ref)) is not None:
            self.repairs[ref] = replace(known, tries=known.tries + 1, error=error)


def _device(nic: ManagedNic) -> str | None:
    """What its device is called now: a verb may rename it."""
    return nic.connection.cable.device if nic.connection else None
