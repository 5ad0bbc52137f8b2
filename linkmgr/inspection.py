"""One look at the NICs of a VM, for `check`: it takes no lock, and no guest can hold it up.

A verb or a repair may have a NIC for half a minute. What is known of it is shown meanwhile; what
would have to be compared is not, for in the middle of a swap it proves nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from linkmgr.checks import check_nic, noted
from linkmgr.drift import RepairState
from linkmgr.errors import LinkmgrError
from linkmgr.host import Host, Link
from linkmgr.model import Finding
from linkmgr.swap import Slot
from linkmgr.vm import Vm
from linkmgr.wirings.attributes import names_of, read_devices

log = logging.getLogger(__name__)

#: Seconds that one guest may hold up a look at all: `linkmgr status` waits for 3.
PATIENCE = 2.0
#: Guests that are looked at at once, so that a verb's commands wait behind few others.
AT_ONCE = 16


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
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def look(self, vm: Vm) -> list[Finding]:
        """What is wrong with a VM's NICs. Whatever fails is a finding of that VM alone."""
        async with self._turn:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._ping(vm)
                    found = await self._compared(vm)
            except TimeoutError:
                what = f"its QEMU has not answered for {PATIENCE:g} s"
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
        plugged = [slot.plugged for slot in vm.slots.values() if slot.plugged]
        links = await read_devices(self._host, [each.cable for each in plugged])
        found = []
        for slot in list(vm.slots.values()):
            found += await self._of(vm, slot, links)
        return found

    @staticmethod
    async def _of(vm: Vm, slot: Slot, links: Mapping[str, Link]) -> list[Finding]:
        plugged = slot.plugged
        names = names_of(plugged.cable) if plugged else []
        if not slot.lock.locked():
            found = await check_nic(vm.nic(slot), slot, links)
            now = names_of(slot.plugged.cable) if slot.plugged else []
            if not slot.lock.locked() and slot.plugged is plugged and now == names:
                return found
        return noted(vm.nic(slot), slot) if slot.ref.alias in vm.facts else []

    @staticmethod
    def _known(vm: Vm) -> list[Finding]:
        return [each for slot in vm.slots.values() for each in noted(vm.nic(slot), slot)]

    def _with_repairs(self, vm: Vm, found: list[Finding]) -> list[Finding]:
        """Say of what is being repaired how far that is, instead of that it is wrong."""
        repairs = {
            str(slot.ref): self._repairs[str(slot.ref)]
            for slot in vm.slots.values()
            if slot.plugged and str(slot.ref) in self._repairs
        }
        others = [
            each
            for each in found
            if each.subject not in repairs or each.code != repairs[each.subject].code
        ]
        return others + [repair.finding(subject) for subject, repair in repairs.items()]


def _of_error(vm: Vm, error: LinkmgrError) -> Finding:
    return Finding(error.code, error.nic or vm.name, error.what, error.hint or "see the log")
