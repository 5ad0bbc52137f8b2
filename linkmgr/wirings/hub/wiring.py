"""The hub wiring: QEMU's NIC sits on a hub, and what else is plugged into the hub is the cable.

A backend that is peered directly with a NIC can never be exchanged. A hub port between them can:
the new backend is staged off the hub, where failures harm nobody, and then one hub port goes and
another comes, back to back. The hub floods, so two cables on one hub would join two networks.
Unless one of them leads nowhere: from one bridge port to another (of the same bridge or not) the
new cable is plugged in early, with its device down, and the switch is the kernel's, which shuts the
one port and opens the other in one go.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Collection
from typing import ClassVar

from linkmgr.errors import (
    BadRequest,
    CannotAttach,
    CommandFailed,
    HostError,
    MonitorError,
    NotOnHub,
    SwitchFailed,
    UnusableNicId,
)
from linkmgr.host import Fd, Host
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp import QmpCommand
from linkmgr.hypervisors.qemu.qmp.info_network import NetClient, parse_info_network
from linkmgr.model import (
    DEFAULT_MTU,
    BridgeEndpoint,
    DirectEndpoint,
    DirectMode,
    Endpoint,
    EndpointKind,
    FdEndpoint,
    NicRef,
    Offer,
    OwnerTag,
)
from linkmgr.text.untrusted import printable
from linkmgr.wirings.base import Cable, Wiring
from linkmgr.wirings.endpoints.device import (
    delete_cable_device,
    name_device,
    set_device_down,
)
from linkmgr.wirings.endpoints.host_side import (
    address_is_elsewhere,
    attach,
    can_reuse,
    claim_addresses,
    inspect_replaced,
    make_macvtap,
    make_tap,
    restore_addresses,
    restore_device,
    reuse_device,
    switch_bridge_ports,
    withdraw_addresses,
)
from linkmgr.wirings.endpoints.receive_filter import apply_rx_filter, query_rx_filter
from linkmgr.wirings.hub.qemu_args import hub_args
from linkmgr.wirings.hub.rarp import rarp
from linkmgr.wirings.hub.topology import NicHub, find_hub, hub_crowded_error, tap_fd_number

log = logging.getLogger(__name__)

_NETDEV_PREFIX = "lmt-"  # QEMU ids of a cable: its netdev ...
_HUBPORT_PREFIX = "lmp-"  # ... and its hub port
_OUR_ID = re.compile(r"lm[tp]-[0-9a-f]{8}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
MIN_MTU, MAX_MTU = 68, 65535  #: bytes; what ``host_mtu`` of virtio can be, 0 for none
_HEAD_START = QmpCommand("query-status")
_INFO_NETWORK = QmpCommand("human-monitor-command", {"command-line": "info network"})


class HubWiring(Wiring):
    """The NICs of one QEMU that sit on hubs."""

    name: ClassVar[str] = "hub"

    #: Our taps have no IFF_VNET_HDR: hub ports carry no virtio-net header, and QEMU strips that of
    #: a tap that is handed over. One queue, no vhost.
    kinds: ClassVar[tuple[EndpointKind, ...]] = (
        EndpointKind.BRIDGE,
        EndpointKind.DIRECT,
        EndpointKind.FD,
    )

    #: Only ``python -m bench --no-kept-fd`` switches it off, to show what it is good for.
    keep_fds: ClassVar[bool] = True

    def __init__(self, qemu: QemuProcess, host: Host) -> None:
        self._qemu = qemu
        self._host = host
        self._cables: set[Cable] = set()  # that hold a device or an fd
        self._known: set[str] = set()  # aliases that are ids of devices, too

    async def offer(self, nic: NicRef) -> Offer:
        """See `Wiring.offer`."""
        hub = await self._hub(nic)
        if len(hub.backends) > 1:
            raise hub_crowded_error(nic, hub)
        return Offer(
            nic=nic,
            kinds=self.kinds,
            mac=await self._mac(nic),
            mtu=await self._mtu(nic),
        )

    async def inspect(self, nic: NicRef) -> list[Cable]:
        """See `Wiring.inspect`."""
        hub = await self._hub(nic)
        return [
            Cable(
                id=port.id.removeprefix(_HUBPORT_PREFIX)
                if port.id.startswith(_HUBPORT_PREFIX) else "",
                nic=nic, endpoint=None, hubport_id=port.id, netdev_id=str(port.peer),
            )
            for port in hub.backends
        ]  # fmt: skip

    async def recognise(self, cable: Cable) -> None:
        """See `Wiring.recognise`. The fd is had again from QEMU, if the kernel allows it."""
        ident = cable.netdev_id.removeprefix(_NETDEV_PREFIX)
        tag = OwnerTag(str(cable.nic), ident)
        device = next(
            (device for found, device in await self._host.tagged_devices() if found == tag), None
        )
        if device is None or cable.hubport_id != _HUBPORT_PREFIX + ident:
            return
        above = device.master or device.parent
        upper = None if above is None else await self._host.find_device(above)
        where = upper.name if upper else "?"
        cable.id, cable.device, cable.mac, cable.netdev_added = ident, device.name, device.mac, True
        cable.rediscovered = True
        if device.kind == "macvtap":
            mode = DirectMode(device.mode or DirectMode.BRIDGE)
            cable.endpoint = DirectEndpoint(where, mode, device.mtu)
        else:
            cable.endpoint = BridgeEndpoint(where, device.mtu)
        cable.fd = self._recover_fd(
            ident, (await self._qemu.query_network()).netdevs[cable.netdev_id]
        )
        self._cables.add(cable)

    def new_cable(self, ident: str, offer: Offer, endpoint: Endpoint) -> Cable:
        """See `Wiring.new_cable`."""
        return Cable(
            id=ident,
            nic=offer.nic,
            endpoint=endpoint,
            mac=offer.mac,
            hubport_id=_HUBPORT_PREFIX + ident,
            netdev_id=_NETDEV_PREFIX + ident,
        )

    async def adopt(self, cable: Cable) -> None:
        """See `Wiring.adopt`."""
        info = await self._qemu.query_network()
        cable.hub_number = find_hub(info, cable.nic).number
        backend = info.netdevs.get(cable.netdev_id)
        cable.netdev_added = backend is not None
        cable.rediscovered = False
        self._cables.add(cable)
        if cable.fd is None:
            cable.fd = self._recover_fd(cable.id, backend)
        await restore_device(self._host, cable)

    async def sweep(self, known: Collection[str], begun: Collection[str]) -> None:
        """See `Wiring.sweep`."""
        for ident in set(begun) - set(known):
            with contextlib.suppress(CommandFailed):  # most often there is none
                await self._qemu.execute("closefd", {"fdname": _NETDEV_PREFIX + ident})
        info = await self._qemu.query_network()
        stay = {prefix + ident for ident in known for prefix in (_HUBPORT_PREFIX, _NETDEV_PREFIX)}
        # An operator may call a backend lmt-uplink, and have it behind a NIC without a hub.
        stay |= {nic.peer for nic in info.nics.values() if nic.peer}
        left = [name for name in info.netdevs if _OUR_ID.fullmatch(name)]
        for name in sorted(set(left) - stay, key=lambda name: not name.startswith(_HUBPORT_PREFIX)):
            if name.startswith(_HUBPORT_PREFIX):
                await self._qemu.execute("netdev_del", {"id": name})
                continue
            ident = name.removeprefix(_NETDEV_PREFIX)
            fd = self._recover_fd(ident, info.netdevs[name])
            await self._qemu.execute("netdev_del", {"id": name})
            self._host.fd_store.drop(ident)
            if fd is not None:
                await fd.close_in_thread()

    def _recover_fd(self, ident: str, backend: NetClient | None) -> Fd | None:
        """A duplicate of a cable's fd, from the fd store or from QEMU, if that is allowed."""
        copy = self._host.fd_store.dup(ident)
        if copy is None and backend is not None and (number := tap_fd_number(backend)) is not None:
            copy = self._qemu.dup_fd(number)
        return None if copy is None else Fd(copy)

    async def stage(self, cable: Cable, replacing: Cable | None) -> None:
        """See `Wiring.stage`. The backend is in QEMU afterwards, but on no hub."""
        nic = cable.nic
        self._cables.add(cable)
        if replacing is not None:
            await inspect_replaced(self._host, cable, replacing)
        match cable.endpoint:
            case BridgeEndpoint():
                await make_tap(self._host, cable, cable.endpoint, replacing)
            case DirectEndpoint():
                if replacing is not None and await can_reuse(self._host, cable.endpoint, replacing):
                    cable.lost_settings = []
                    cable.reused, cable.id = True, replacing.id
                    cable.hub_number = replacing.hub_number
                    cable.hubport_id, cable.netdev_id = replacing.hubport_id, replacing.netdev_id
                    return
                await make_macvtap(self._host, cable, cable.endpoint)
            case FdEndpoint():
                cable.fd = self._host.fds.dup(cable.id)
            case None:
                raise AssertionError("only a cable of our own is staged")
        assert cable.fd is not None
        self._host.fd_store.keep(cable.id, cable.fd.number)
        cable.netdev_added = cable.fd_named = True
        try:
            await self._qemu.execute(
                "netdev_add",
                {"type": "tap", "id": cable.netdev_id, "fd": cable.netdev_id},
                fds={cable.netdev_id: cable.fd.number},
            )
        except CommandFailed:
            # A netdev of that id, if there is one, is not ours to remove.
            cable.netdev_added = False
            raise
        cable.fd_named = False  # netdev_add has consumed the name
        # Look before you plug: a hub port for a backend that has a peer aborts QEMU.
        info = await self._qemu.query_network()
        hub = find_hub(info, nic)
        backend = info.netdevs.get(cable.netdev_id)
        if backend is None or backend.peer is not None:
            raise CommandFailed(
                f"QEMU does not show the new backend {cable.netdev_id} as free",
                command="netdev_add",
                hint="look whether somebody else uses QEMU's monitors, and try again",
            )
        if {port.id for port in hub.backends} - ({replacing.hubport_id} if replacing else set()):
            raise hub_crowded_error(nic, hub)
        cable.hub_number = hub.number
        if not cable.prestaged or replacing is None:
            return
        if hub.backends:
            reply, look = await self._qemu.batch([_plug(cable), _INFO_NETWORK])
            await self._check_plugged(nic, (replacing, cable), [reply], look)
        else:
            # Somebody has taken the old port out: there is no port to switch from.
            assert isinstance(cable.endpoint, BridgeEndpoint)
            cable.prestaged = False
            await attach(self._host, cable, cable.endpoint)

    async def switch(self, nic: NicRef, new: Cable | None, old: Cable | None) -> None:
        """See `Wiring.switch`. The NIC is without a cable for about a millisecond."""
        if new is not None and new.reused and old is not None:
            await self._reuse_device(new, old)
            await claim_addresses(self._host, new)
            hub = find_hub(await self._qemu.query_network(), nic)
            replies = []
            if not hub.backends:  # somebody has taken its port out
                new.hub_number = hub.number
                replies = await self._qemu.batch([_plug(new)])
                hub = find_hub(await self._qemu.query_network(), nic)
            _require_exactly(hub, [new], replies)
            return
        if new is not None and new.prestaged and old is not None:
            await self._switch_bridge_ports(nic, new, old)
            return
        commands = []
        if old is not None:
            commands.append(_unplug(old))
        if old is not None and old.endpoint is None:
            # QEMU may keep a port that it did not make with netdev_add: look before anything comes.
            await self._qemu.batch(commands)
            await self._check_plugged(nic, [])
            commands = []
        if new is not None:
            commands.append(_plug(new))

        if new and old:
            await withdraw_addresses(self._host, new, old)

        # QEMU reads the rest while it answers the first one, so that nothing has to be waited for
        # between the commands that count. And what counts in the end is what is plugged then,
        # asked in the same breath.
        _, *replies, seen = await self._qemu.batch([_HEAD_START, *commands, _INFO_NETWORK])
        if new and not isinstance(replies[-1], CommandFailed):
            await claim_addresses(self._host, new)
        await self._check_plugged(nic, [new] if new else [], replies, seen)

    async def _switch_bridge_ports(self, nic: NicRef, new: Cable, old: Cable) -> None:
        """Switch in the kernel, where both cables are plugged in and one of them is shut."""
        await switch_bridge_ports(self._host, new, old)
        reply, seen = await self._qemu.batch([_unplug(old), _INFO_NETWORK])
        await self._check_plugged(nic, [new], [reply], seen)
        new.prestaged = False

    async def _reuse_device(self, new: Cable, old: Cable) -> None:
        await reuse_device(self._host, new, old)
        self._cables.discard(old)
        self._cables.add(new)

    async def switch_back(self, nic: NicRef, new: Cable | None, old: Cable | None) -> None:
        """See `Wiring.switch_back`. One command at a time, so that never two cables are in."""
        if not self._qemu.alive:
            return
        if new is not None and new.reused and old is not None:
            if new.device is not None:
                await self._reuse_device(old, new)
            return
        hub = find_hub(await self._qemu.query_network(), nic)
        if new is not None and new.hubport_id in {port.id for port in hub.backends}:
            await self._qemu.execute("netdev_del", {"id": new.hubport_id})
            hub = find_hub(await self._qemu.query_network(), nic)
        if old is None:
            return
        if old.hubport_id in {port.id for port in hub.backends}:
            await restore_addresses(self._host, old, new)
            return
        if hub.backends:
            raise hub_crowded_error(nic, hub)
        old.hub_number = hub.number
        plug = _plug(old)
        await self._qemu.execute(plug.name, plug.arguments)
        await restore_addresses(self._host, old, new)

    async def _check_plugged(
        self,
        nic: NicRef,
        cables: Collection[Cable],
        replies: Collection[object] = (),
        seen: object = None,
    ) -> None:
        """Check what is plugged into the NIC, for QEMU's answers say little.

        :param seen: the answer to `_INFO_NETWORK`, if it was asked.
        :raise SwitchFailed: when it is not exactly these cables.
        """
        if isinstance(seen, CommandFailed):
            raise seen
        info = await self._qemu.query_network() if seen is None else parse_info_network(seen)
        _require_exactly(find_hub(info, nic), cables, replies)

    async def release(self, cable: Cable) -> None:
        """See `Wiring.release`. A foreign cable stays in QEMU, unplugged.

        As long as QEMU keeps the backend of one of ours, it hears nothing through it.
        """
        if cable.endpoint is None:
            return
        ours = cable.netdev_added or cable.fd is not None  # else another cable has all of it now
        if not self.keep_fds and cable.fd is not None:
            cable.fd.close()
        if cable.netdev_added and self._qemu.alive:
            try:
                await self._delete_netdevs(cable)
            except MonitorError:
                with contextlib.suppress(HostError):
                    await set_device_down(self._host, cable)
                raise
        cable.netdev_added = False
        if ours:
            self._host.fd_store.drop(cable.id)
        if cable.fd is not None:
            await cable.fd.close_in_thread()
            cable.fd = None
        await delete_cable_device(self._host, cable)
        self._cables.discard(cable)

    async def _delete_netdevs(self, cable: Cable) -> None:
        if cable.fd_named:
            # It may be that the name was left and never used; if it is not there, fine.
            with contextlib.suppress(CommandFailed):
                await self._qemu.execute("closefd", {"fdname": cable.netdev_id})
            cable.fd_named = False
        info = await self._qemu.query_network()
        for ident in (cable.hubport_id, cable.netdev_id):
            if ident in info.netdevs:
                await self._qemu.execute("netdev_del", {"id": ident})

    async def name_device(self, cable: Cable, name: str | None) -> None:
        """See `Wiring.name_device`."""
        await name_device(self._host, cable, name)

    def close(self) -> None:
        """See `Wiring.close`."""
        for cable in self._cables:
            if cable.fd is not None:
                cable.fd.close()
        self._cables.clear()

    async def set_link(self, nic: NicRef, *, up: bool) -> None:
        """See `Wiring.set_link`."""
        await self._qemu.execute("set_link", {"name": nic.alias, "up": up})

    async def announce(self, cable: Cable, *, moved: bool) -> None:
        """See `Wiring.announce`. Five rounds within half a second, QEMU's own default."""
        nic = cable.nic
        if await address_is_elsewhere(self._host, cable, moved=moved):
            return
        await self._qemu.execute(
            "announce-self",
            {"initial": 50, "max": 550, "rounds": 5, "step": 100,
             "interfaces": [nic.alias], "id": f"lm-{nic.alias}"},
        )  # fmt: skip

    async def teach_address(self, cable: Cable) -> None:
        """See `Wiring.teach_address`. Through our own descriptor, as if the guest had sent it."""
        if isinstance(cable.endpoint, FdEndpoint) and cable.endpoint.vnet_hdr is not False:
            return  # we do not know what its frames begin with
        if cable.fd is None or await address_is_elsewhere(self._host, cable, moved=True):
            return
        with contextlib.suppress(OSError):  # down, or its queue is full: the guest will speak
            os.write(cable.fd.number, rarp(cable.mac))

    async def follow_rx_filter(self, cable: Cable) -> list[str]:
        """See `Wiring.follow_rx_filter`."""
        if not isinstance(cable.endpoint, DirectEndpoint) or cable.device is None:
            return []
        asked = await query_rx_filter(self._qemu, cable.nic)
        if asked is None:
            return []
        return await apply_rx_filter(self._host, cable, cable.endpoint, asked)

    async def _hub(self, nic: NicRef) -> NicHub:
        """Find the NIC's hub; for one that is on none, say with which arguments it would be.

        :raise UnusableNicId: it was given no id; the name that QEMU shows is of no use then.
        """
        info = await self._qemu.query_network()
        if nic.alias not in self._known and info.hub_of(nic.alias) is not None:
            await self._mac(nic)
            self._known.add(nic.alias)
        try:
            return find_hub(info, nic)
        except NotOnHub as error:
            client = info.nics[nic.alias]
            # A device without an id has no such path, and not all that QEMU takes do we take.
            with contextlib.suppress(CommandFailed, CannotAttach, BadRequest):
                mtu = await self._mtu(nic)
                args = hub_args(
                    nic.alias,
                    mac=await self._mac(nic),
                    model=client.model or "virtio-net-pci",
                    host_mtu=None if mtu == DEFAULT_MTU else mtu,
                )
                error.hint = f"boot the guest with: {' '.join(args)}"
            raise

    async def _get(self, nic: NicRef, name: str) -> object:
        path = f"/machine/peripheral/{nic.alias}"
        return await self._qemu.execute("qom-get", {"path": path, "property": name})

    async def _mac(self, nic: NicRef) -> str:
        """The configured address: what `info network` shows the guest can change.

        :raise UnusableNicId: there is no device of that id.
        :raise CannotAttach: QEMU says that it is something else.
        """
        try:
            mac = await self._get(nic, "mac")
        except CommandFailed as error:
            if error.error_class != "DeviceNotFound":
                raise
            raise UnusableNicId(
                "QEMU made the NIC without an id (-nic, -net, or -device without id=)",
                hint="start the guest with an id for it: -device MODEL,id=net0,netdev=...",
            ).about(str(nic)) from None
        if isinstance(mac, str) and _MAC.fullmatch(mac):
            return mac.lower()
        raise CannotAttach(
            f"QEMU says that the NIC's address is {printable(mac, 60)}",
            hint="look which program answers on its monitor",
        ).about(str(nic))

    async def _mtu(self, nic: NicRef) -> int:
        try:
            mtu = await self._get(nic, "host_mtu")
        except CommandFailed:  # only virtio has it
            return DEFAULT_MTU
        good = isinstance(mtu, int) and MIN_MTU <= mtu <= MAX_MTU
        return mtu if good and isinstance(mtu, int) else DEFAULT_MTU


def _require_exactly(hub: NicHub, cables: Collection[Cable], replies: Collection[object]) -> None:
    if {port.id for port in hub.backends} == {cable.hubport_id for cable in cables}:
        return
    refused = "; ".join(r.what for r in replies if isinstance(r, CommandFailed))
    has = printable(", ".join(port.id for port in hub.backends) or "nothing")
    raise SwitchFailed(
        f"the switch went wrong: {has} is plugged in ({refused or 'QEMU did not say why'})",
        hint="try again; if it persists, see QEMU's log",
    )


def _plug(cable: Cable) -> QmpCommand:
    return QmpCommand(
        "netdev_add",
        {
            "type": "hubport",
            "id": cable.hubport_id,
            "hubid": cable.hub_number,
            "netdev": cable.netdev_id,
        },
    )


def _unplug(cable: Cable) -> QmpCommand:
    return QmpCommand("netdev_del", {"id": cable.hubport_id})
