"""What QEMU shows of a NIC's hub, and what of it would hurt the guest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from linkmgr.errors import BadRequest, CannotAttach, HubCrowded, NoSink, NotOnHub, UnknownNic
from linkmgr.hypervisors.qemu.qmp.info_network import HubPort, NetClient, NetTopology
from linkmgr.model import NicRef
from linkmgr.text.untrusted import printable
from linkmgr.wirings.hub.qemu_args import hub_args


@dataclass(frozen=True)
class NicHub:
    """The hub of a NIC as QEMU shows it: its number, and the ports that a backend is behind."""

    number: int
    backends: tuple[HubPort, ...]


def find_hub(info: NetTopology, nic: NicRef) -> NicHub:
    """Find the NIC's hub and refuse one that would hurt the guest.

    :raise UnknownNic: when QEMU has no such NIC.
    :raise NotOnHub: when its backend is fixed.
    :raise NoSink: when the hub has no sink port.
    :raise HubCrowded: when there is another NIC or more than one cable.
    """
    client = info.nics.get(nic.alias)
    if client is None:
        raise UnknownNic(
            "QEMU shows no such NIC, or one whose hub port was deleted",
            hint="boot the guest again if somebody deleted the NIC's own hub port",
        ).about(str(nic))
    place = info.hub_of(nic.alias)
    if place is None:
        has = f"is wired to {printable(client.peer, 64)}" if client.peer else "has no backend"
        backend = info.netdevs.get(client.peer or "")
        if backend is not None and backend.type == "hubport":
            has = "is on a hub whose number is none of QEMU's, 0 to 2147483647"
        raise NotOnHub(
            f"the NIC {has}, and QEMU can never exchange that",
            hint=f"boot the guest with: {_args(client)}",
        ).about(str(nic))
    hub = info.hubs[place[0]]
    if len(hub.nics) > 1:
        crowd = printable(", ".join(str(port.peer) for port in hub.nics))
        raise HubCrowded(
            f"hub {hub.number} carries several NICs: {crowd}",
            hint="give each NIC a hub of its own: boot with the arguments of hub_args()",
        ).about(str(nic))
    if not hub.free:
        raise NoSink(
            f"hub {hub.number} has no sink port: without a cable the guest's first frame would "
            "wedge the NIC for good",
            hint=f"boot the guest with, in addition: -netdev hubport,id=lm-sink-{nic.alias},"
            f"hubid={hub.number}",
        ).about(str(nic))
    return NicHub(hub.number, hub.backends)


def _args(client: NetClient) -> str:
    """The arguments that put a NIC on a hub, as far as QEMU shows what it is."""
    try:
        model = client.model or "virtio-net-pci"
        return " ".join(hub_args(client.id, mac=client.mac or "", model=model))
    except BadRequest:
        return "the arguments of hub_args()"


def hub_crowded_error(nic: NicRef, hub: NicHub) -> CannotAttach:
    """Make the error for a hub that carries what it must not carry."""
    on_it = ", ".join(f"{port.peer} (hub port {port.id})" for port in hub.backends)
    found = printable(on_it) or "nothing"
    return HubCrowded(
        f"hub {hub.number} carries {found}, which is not what linkmgr left there",
        hint="take with netdev_del what does not belong there, or run check()",
    ).about(str(nic))


def tap_fd_number(backend: NetClient) -> int | None:
    """The number that a tap's fd has inside QEMU."""
    found = re.search(r"\bfd=([0-9]{1,7})\b", backend.info)
    return int(found[1]) if found else None
