"""The RFC's story: boot with no cable, plug, swap to another kind of backend, unplug."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from linkmgr import LinkState, NicState
from linkmgr.testing import Guest
from tests.integration.lab import Lab

NIC = "web1/net0"
PORT = (
    4  #: the first queue of virtio-serial that is a later port's: what its guest fills with pages
)
MOST_ENTRIES = 1024  #: the test guest's memory suffices for them (linkmgr.testing.guest.MEMORY_MIB)


async def reaches(guest: Guest, network: int) -> tuple[bool, bool]:
    """Whether the guest reaches the peer of a network, by IPv4 and by IPv6."""
    v4 = await guest.ping(f"10.{network}.0.1", count=2, interval=0.1)
    v6 = await guest.ping(f"fd00:{network}::1", count=2, interval=0.1)
    return v4.received > 0, v6.received > 0


@pytest.mark.next_qemu
@pytest.mark.parametrize("model", ["virtio-net-pci", "vmxnet3"])
async def test_a_guest_boots_unplugged_is_plugged_swapped_and_unplugged(
    lab: Lab, model: str
) -> None:
    await lab.network("blue")
    await lab.network("green")
    addresses = " ".join(f"lm.ip6.eth0=fd00:{n}::2/64" for n in (1, 2))
    guest = await lab.guest(model=model, cmdline=f"lm.dhcp=eth0 {addresses}")
    (nic,) = await lab.links.nics()
    assert (nic.state, nic.link, nic.model) == (NicState.UNPLUGGED, LinkState.DOWN, model)
    assert await guest.carrier("eth0") is False
    ifindex, pci = await guest.ifindex("eth0"), await guest.pci_address("eth0")
    uevents = await guest.uevent_seqnum()

    outcome = await lab.links.plug(NIC, "blue")
    assert outcome.changed
    assert outcome.nic.state is NicState.PLUGGED
    await guest.wait_carrier("eth0", True)
    assert (await guest.wait_ipv4("eth0", "10.1.0.")).startswith("10.1.0.")
    assert await reaches(guest, 1) == (True, True)

    outcome = await lab.links.plug(NIC, "green")
    assert (await guest.wait_ipv4("eth0", "10.2.0.")).startswith("10.2.0.")
    assert await reaches(guest, 2) == (True, True)
    assert await reaches(guest, 1) == (False, False)

    await lab.links.plug(NIC, "blue")
    await guest.wait_ipv4("eth0", "10.1.0.")
    assert await reaches(guest, 1) == (True, True)
    assert await reaches(guest, 2) == (False, False)

    await lab.links.set_link(NIC, "down")
    await guest.wait_carrier("eth0", False)
    assert (await lab.links.nic(NIC)).state is NicState.PLUGGED
    await lab.links.set_link(NIC, "up")
    await guest.wait_carrier("eth0", True)

    assert await lab.links.check() == []
    await lab.links.unplug(NIC)
    await guest.wait_carrier("eth0", False)
    assert (await lab.links.nic(NIC)).state is NicState.UNPLUGGED
    assert await lab.links.connections() == []
    assert await lab.links.check() == []
    assert await guest.ifindex("eth0") == ifindex
    assert await guest.pci_address("eth0") == pci
    assert await guest.uevent_seqnum() == uevents


async def test_the_queue_of_a_port_has_no_more_entries_than_the_guest_has_memory_for(
    lab: Lab, differs: Callable[[str, str], None]
) -> None:
    guest = await lab.guest()
    (path,) = [
        each["path"]
        for each in await guest.qmp("x-query-virtio")
        if each["name"] in ("virtio-serial", "virtio-console")
    ]
    queue = await guest.qmp("x-query-virtio-queue-status", path=path, queue=PORT)
    entries = queue["vring-num"]
    assert 0 < entries <= MOST_ENTRIES
    differs("queue of a guest's virtio-serial port", f"{entries} entries, a page of memory each")
