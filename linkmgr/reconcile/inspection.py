"""One look at the NICs of a VM, for `check`: it holds no lock, and no guest can hold it up.

A verb or a repair may have a NIC for half a minute. What is known of it is shown meanwhile; what
would have to be compared is not, for in the middle of a swap it proves nothing. Most have it for a
moment only, and hide nothing: a look waits for that moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from linkmgr.errors import LinkmgrError
from linkmgr.host import Host, NetDevice
from linkmgr.inventory.machine import Vm
from linkmgr.model import Finding
from linkmgr.reconcile.checks import check_nic, noted
from linkmgr.reconcile.drift import RepairState
from linkmgr.swap.steps import ManagedNic
from linkmgr.wirings.endpoints.attributes import device_names, read_devices

log = logging.getLogger(__name__)

#: Seconds that one guest may hold up a look at all: `linkmgr status` waits for 3.
GUEST_TIMEOUT_S = 2.0
#: Seconds that a look waits in all for verbs that have NICs: most take a tenth of that, and who
#: asks has an answer within one second all the same.
BUSY_NICS_TIMEOUT_S = 0.5
#: Guests that are looked at at once, so that a verb's commands wait behind few others.
GUESTS_AT_ONCE = 16


class Inspection:
    """One look.

    :param ping: asks a VM's QEMU for a sign of life.
    :param repairs: by NIC: what is being repaired, or fails to be.
    """

    def __init__(
        self,
        host: Host,
        ping: Callable[[Vm], Awaitable[None]],
        repairs: Mapping[str, RepairState],
    ) -> None:
        self._host = host
        self._ping = ping
        self._repairs = repairs
        self._turn = asyncio.Semaphore(GUESTS_AT_ONCE)
        self._ends = asyncio.get_running_loop().time() + BUSY_NICS_TIMEOUT_S

    async def look(self, vm: Vm) -> list[Finding]:
        """What is wrong with a VM's NICs. Whatever fails is a finding of that VM alone."""
        async with self._turn:
            try:
                async with asyncio.timeout(GUEST_TIMEOUT_S):
                    await self._ping(vm)
                    found = await self._compared(vm)
            except TimeoutError:
                what = f"its QEMU has not answered for {GUEST_TIMEOUT_S:g} s"
                found = [Finding("unknown", vm.name, what, "see whether the guest is stopped")]
                found += self._known(vm)
            except LinkmgrError as error:
                found = [_of_error(vm, error), *self._known(vm)]
            except Exception as error:
                log.exception("VM %s cannot be looked at", vm.name)
                what = f"it cannot be looked at: {type(error).__name__}"
                found = [Finding("error", vm.name, what, "see the service's log"), *self._known(vm)]
        return self._with_repairs(vm, found)

    async def _compared(self, vm: Vm) -> list[Finding]:
        nics = list(vm.nics.values())
        turns = {id(nic): nic.lock.turns for nic in nics}
        cables = [nic.connection.cable for nic in nics if nic.connection]
        devices = await read_devices(self._host, cables)
        return [each for nic in nics for each in await self._of(vm, nic, devices, turns[id(nic)])]

    async def _of(
        self, vm: Vm, nic: ManagedNic, devices: Mapping[str, NetDevice], turns: int
    ) -> list[Finding]:
        """Compare a NIC, again if a verb had it meanwhile; as it is noted if one keeps it.

        :param turns: of its lock, before the devices were read.
        """
        while (found := await _compared_alone(vm, nic, devices, turns)) is None:
            if not await self._is_free(nic):
                return noted(vm.snapshot(nic), nic) if nic.ref.alias in vm.facts else []
            turns = nic.lock.turns
            devices = await read_devices(
                self._host, [nic.connection.cable] if nic.connection else []
            )
        return found

    async def _is_free(self, nic: ManagedNic) -> bool:
        """Wait for a NIC's turn, and leave it to the next; whether this look has time for that."""
        try:
            async with asyncio.timeout_at(self._ends):
                await nic.lock.acquire()
        except TimeoutError:
            return False
        nic.lock.release()
        return asyncio.get_running_loop().time() < self._ends

    @staticmethod
    def _known(vm: Vm) -> list[Finding]:
        return [each for nic in vm.nics.values() for each in noted(vm.snapshot(nic), nic)]

    def _with_repairs(self, vm: Vm, found: list[Finding]) -> list[Finding]:
        """Say of what is being repaired how far that is, instead of that it is wrong."""
        repairs = {
            str(nic.ref): self._repairs[str(nic.ref)]
            for nic in vm.nics.values()
            if nic.connection and str(nic.ref) in self._repairs
        }
        others = [
            each
            for each in found
            if each.subject not in repairs or each.code != repairs[each.subject].code
        ]
        return others + [repair.finding(subject) for subject, repair in repairs.items()]


async def _compared_alone(
    vm: Vm, nic: ManagedNic, devices: Mapping[str, NetDevice], turns: int
) -> list[Finding] | None:
    """What is wrong with a NIC; ``None`` when it cannot be known, for a verb has it or had it."""
    if nic.lock.locked() or nic.lock.turns != turns:
        return None
    if nic.ref.alias not in vm.facts:
        return []
    names = device_names(nic.connection.cable) if nic.connection else []
    found = await check_nic(vm.snapshot(nic), nic, devices)
    now = device_names(nic.connection.cable) if nic.connection else []
    return None if nic.lock.locked() or nic.lock.turns != turns or now != names else found


def _of_error(vm: Vm, error: LinkmgrError) -> Finding:
    return Finding(error.code, error.nic or vm.name, error.what, error.hint or "see the log")
