"""An address that two NICs use in turn (a bond, VRRP) stays where the bridge has seen it last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr import EventKind, LinkManager
from linkmgr.testing import Guest
from tests.integration.lab import Lab, mac_of, make_lab

IDLE, ACTIVE = "web1/net0", "web1/net1"
SHARED = mac_of(1, 0)  #: that of the idle NIC, as a bond has that of its first member
SILENT = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Lab]:
    async with make_lab(tmp_path, watch=True) as lab:
        yield lab


async def take(guest: Guest, ifname: str, mac: str) -> None:
    """Have an interface of the guest use an address, and say nothing with it."""
    await guest.run(
        f"{SILENT}; ip link set {ifname} down; ip link set {ifname} address {mac};"
        f"ip link set {ifname} up",
        check=True,
    )


async def where(lab: Lab, mac: str) -> list[str]:
    """The ports at which the bridge has an address."""
    shown = json.loads(await lab.sh("bridge -j fdb show br br-blue"))
    return [entry["ifname"] for entry in shown if entry["mac"] == mac and "master" in entry]


async def device(links: LinkManager, nic: str) -> str:
    connection = (await links.nic(nic)).connection
    assert connection is not None
    return connection.device


async def bonded(lab: Lab) -> Guest:
    """A guest whose second NIC speaks with the address of the first, which is silent."""
    await lab.network("blue")
    await lab.links.create_port("blue", "spare")
    guest = await lab.guest(nics=2, cmdline="lm.ip.eth1=10.1.0.2/24")
    await take(guest, "eth0", SHARED)
    await lab.links.plug(IDLE, "blue")
    await lab.links.plug(ACTIVE, "blue")
    await take(guest, "eth1", SHARED)
    await guest.run("ip addr add 10.1.0.2/24 dev eth1")
    assert (await guest.ping("10.1.0.1")).received
    assert await where(lab, SHARED) == [await device(lab.links, ACTIVE)]
    return guest


async def reached(lab: Lab, guest: Guest) -> int:
    """How many of 20 frames to the shared address arrive at the NIC that uses it."""
    async with guest.counting("eth1", tag="shared") as measured:
        await lab.peers["blue"].send_frames("eth0", SHARED, count=20, rate=200, tag="shared")
    return measured.report.unique("shared")


async def test_to_replug_the_idle_nic_of_a_bond_leaves_its_address_with_the_active_one(
    lab: Lab,
) -> None:
    guest = await bonded(lab)
    for port in ("blue:spare", "blue"):
        await lab.links.plug(IDLE, port)
        assert await where(lab, SHARED) == [await device(lab.links, ACTIVE)]
        assert await reached(lab, guest) == 20


async def test_to_plug_the_idle_nic_of_a_bond_in_again_leaves_its_address_with_the_active_one(
    lab: Lab,
) -> None:
    guest = await bonded(lab)
    await lab.links.unplug(IDLE)
    await lab.links.plug(IDLE, "blue")
    assert await where(lab, SHARED) == [await device(lab.links, ACTIVE)]
    assert await reached(lab, guest) == 20


@pytest.mark.parametrize("harm", ["link del {}", "link set {} nomaster"])
async def test_to_repair_the_idle_nic_of_a_bond_leaves_its_address_with_the_active_one(
    watched: Lab, harm: str
) -> None:
    guest = await bonded(watched)
    events = watched.links.events()
    await watched.sh(f"ip {harm.format(await device(watched.links, IDLE))}")
    async with asyncio.timeout(10):
        async for event in events:
            if event.kind is EventKind.REPAIRED:
                break
    events.close()
    assert await watched.links.check() == []
    assert await where(watched, SHARED) == [await device(watched.links, ACTIVE)]
    assert await reached(watched, guest) == 20


async def test_after_a_restart_addresses_are_where_guests_have_spoken_meanwhile(
    lab: Lab, tmp_path: Path
) -> None:
    """Both the address of a NIC itself and one that it has had for a while (VRRP)."""
    virtual = "00:00:5e:00:01:07"
    await lab.network("blue")
    guest = await lab.guest(nics=2, add=False)
    ports = {}
    async with LinkManager(state=tmp_path / "state") as links:
        await links.create_network("blue", "bridge", bridge="br-blue")
        await links.create_port("blue", "spare")
        await links.add_vm("web1", guest.qmp_path)
        await take(guest, "eth0", virtual)
        await links.plug(ACTIVE, "blue")
        await links.plug(IDLE, "blue")
        await guest.run("ip addr add 10.1.0.2/24 dev eth0")
        assert (await guest.ping("10.1.0.1")).received
        await links.plug(IDLE, "blue:spare", notify="silent")  # its address goes with it
        ports = {nic: await device(links, nic) for nic in (IDLE, ACTIVE)}
        assert await where(lab, virtual) == [ports[IDLE]]
    for mac in (SHARED, virtual):
        await guest.run("ip addr flush dev eth0; ip addr flush dev eth1")
        await take(guest, "eth0", mac_of(1, 9))
        await take(guest, "eth1", mac)
        await guest.run("ip addr add 10.1.0.2/24 dev eth1")
        assert (await guest.ping("10.1.0.1")).received
        async with LinkManager(state=tmp_path / "state") as links:
            assert await links.check() == []
            assert await where(lab, mac) == [ports[ACTIVE]]
    assert await reached(lab, guest) == 20 or mac != SHARED


@pytest.mark.parametrize("whose", ["peer", "bridge"])
async def test_a_guest_with_the_gateways_address_does_not_have_linkmgr_tell_the_bridge(
    lab: Lab, whose: str
) -> None:
    blue = await lab.network("blue")
    await lab.links.create_port("blue", "spare")
    guest = await lab.guest()
    await lab.sh("ip link set br-blue address 52:54:00:0b:00:0b")
    gateway = await blue.mac("eth0") if whose == "peer" else "52:54:00:0b:00:0b"
    await take(guest, "eth0", gateway)
    await blue.run("ping -c 1 -W 0.1 10.1.0.77")  # the bridge learns where the peer is
    before = await where(lab, gateway)
    assert before
    await lab.links.plug(IDLE, "blue", notify="silent")
    assert await where(lab, gateway) == before
    await lab.links.plug(IDLE, "blue:spare", notify="silent")
    assert await where(lab, gateway) == before


async def test_a_silent_guest_that_comes_from_another_network_of_one_layer_2_is_found_there(
    lab: Lab,
) -> None:
    """The guest says nothing of itself, neither GARP nor NA, and no reply to anybody."""
    blue = await lab.network("blue")
    await lab.sh("ip link add v-in type veth peer name v-out && ip link set v-in up")
    lab.stack.push_async_callback(lab.sh, "ip link del v-in")
    await lab.sh("ip link set v-out up master br-blue")
    await lab.links.create_network("beside", "direct", parent="v-in")
    guest = await lab.guest()
    await guest.run(f"{SILENT}; ip addr add 10.1.0.2/24 dev eth0; ip link set eth0 up")
    for network in ("beside", "blue", "beside"):
        async with blue.counting("eth0") as heard:
            await lab.links.plug(IDLE, network)
        assert heard.report.foreign <= 2, "RARP, and no more"
        there = "v-out" if network == "beside" else await device(lab.links, IDLE)
        assert await where(lab, SHARED) == [there]


async def test_traffic_control_of_the_old_device_is_told_to_be_gone(lab: Lab) -> None:
    await lab.network("blue")
    await lab.links.create_port("blue", "spare")
    await lab.guest()
    assert (await lab.links.plug(IDLE, "blue")).notes == ()
    old = await device(lab.links, IDLE)
    await lab.sh(f"tc qdisc add dev {old} root handle 1: pfifo limit 10")
    await lab.sh(f"bridge link set dev {old} flood off && ip link set {old} group 5")
    (said,) = (await lab.links.plug(IDLE, "blue:spare")).notes
    assert "traffic control (pfifo)" in said
    assert "flood off" in said
    assert "group 5" in said
    assert await device(lab.links, IDLE) in said
    assert (await lab.links.plug(IDLE, "blue")).notes == ()
