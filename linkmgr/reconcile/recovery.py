"""After a restart: what is, against what was meant.

The journal says what was meant; QEMU and the kernel say what is, and they are right. A swap that
was cut off is finished if its NIC is on the new cable already, else undone; a NIC that was caught
between two cables gets the old one back. A cable that works is not touched.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

from linkmgr.errors import (
    CannotAttach,
    CommandFailed,
    LinkmgrError,
    MonitorGone,
    MonitorTimeout,
    UnknownNic,
)
from linkmgr.host import Host, NetDevice, fd_holders
from linkmgr.host.fds.holders import UNSEEN_HOLDER
from linkmgr.inventory.machine import Vm
from linkmgr.inventory.networks import Networks
from linkmgr.model import EndpointKind, NicRef, Offer, OwnerTag, Port
from linkmgr.state.journal import CableRecord, Intent, NicRecord, VmRecord
from linkmgr.swap import steps
from linkmgr.swap.steps import LiveConnection, ManagedNic, Probe, Step, no_probe
from linkmgr.wirings import Cable

log = logging.getLogger(__name__)

TaggedDevices = list[tuple[OwnerTag, NetDevice]]


def claim_ports(record: VmRecord, networks: Networks) -> None:
    """Reserve the ports of a VM's cables, before anybody else may have them."""
    for alias, nic in record.nics.items():
        for port in _ports(nic):
            with contextlib.suppress(LinkmgrError):  # two cables on one port: the first has it
                networks.claim(port, NicRef(record.vm, alias))


def free_ports(record: VmRecord, networks: Networks) -> None:
    """End the claims of `claim_ports`."""
    for alias, nic in record.nics.items():
        for port in _ports(nic):
            networks.free(port, NicRef(record.vm, alias))


async def recover_vm(
    vm: Vm, host: Host, networks: Networks, tagged: TaggedDevices, probe: Probe = no_probe
) -> None:
    """Bring the NICs of a VM that an earlier run knew back under our hands.

    What cannot be brought back stays as it is, foreign, and `check` says why: nothing that a NIC is
    on is ever removed.

    :param tagged: devices with our tag, from before anything new was made.
    :raise MonitorError: when QEMU does not answer any more; call it again when it does.
    """
    record = vm.journal.record
    begun = set()
    for alias, nic in vm.nics.items():
        known = record.nics.get(alias)
        if known is None or not (known.cable or known.intent):
            continue
        if known.intent and known.intent.attachment:
            begun.add(known.intent.attachment)
        async with nic.lock:
            await probe(Step.RECOVER)
            await _recover_nic(nic, known, networks)
    await probe(Step.SWEEP)
    free_ports(record, networks)
    for nic in vm.nics.values():
        if nic.connection:
            networks.claim(nic.connection.attachment.port, nic.ref)
    await _sweep(vm, host, tagged, begun)
    for nic in vm.nics.values():
        async with nic.lock:
            managed = vm.facts[nic.ref.alias].managed  # else its link is its owner's
            if managed and not (nic.connection or nic.foreign) and nic.carrier.up is None:
                await nic.carrier.set(up=False)
            await probe(Step.REMEMBER)
            if nic.recovery_error:
                continue  # what is on disk may be of use to the next run
            try:
                if nic.wanted_ifname is not None:
                    await steps.set_device_name(nic)
                await nic.save()
            except LinkmgrError as error:
                log.warning("%s: it cannot be written down yet: %s", nic.ref, error)
                nic.deferred.append(nic.save)


async def _recover_nic(nic: ManagedNic, known: NicRecord, networks: Networks) -> None:
    try:
        await _Nic(nic, known, networks).recover()
    except (MonitorGone, MonitorTimeout):
        raise
    except Exception as error:  # a driver may raise anything; the other NICs must not suffer
        log.exception("%s: its cable cannot be brought back", nic.ref)
        nic.recovery_error = f"its cable could not be brought back after a restart: {error}"
        nic.foreign = nic.connection is None


async def _sweep(vm: Vm, host: Host, tagged: TaggedDevices, begun: set[str]) -> None:
    """Remove what belongs to no cable, and never what a NIC is on, whoever knows of it."""
    cables = [nic.connection.cable for nic in vm.nics.values() if nic.connection]
    stay = {cable.id for cable in cables}
    for nic in vm.nics.values():
        if nic.id_error is not None:
            continue  # nothing of ours was ever on it, and QEMU cannot be asked for it
        try:
            stay |= {cable.id for cable in await nic.wiring.inspect(nic.ref)}
        except (CannotAttach, CommandFailed, UnknownNic) as error:
            if nic.ref.alias in vm.journal.record.nics and vm.facts[nic.ref.alias].managed:
                log.warning("%s: nothing is cleared away: %s", nic.ref, error)
                return
    await vm.wiring.sweep(stay, begun)
    kept = {cable.device for cable in cables} | {
        device.name for tag, device in tagged if tag.id in stay
    }
    await remove_devices(vm.name, host, tagged, but={name for name in kept if name})


async def remove_devices(
    vm: str,
    host: Host,
    tagged: TaggedDevices,
    *,
    but: Iterable[str] = (),
    unless_held: bool = False,
) -> None:
    """Remove the devices that carry the tag of a VM's NIC and belong to no cable of it.

    :param but: names of devices that stay.
    :param unless_held: leave alone what a process has open: a guest may run behind it.
    """
    kept = set(but)
    for tag, device in tagged:
        if tag.vm != vm or device.name in kept:
            continue
        now = await host.find_device(device.index)
        if now is None or now.owner_tag != tag:
            continue
        if unless_held and (holders := await fd_holders(now)) not in ([], [UNSEEN_HOLDER]):
            log.warning("%s: %s stays, in use by %s", tag.owner, device.name, ", ".join(holders))
            continue
        try:
            await host.delete_device(device.index)
            log.info("%s: removed %s, which an earlier run left", tag.owner, device.name)
        except LinkmgrError as error:
            log.warning("%s: what an earlier run left stays: %s", tag.owner, error)


class _Nic:
    """One NIC that was known before the restart. Its lock is held."""

    def __init__(self, nic: ManagedNic, known: NicRecord, networks: Networks) -> None:
        self._nic = nic
        self._known = known
        self._networks = networks
        facts = known.facts
        self._offer = Offer(nic.ref, type(nic.wiring).kinds, mac=facts.mac, mtu=facts.mtu)

    async def recover(self) -> None:
        """Finish or undo what was in flight.

        :raise MonitorError: when QEMU does not answer any more.
        """
        nic, old, intent = self._nic, self._known.cable, self._known.intent
        found = await nic.wiring.inspect(nic.ref)
        if old and intent and {each.id for each in found} == {old.id, intent.attachment}:
            # Cut off while the new cable was plugged in beside the old one: one of them is shut.
            (new,) = (each for each in found if each.id == intent.attachment)
            await nic.wiring.switch_back(nic.ref, new, None)
            found.remove(new)
        here = found[0] if found else None
        if here is None:
            # An unplug that got this far is finished; any other cable is put back.
            unplugging = intent is not None and intent.port is None
            if old is not None and not unplugging:
                await self._put_back(old)
            elif intent is not None and intent.foreign and not unplugging:
                await self._put_back_foreign(*intent.foreign)
        elif old is not None and here.id == old.id:
            nic.connection, nic.foreign = await self._adopted(old), False
            await nic.apply_link(hold_down=False)
            nic.filter_refusals = await nic.wiring.follow_rx_filter(nic.connection.cable)
        elif intent is not None and intent.port is not None and here.id == intent.attachment:
            await self._finish(intent, intent.port, here, old)
        else:
            if intent is None or (here.hubport_id, here.netdev_id) != intent.foreign:
                log.warning("%s: somebody else plugged %s into it", nic.ref, here.hubport_id)
            nic.foreign = True
            await nic.apply_link(hold_down=False)

    async def _finish(
        self, intent: Intent, port: Port, here: Cable, old: CableRecord | None
    ) -> None:
        """The NIC is on the new cable: do what comes after the switch."""
        nic = self._nic
        driver = self._networks.driver(port.network.driver)
        attachment = await driver.init_attachment(self._offer, port, ident=here.id)
        await nic.wiring.recognise(here)
        if here.endpoint is None and attachment.kind is not EndpointKind.FD:  # its device is gone
            await driver.terminate_attachment(attachment)
            nic.foreign = True
            return
        try:
            here.endpoint = await attachment.realise()
        except LinkmgrError as error:
            # The network is in trouble, but the NIC is there: take it as it is.
            log.warning("%s: network %s is not as it should be: %s", nic.ref, port, error)
        here.mac = self._offer.mac
        await nic.wiring.adopt(here)
        nic.connection, nic.foreign = (
            LiveConnection(driver, attachment, here, self._free(port)),
            False,
        )
        await attachment.activate()
        changed = steps.leads_elsewhere(old.port if old else None, port)
        await steps.notify_of(nic, here, intent.notify, changed=changed)
        log.info("%s: finished the swap to %s that was cut off", nic.ref, port)

    async def _put_back(self, old: CableRecord) -> None:
        """The NIC is on nothing: give it the cable that it had, if that still exists."""
        nic = self._nic
        connection = await self._adopted(old)
        if not connection.cable.netdev_added:
            log.warning("%s: QEMU has lost its cable to %s", nic.ref, old.port)
            await connection.driver.terminate_attachment(connection.attachment)
            return
        await nic.wiring.switch_back(nic.ref, None, connection.cable)
        nic.connection, nic.foreign = connection, False
        await nic.apply_link(hold_down=False)
        nic.filter_refusals = await nic.wiring.follow_rx_filter(connection.cable)
        log.info("%s: back on its cable to %s", nic.ref, old.port)

    async def _put_back_foreign(self, hubport_id: str, netdev_id: str) -> None:
        """The NIC is on nothing: give it the cable back that somebody else had plugged."""
        nic = self._nic
        cable = Cable(id="", nic=nic.ref, endpoint=None, hubport_id=hubport_id, netdev_id=netdev_id)
        await nic.wiring.switch_back(nic.ref, None, cable)
        nic.foreign = True
        await nic.apply_link(hold_down=False)

    async def _adopted(self, record: CableRecord) -> LiveConnection:
        driver = self._networks.driver(record.port.network.driver)
        attachment = await driver.init_attachment(self._offer, record.port, ident=record.attachment)
        cable = self._nic.wiring.new_cable(record.id, self._offer, record.endpoint)
        cable.device, cable.mac = record.device or None, record.mac
        await self._nic.wiring.adopt(cable)
        return LiveConnection(driver, attachment, cable, self._free(record.port), record.since)

    def _free(self, port: Port) -> steps.DeferredStep:
        return self._networks.claimed(port, self._nic.ref)


def _ports(nic: NicRecord) -> list[Port]:
    ports = [nic.cable.port] if nic.cable else []
    if nic.intent and nic.intent.port:
        ports.append(nic.intent.port)
    return ports
