"""Verbs that keep libvirt's view of a guest true: device name, placeholder, link state."""

from __future__ import annotations

from linkmgr.host.names import check_ifname
from linkmgr.manager.inventory import Inventory
from linkmgr.model import NicRef, Outcome
from linkmgr.swap import steps
from linkmgr.wirings.hub.placeholder import ensure_placeholders


class LibvirtCompat(Inventory):
    """The verbs of `LinkManager` for guests that libvirt manages too."""

    async def set_device_name(self, nic: str | NicRef, name: str | None) -> Outcome:
        """Have the host's device of a NIC's cable called `name`, now and after each later plug.

        Two devices cannot share a name: a new one has its own until the old one is gone. One that
        cannot have the name, because somebody else's device has it or the kernel renames no device
        that is up (before Linux 6.2), keeps its own; `check` tells of the former. Only taps that
        linkmgr made are named: an fd that was handed over is its owner's, and a macvtap would keep
        the name from the guest's next start (see `linkmgr.wirings.endpoints.device`).

        libvirt looks a NIC up on the host by the name in ``<target dev=>``: call it when a domain's
        NICs were found, after `ensure_backend_placeholder`: until then libvirt's own tap has that
        name.

        :param name: ``None`` for names that linkmgr makes.
        :raise BadName: when no device can be called that.
        :raise StateError: when it cannot be written down; nothing was changed.
        """
        if name is not None:
            check_ifname(name)
        ref = await self.resolve(nic)
        vm, managed = self._find(ref)

        async def do_set_name() -> Outcome:
            before = (managed.wanted_ifname, managed.connection and managed.connection.cable.device)
            await managed.journal.change(ref.alias, name=name)
            managed.wanted_ifname = name
            await steps.set_device_name(managed)
            now = (managed.wanted_ifname, managed.connection and managed.connection.cable.device)
            return Outcome(vm.snapshot(managed), changed=now != before)

        return await self._verb(vm, managed, do_set_name)

    async def ensure_backend_placeholder(self, nic: str | NicRef) -> Outcome:
        """Replace the unused backend that libvirt made for a NIC on a hub by a placeholder.

        Call it for each NIC of a libvirt domain after every start, restore and revert, when the
        domain's processors run; see `linkmgr.wirings.hub.placeholder`. Repeats freely.

        :raise CannotAttach: when the NIC is not on a hub: then nothing is touched.
        :raise MonitorError: when QEMU does not answer, or refuses.
        """
        vm, managed = self._find(await self.resolve(nic))

        async def do_ensure() -> Outcome:
            await vm.check_managed(managed)
            placed = await ensure_placeholders(vm.qemu, [managed.ref.alias])
            if placed and managed.wanted_ifname is not None:
                await steps.set_device_name(managed)
            return Outcome(vm.snapshot(managed), changed=bool(placed))

        return await self._verb(vm, managed, do_ensure)

    async def resync_link(self, nic: str | NicRef) -> Outcome:
        """Set the link state of the guest's NIC again: another monitor may have changed it.

        :raise CannotAttach: when the NIC is not on a hub: then nothing is touched.
        :raise MonitorError: when QEMU did not confirm it.
        """
        vm, managed = self._find(await self.resolve(nic))

        async def do_resync() -> Outcome:
            await vm.check_managed(managed)
            managed.carrier.invalidate()
            await managed.apply_link(hold_down=False)
            return Outcome(vm.snapshot(managed), changed=False)

        return await self._verb(vm, managed, do_resync)
