"""Guests that come from another host: what they need is made ready, or refused, before they leave.

A domain's cables travel in its XML. libvirt asks this host's hook before it starts a QEMU for the
guest, and gives the migration up if the hook says no: the guest then runs on where it is. What
follows is as at any other start; see docs/migration.md.
"""

from __future__ import annotations

from linkmgr.inventory.bindings import PortBindings
from linkmgr.libvirt.domains.inline_networks import InlineNetworks
from linkmgr.libvirt.xml.desired_cables import desired_cables_of
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.interfaces import DomainNic, domain_name, nics_of
from linkmgr.libvirt.xml.prepared_element import prepared_nics_of
from linkmgr.model import DEFAULT_MTU


async def bind_for_migration(
    bindings: PortBindings, inline_networks: InlineNetworks, document: Document
) -> list[str]:
    """Bind a port for each cable of a domain that is about to be migrated to this host.

    :return: what is held, as ``NIC on TARGET``.
    :raise LinkmgrError: about the first NIC that cannot be plugged here; nothing is held.
    """
    domain = domain_name(document)
    cables, prepared = desired_cables_of(document), prepared_nics_of(document)
    held: list[str] = []
    try:
        for nic in nics_of(document):
            cable, ref = cables.get(nic.alias), f"{domain}/{nic.alias}"
            if nic.alias not in prepared or not cable.plugged:
                continue
            if cable.inline is not None:
                async with inline_networks.network(cable.inline) as network:
                    await bindings.bind(ref, network, mac=nic.mac, mtu=_mtu(nic))
            elif cable.target is not None:
                await bindings.bind(ref, cable.target, mac=nic.mac, mtu=_mtu(nic))
            held.append(f"{nic.alias} on {cable.target or cable.inline}")
    except BaseException:
        await bindings.release_all(domain)
        raise
    return held


def _mtu(nic: DomainNic) -> int:
    """What QEMU gives the NIC as ``host_mtu``."""
    size = nic.element.get("mtu", "size")
    return int(size) if size.isdecimal() else DEFAULT_MTU
