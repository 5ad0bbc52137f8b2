"""Placeholders: hub ports in the place of the backends that libvirt made for NICs on hubs.

libvirt makes a tap for each NIC and gives it to QEMU as the backend ``hostALIAS``. The NIC of a
prepared domain is wired to its hub instead, so nothing goes through this backend; but its tap has
the name in ``<target dev=>``, by which libvirt looks for the NIC on the host. A hub port under the
same id, on a hub of its own, takes its place. The tap goes with the backend, its name is free for
the cable's device, and when libvirt removes the NIC (``virsh detach-device``) it finds the backend
that it asks QEMU to remove. QEMU starts with libvirt's backend each time, so this is done again
after each start, restore and revert.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from linkmgr.host import Fd
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp.info_network import NetClient, NetTopology
from linkmgr.wirings.hub.topology import tap_fd_number

log = logging.getLogger(__name__)

FIRST_HUB_NUMBER = 1001  #: where the search for a free hub number begins


def libvirt_netdev_id(alias: str) -> str:
    """The netdev id that libvirt gives the backend of a NIC."""
    return f"host{alias}"


def free_hub_number(info: NetTopology) -> int:
    """The number of a hub that QEMU has not got."""
    number = FIRST_HUB_NUMBER
    while number in info.hubs:
        number += 1
    return number


def unused_backend(info: NetTopology, alias: str) -> NetClient | None:
    """The backend that libvirt made for a NIC if it is unused and no placeholder; else ``None``.

    A backend that the NIC itself is on is never taken away: the NIC would have none for good.
    """
    backend = info.netdevs.get(libvirt_netdev_id(alias))
    if backend is None or backend.type == "hubport" or backend.peer is not None:
        return None
    on_hub = info.hub_of(alias) is not None
    return backend if on_hub and all(nic.peer != backend.id for nic in info.nics.values()) else None


async def ensure_placeholders(qemu: QemuProcess, aliases: Iterable[str]) -> list[str]:
    """Put a placeholder in place of libvirt's backend, for each of these NICs that is on a hub.

    Call it when the guest runs: libvirt opens and configures its taps while it starts a domain.
    Looks before each NIC, so it repeats freely, also after it was cut off in the middle.

    :return: the aliases of those that have one only now.
    :raise MonitorError: when QEMU does not answer, or refuses.
    """
    placed = []
    for alias in aliases:
        info = await qemu.query_network()
        ident = libvirt_netdev_id(alias)
        missing = ident not in info.netdevs and info.hub_of(alias) is not None
        if (backend := unused_backend(info, alias)) is not None:
            await _remove(qemu, backend)
        elif not missing:
            continue
        placeholder = {"type": "hubport", "id": ident, "hubid": free_hub_number(info)}
        await qemu.execute("netdev_add", placeholder)
        log.info("%s: a placeholder replaces libvirt's backend %s", qemu.name, ident)
        placed.append(alias)
    return placed


async def _remove(qemu: QemuProcess, backend: NetClient) -> None:
    """Remove a backend. The last close of its tap is ours: inside QEMU it would stall the guest.

    Without the right to have a duplicate of its fd the guest is held up for 20 ms, this once.
    """
    number = tap_fd_number(backend)
    copy = None if number is None else qemu.dup_fd(number)
    fd = None if copy is None else Fd(copy)
    try:
        await qemu.execute("netdev_del", {"id": backend.id})
    finally:
        if fd is not None:
            await fd.close_in_thread()
