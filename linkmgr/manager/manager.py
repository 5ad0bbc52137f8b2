"""The verbs. One lock per NIC, different NICs in parallel, every verb repeatable."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from linkmgr.errors import (
    AlreadyExists,
    Conflict,
    LinkmgrError,
    MonitorError,
    MonitorGone,
    MtuTooLarge,
    NetworkInUse,
    PortInUse,
    StateError,
    Stopping,
)
from linkmgr.events import EventKind
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp.admission import MayUse
from linkmgr.hypervisors.qemu.qmp.connector import address_of, socket_file, transport_of
from linkmgr.inventory.machine import Vm
from linkmgr.manager.libvirt_compat import LibvirtCompat
from linkmgr.model import (
    Drift,
    LinkState,
    MonitorTransport,
    Network,
    Nic,
    NicRef,
    NotifyMode,
    Outcome,
    Port,
    check_name,
    parse_choice,
)
from linkmgr.reconcile.drift import may_repair, reported
from linkmgr.state.journal import VmJournal, VmRecord
from linkmgr.swap import steps
from linkmgr.swap.steps import LiveConnection, ManagedNic, StepTimer, no_probe
from linkmgr.wirings.endpoints.attributes import find_faults, read_devices, repair_in_place

T = TypeVar("T")
E = TypeVar("E", NotifyMode, LinkState, Drift)

#: What a person calls these.
_CHOICES = {NotifyMode: "way to notify", LinkState: "link state", Drift: "policy for drift"}


class LinkManager(LibvirtCompat):
    """Plugs the NICs of running guests into networks. An asynchronous context manager.

    ::

        async with LinkManager() as manager:
            await manager.add_vm("web1", "/run/web1.qmp")
            await manager.create_network("blue", "bridge", bridge="br0")
            await manager.plug("web1/net0", "blue")

    A verb whose caller goes away is finished all the same. When the manager closes, guests stay on
    the cables that they have.

    With a state directory it knows after a restart, also after a kill -9, what it knew before:
    entering it finishes or undoes what was in flight.

    :param state: the state directory, ``None`` for one that forgets.
    :param watch: whether to look after each change of the host's devices if all cables are what
        they should be, and do what their networks' `Drift` says. By default with a state directory.
    :param fd_store: for duplicates of the cables' fds for the next run.
    :param timeout: seconds that QEMU may take for one command.
    :param probe: called before each step of a swap, for tests and for showing progress.
    :param connectors: how monitors are reached; by default over sockets only.
    """

    # ------------------------------------------------------------------ VMs

    async def add_vm(
        self,
        name: str,
        qmp: str | Path,
        *,
        uid: int | None = None,
        may_use: MayUse | None = None,
    ) -> list[Nic]:
        """Take charge of a running guest's NICs, and take every unplugged one down at once.

        Start QEMU with ``-S``, add the VM, then send ``cont``: the guest boots with no carrier.

        :param qmp: path of its monitor socket, or what else `connectors` can reach.
        :param uid: of the caller; kept in the state directory.
        :param may_use: says of the uid of the process that listens on the socket whether the caller
            may use its monitor. By default everybody's.
        :return: its NICs.
        :raise BadName: when `name` cannot be a name.
        :raise AlreadyExists: when a living VM of that name has another monitor.
        :raise Forbidden: when `may_use` says so; nothing was sent to the monitor.
        :raise Conflict: when another VM has that monitor, or is the same QEMU.
        :raise MonitorError: when QEMU is not there, does not answer or is too old.
        """
        check_name("VM", name)
        self._check_open()
        return await asyncio.shield(self._start(self._add(name, address_of(qmp), uid, may_use)))

    async def _add(
        self, name: str, address: str, uid: int | None, may_use: MayUse | None
    ) -> list[Nic]:
        async with self._locks.vm_lock(name):
            known = self._vms.get(name)
            if pending := self._pending.vms.get(name):
                if pending.record.qmp != address:
                    raise AlreadyExists(
                        f"VM {name} exists with another monitor, {pending.record.qmp}",
                        hint="remove it first, or choose another name",
                    )
                raise pending.refusal()
            other = known and known.address != address
            if known and known.qemu.alive and not (other and await known.qemu.confirm_exit()):
                if other:
                    raise AlreadyExists(
                        f"VM {name} exists with another monitor, {known.address}",
                        hint="remove it first, or choose another name",
                    )
                try:
                    await known.find_nics()
                    return known.snapshots()
                except MonitorGone:
                    if not await known.qemu.confirm_exit():
                        raise
            await self._refuse_shared(name, address, uid)
            if known:  # its document goes before the new one is written
                await self._leave(known)
            journal = VmJournal(self._journal, VmRecord(name, address, adder=uid))
            vm = await self._connect(journal, partial(self._refuse_same, name), may_use)
            self._vms[name] = vm
            self._bus.publish(EventKind.VM_ADDED, name)
            return vm.snapshots()

    async def _refuse_shared(self, name: str, address: str, uid: int | None) -> None:
        """Refuse a monitor that another VM has. It serves one client, and that is linkmgr.

        The paths of others are not looked at: their file systems may never answer.
        """
        file = await socket_file(address, self.timeout, uid)
        pending = {each.record.vm: each.record.qmp for each in self._pending.vms.values()}
        sharing = [vm for vm, known in pending.items() if known == address]
        sharing += [
            vm.name
            for vm in self._vms.values()
            if vm.qemu.alive and (vm.address == address or (file and vm.qemu.file == file))
        ]
        for other in sharing:
            if other == name:
                continue
            vm = self._vms.get(other)
            if vm is None or not await vm.qemu.confirm_exit():
                raise Conflict(
                    f"the monitor {address} is that of VM {other}, whose NICs linkmgr has already",
                    hint=f"use VM {other}, or remove it first",
                )

    def _refuse_same(self, name: str, qemu: QemuProcess) -> None:
        """Refuse a QEMU that another VM is already, by another way to it.

        Of two sockets that says nothing: the process is who made them, which need not be QEMU.
        """
        others = {
            each.record.vm: (each.record.pid, transport_of(each.record.qmp))
            for each in self._pending.vms.values()
            if each.record.process_lives()
        }
        others |= {
            vm.name: (vm.qemu.pid, vm.qemu.transport) for vm in self._vms.values() if vm.qemu.alive
        }
        for other, (pid, transport) in others.items():
            both_sockets = {transport, qemu.transport} == {MonitorTransport.SOCKET}
            if other != name and pid is not None and pid == qemu.pid and not both_sockets:
                raise Conflict(
                    f"the QEMU of {qemu.address} is VM {other}, whose NICs linkmgr has already",
                    hint=f"use VM {other}",
                )

    async def remove_vm(self, name: str) -> bool:
        """Unplug all NICs of a VM and forget it; false if it is not known.

        One whose QEMU has not answered since linkmgr started is only forgotten: its NICs stay on
        their cables.

        :raise LinkmgrError: when a NIC cannot be unplugged, or what it held cannot be freed yet;
            the VM is then still known. What waits for one of its NICs ends with `BeingRemoved`.
        """
        check_name("VM", name)
        return await asyncio.shield(self._start(self._remove(name)))

    async def _remove(self, name: str) -> bool:
        async with (
            self._locks.removing(name),
            contextlib.AsyncExitStack() as all_nics,
        ):
            if name in self._pending.vms and await self._pending.forget(name):
                self._bus.publish(EventKind.VM_REMOVED, name)
                return True
            vm = self._vms.get(name)
            if vm is None:
                return False
            await self._unplug_all(vm, all_nics)
            del self._vms[name]
            await vm.close()
        self._bus.publish(EventKind.VM_REMOVED, name)
        return True

    async def _unplug_all(self, vm: Vm, all_nics: contextlib.AsyncExitStack) -> None:
        """Unplug a VM's NICs and drop its document.

        :param all_nics: gets the locks of all NICs: nothing can be plugged until it is closed.
        :raise LinkmgrError: it names the NICs that were unplugged before it.
        """
        unplugged: list[str] = []
        try:
            for nic in list(vm.nics.values()):
                await all_nics.enter_async_context(self._locks.acquired(nic.lock))
                step = self._unplug if nic.connection else self._look
                outcome = await self._guarded(vm, nic, partial(step, vm, nic))
                if outcome.changed:
                    unplugged.append(str(nic.ref))
                if nic.deferred:
                    raise MonitorError(
                        "what its cable held cannot be freed yet",
                        hint="look at the log, and remove the VM again when QEMU answers",
                    ).about(str(nic.ref), vm.snapshot(nic).describe())
            await vm.journal.drop()
        except LinkmgrError as error:
            if not unplugged:
                raise
            verb = "are" if len(unplugged) > 1 else "is"
            done = f"{', '.join(unplugged)} {verb} unplugged, and VM {vm.name} is still known"
            if isinstance(error, Stopping):
                raise Stopping(
                    f"linkmgr is stopping before all NICs were unplugged: {done}",
                    hint="remove it again when linkmgr has started",
                ) from None
            error.what = f"{error.what} ({done})"
            raise

    async def forget_ended(self, name: str) -> bool:
        """Forget a VM whose QEMU has ended; false if it has not, or is there anew, or not known.

        What its NICs held is freed first. Never touches a guest that runs.
        """
        return await asyncio.shield(self._start(self._forget_ended(check_name("VM", name))))

    async def _forget_ended(self, name: str) -> bool:
        async with self._locks.forgetting(name):
            vm = self._vms.get(name)
            if vm is None or (vm.qemu.alive and not await vm.qemu.confirm_exit()):
                return False
            if (
                vm.cleanup_task
                and vm.cleanup_task.done()
                and any(nic.deferred for nic in vm.nics.values())
            ):
                return False  # they are still to be done; it stays known, as gone
            await self._leave(vm)
            if self._vms.get(name) is vm:
                del self._vms[name]
        self._bus.publish(EventKind.VM_REMOVED, name)
        return True

    # ------------------------------------------------------------------ networks and ports

    async def create_network(
        self, name: str, driver: str, *, drift: str | Drift = Drift.REPAIR, **options: Any
    ) -> Network:
        """Describe a network; see `Networks.create`. Touches nothing on the host."""
        known = self._networks.find(name)
        network = self._networks.create(name, driver, options, _choice(Drift, drift))
        if known is None:
            await self._saved(lambda: self._networks.delete(name))
            self._bus.publish(EventKind.NETWORK_ADDED, network)
        return network

    async def delete_network(self, name: str) -> bool:
        """Forget a network; false if there is none. See `Networks.delete`."""
        network = self._networks.delete(name)
        if network is None:
            return False
        try:
            await self._networks.driver(network.driver).forget_network(network)
        except LinkmgrError:
            self._networks.restore(network)
            raise
        await self._saved(lambda: self._networks.restore(network))
        self._bus.publish(EventKind.NETWORK_REMOVED, network)
        return True

    async def create_port(self, network: str, name: str, **options: Any) -> Port:
        """Describe a port; see `Networks.create_port`. Touches nothing on the host."""
        known = name in {port.name for port in self._networks.ports(network)}
        port = self._networks.create_port(network, name, options)
        if not known:
            await self._saved(lambda: self._networks.delete_port(network, name))
            self._bus.publish(EventKind.PORT_ADDED, port)
        return port

    async def delete_port(self, network: str, name: str) -> bool:
        """Forget a port; false if there is none. See `Networks.delete_port`."""
        port = self._networks.delete_port(network, name)
        if port is None:
            return False
        await self._saved(lambda: self._networks.restore_port(port))
        self._bus.publish(EventKind.PORT_REMOVED, port)
        return True

    async def _saved(self, undo: Callable[[], object]) -> None:
        """Write the networks and ports; take a change back that cannot be written."""
        try:
            await asyncio.shield(self._start(self._save_networks()))
        except StateError:
            # It may be in use by now: then it stays, and is written with the next change.
            with contextlib.suppress(NetworkInUse, PortInUse):
                undo()
            raise

    async def _save_networks(self) -> None:
        await self._journal.save_networks(*self._networks.recorded())

    # ------------------------------------------------------------------ the cable

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | NotifyMode = NotifyMode.AUTO,
        uid: int | None = None,
    ) -> Outcome:
        """Plug a NIC into a network or port, from wherever it is.

        Plugging the network or port that it is on does nothing. If the cable into it is broken, the
        notes of the outcome say so.

        :param nic: ``VM/ALIAS``, or what else `resolve` understands.
        :param target: ``NETWORK``, ``NETWORK:PORT``, ``fd:NAME``, or what the create verbs
            returned.
        :param notify: how the guest and the network hear of it.
        :param uid: who asks: ``fd:NAME`` is an fd that this user left. By default our own.
        :raise LinkmgrError: any of the tree; the NIC is then on the cable that it had, or the
            error says otherwise.
        """
        how = _choice(NotifyMode, notify)
        ref = await self.resolve(nic)
        vm, managed = await self._find_now(ref)

        async def do_plug() -> Outcome:
            port = self._networks.port(target, ref, uid)
            here = managed.connection.attachment.port if managed.connection else None
            if here and (here == port or (port.implied and here.network == port.network)):
                notes = await reported(managed, self._host, watched=self._watches)
                return Outcome(vm.snapshot(managed), changed=False, notes=notes)
            driver = self._networks.driver(port.network.driver)
            self._networks.refuse_same_address(port, ref, vm.snapshot(managed).mac, self._mac_of)
            self._networks.claim(port, ref)
            free_port = self._networks.claimed(port, ref)
            before, timings = managed.connection, StepTimer(no_probe)
            told = how
            if arrives := ref in self.bindings:
                managed.carrier.invalidate()  # it is what the guest saw on the other host
                told = NotifyMode.ANNOUNCE if told is NotifyMode.AUTO else told
            try:
                timings = await steps.plug(
                    managed, driver, port, free_port, notify=told, probe=self._probe
                )
            except MtuTooLarge as error:
                # The driver does not know the NIC's model, and only virtio has that property.
                model, more = vm.snapshot(managed).model, f"host_mtu={error.mtu}"
                if error.mtu is not None and model.startswith("virtio-net"):
                    error.hint = f"boot the NIC with {more}, or {error.hint}"
                elif error.mtu is not None:
                    error.hint = (
                        f"{error.hint}, or boot a virtio-net-pci with {more}: QEMU does not tell "
                        f"how much a NIC of model {model} takes"
                    )
                raise
            finally:
                if arrives:
                    keeps = managed.connection.attachment.port if managed.connection else None
                    await self.bindings.release(ref, keeps=keeps)
                    managed.deferred += [] if managed.connection else [managed.apply_link]
                if managed.connection is not before:  # also when only the notification failed
                    kind = EventKind.REPLUGGED if here else EventKind.PLUGGED
                    self._bus.publish(
                        kind, ref, port=str(port), **_was(here), timings=dict(timings)
                    )
            notes = (*_unwritten(managed), *_left_behind(managed.connection))
            return Outcome(vm.snapshot(managed), changed=True, timings=timings, notes=notes)

        return await self._verb(vm, managed, do_plug)

    async def unplug(self, nic: str | NicRef) -> Outcome:
        """Take a NIC off its cable, its carrier first. Unplugging twice succeeds.

        It needs no disk: where the state directory is full the outcome's notes say so, and it is
        written down later.

        :raise LinkmgrError: any of the tree; the NIC is then on the cable that it had.
        """
        vm, managed = await self._find_now(await self.resolve(nic))
        return await self._verb(vm, managed, partial(self._unplug, vm, managed))

    async def _unplug(self, vm: Vm, nic: ManagedNic) -> Outcome:
        here = nic.connection.attachment.port if nic.connection else None
        await self.bindings.release(nic.ref)
        if vm.qemu.alive:
            await vm.check_managed(nic)
        if here is None and not nic.foreign:
            return Outcome(vm.snapshot(nic), changed=False)
        timings: Mapping[str, float] = {}
        try:
            if vm.qemu.alive:
                timings = await steps.unplug(nic, probe=self._probe)
        except MonitorGone:
            if not await vm.qemu.confirm_exit():
                raise
        if not vm.qemu.alive:
            await steps.discard_dead(nic)
        self._bus.publish(EventKind.UNPLUGGED, nic.ref, **_was(here), timings=dict(timings))
        return Outcome(vm.snapshot(nic), changed=True, timings=timings, notes=_unwritten(nic))

    async def set_link(self, nic: str | NicRef, state: str | LinkState) -> Outcome:
        """Set what the guest sees as carrier while the NIC is plugged. Survives replugs.

        An unplugged NIC stays down and takes the state when it is plugged. QEMU is told in any
        case, for another monitor may have set something else since. It cannot be asked what is set,
        so `changed` is whether this differs from what linkmgr set last.

        :raise MonitorError: when QEMU did not confirm it.
        """
        wanted = _choice(LinkState, state)
        ref = await self.resolve(nic)
        vm, managed = await self._find_now(ref)

        async def do_set_link() -> Outcome:
            await vm.check_managed(managed)
            before = (managed.wanted_link, managed.carrier.up)
            managed.wanted_link = wanted
            try:
                try:
                    await managed.journal.change(ref.alias, wanted=wanted)
                except StateError as error:
                    if wanted is LinkState.UP:
                        raise
                    # To pull a cable needs no disk.
                    managed.journal_error = error
                    if managed.save not in managed.deferred:
                        managed.deferred.append(managed.save)
                if managed.connection or managed.foreign or managed.carrier.up is False:
                    await managed.apply_link(force=True)
            except LinkmgrError:
                managed.wanted_link = before[0]
                managed.deferred += [managed.apply_link, managed.save]
                raise
            changed = before != (managed.wanted_link, managed.carrier.up)
            if changed:
                self._bus.publish(EventKind.LINK, ref, wanted=wanted.value)
            return Outcome(vm.snapshot(managed), changed=changed, notes=_unwritten(managed))

        return await self._verb(vm, managed, do_set_link)

    async def _repair(self, nic: ManagedNic) -> bool:
        """Set again what was changed on a NIC's device, or plug the NIC into its own port again.

        :return: whether that was still called for.
        """
        vm = self._vms.get(nic.ref.vm)
        if vm is None:  # removed since it was looked at
            return False

        async def do_repair() -> Outcome:
            # A verb may have had the NIC since it was looked at.
            old = nic.connection
            devices = await read_devices(self._host, [old.cable] if old else [])
            if old is None or not may_repair(nic, devices):
                return Outcome(vm.snapshot(nic), changed=False)
            if await repair_in_place(self._host, find_faults(old.cable, devices)):
                return Outcome(vm.snapshot(nic), changed=True)

            async def keep_port() -> None:
                """The NIC keeps its claim on the port, whichever side goes."""

            free, old.free_port = old.free_port, keep_port
            try:
                timings = await steps.plug(
                    nic,
                    old.driver,
                    old.attachment.port,
                    keep_port,
                    notify=NotifyMode.ANNOUNCE,
                    probe=self._probe,
                )
            finally:
                if nic.connection is not None:
                    nic.connection.free_port = free
            return Outcome(vm.snapshot(nic), changed=True, timings=timings)

        return (await self._verb(vm, nic, do_repair)).changed

    async def _look(self, vm: Vm, nic: ManagedNic) -> Outcome:
        return Outcome(vm.snapshot(nic), changed=False)


def _unwritten(nic: ManagedNic) -> tuple[str, ...]:
    """What an outcome says while it is not written down."""
    if (error := nic.journal_error) is None:
        return ()
    return (
        f"it is done and not written down: {error.what}; that is tried again every few seconds, "
        f"and linkmgr does not know of it if it is started again before. To do: {error.hint}",
    )


def _choice(kind: type[E], value: str) -> E:
    return parse_choice(kind, value, _CHOICES[kind])


def _left_behind(new: LiveConnection | None) -> tuple[str, ...]:
    if new is None or not new.cable.lost_settings:
        return ()
    had = f"{', '.join(new.cable.lost_settings)} is gone with the device of the cable before"
    now = f"device {new.cable.device} has it not"
    return (f"{had}, where somebody had set it, and {now}. To do: set it there if it is wanted",)


def _was(port: Port | None) -> dict[str, str]:
    return {"was": str(port)} if port else {}
