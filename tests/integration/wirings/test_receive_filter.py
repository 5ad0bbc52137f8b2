"""A macvtap follows what the guest's driver wants to receive, as far as its port allows."""

from __future__ import annotations

import asyncio

import pytest

from linkmgr import EventKind
from linkmgr.events import EventSubscription
from linkmgr.host import Host
from linkmgr.testing import Guest
from linkmgr.testing.process import until
from tests.integration.lab import Lab, mac_of

NIC = "web1/net0"
OTHER = "52:54:00:aa:bb:cc"
STATIC = "lm.ip.eth0=10.2.0.2/24 lm.ip6.eth0=fd00:2::2/64"


async def take_address(guest: Guest, mac: str) -> None:
    """Change the address that the guest uses."""
    await guest.run(f"ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up")
    # A link that was down has lost its addresses of IPv6.
    await guest.run("ip addr add fd00:2::2/64 dev eth0")


async def heard(events: EventSubscription, kind: EventKind) -> dict[str, object]:
    """Wait for an event of one kind."""
    async with asyncio.timeout(5):
        async for event in events:
            if event.kind is kind:
                return dict(event.details)
    raise AssertionError("the manager closed")


@pytest.mark.next_qemu
async def test_a_trusted_port_takes_the_guests_new_address(lab: Lab) -> None:
    await lab.network("green", trust_guest=True)
    guest = await lab.guest(cmdline=STATIC)
    outcome = await lab.links.plug(NIC, "green")
    assert outcome.nic.connection
    device = outcome.nic.connection.device
    async with Host() as host:
        for mac in (OTHER, "52:54:00:aa:bb:dd"):
            await take_address(guest, mac)

            async def followed(mac: str = mac) -> bool:
                return (await host.device(device)).mac == mac

            await until(followed, timeout=5, what=f"the macvtap takes {mac}")
            assert (await guest.ping("10.2.0.1")).received
            assert (await guest.ping("fd00:2::1")).received


async def test_a_guest_that_changed_its_address_unplugged_is_reached_when_plugged(lab: Lab) -> None:
    await lab.network("green", trust_guest=True)
    guest = await lab.guest(cmdline=STATIC)
    await take_address(guest, OTHER)
    await lab.links.plug(NIC, "green")
    assert (await guest.ping("10.2.0.1")).received


async def test_an_untrusted_port_keeps_the_nics_address_and_says_so(lab: Lab) -> None:
    await lab.network("green")
    guest = await lab.guest(cmdline=STATIC)
    outcome = await lab.links.plug(NIC, "green")
    assert outcome.nic.connection
    events = lab.links.events()
    await take_address(guest, OTHER)
    refused = await heard(events, EventKind.REFUSED)
    assert OTHER in str(refused)
    async with Host() as host:
        assert (await host.device(outcome.nic.connection.device)).mac == mac_of(1, 0)
    assert [finding.code for finding in await lab.links.check()] == ["refused"]
    await take_address(guest, mac_of(1, 0))
    await asyncio.sleep(0.2)
    assert await lab.links.check() == []
    assert (await guest.ping("10.2.0.1")).received


async def test_multicast_arrives_from_the_start(lab: Lab) -> None:
    green = await lab.network("green")
    guest = await lab.guest(cmdline=STATIC)
    await guest.run("ip link set eth0 promisc on", check=True)  # open the guest's own filter
    await lab.links.plug(NIC, "green")
    async with guest.counting("eth0", tag="group") as measured:
        await green.send_frames("eth0", "01:00:5e:01:02:03", count=20, rate=100, tag="group")
        await asyncio.sleep(0.1)
    assert measured.report.unique("group") == 20


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_promiscuous_guest_hears_all_only_through_a_trusted_passthru_port(
    lab: Lab, trusted: bool
) -> None:
    green = await lab.network("green", mode="passthru", trust_guest=trusted)
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.plug(NIC, "green")
    await guest.run("ip link set eth0 promisc on", check=True)
    await asyncio.sleep(0.3)
    async with guest.counting("eth0", tag="foreign") as measured:
        complaints = [finding.what for finding in await lab.links.check()]
        await green.send_frames("eth0", OTHER, count=20, rate=100, tag="foreign")
        await asyncio.sleep(0.1)
    assert bool(complaints) is not trusted
    if trusted:
        assert measured.report.unique("foreign") == 20


async def test_in_bridge_mode_promiscuity_is_reported_not_faked(lab: Lab) -> None:
    green = await lab.network("green", trust_guest=True)
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.plug(NIC, "green")
    events = lab.links.events()
    await guest.run("ip link set eth0 promisc on", check=True)
    refused = await heard(events, EventKind.REFUSED)
    async with guest.counting("eth0", tag="foreign") as measured:
        await green.send_frames("eth0", OTHER, count=20, rate=100, tag="foreign")
        await asyncio.sleep(0.1)
    assert "bridge mode" in str(refused)
    assert measured.report.unique("foreign") == 0


VIRTUAL = "00:00:5e:00:01:07"  #: of VRRP (RFC 9568)


async def take_virtual(guest: Guest) -> None:
    """Have the guest use a second address, by a macvlan on its interface."""
    await guest.run(
        f"ip link add link eth0 name vrrp address {VIRTUAL} type macvlan mode private &&"
        "ip addr add 10.2.0.7/24 dev vrrp; ip addr flush dev eth0; ip link set vrrp up",
        check=True,
    )


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_second_address_of_the_guest_is_delivered_or_told(lab: Lab, trusted: bool) -> None:
    """In bridge mode a macvtap has one address, trusted or not."""
    green = await lab.network("green", mode="passthru", trust_guest=trusted)
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.plug(NIC, "green")
    events = lab.links.events()
    await take_virtual(guest)
    if not trusted:
        assert VIRTUAL in str(await heard(events, EventKind.REFUSED))
    else:
        async with Host() as host:
            device = (await lab.links.connections())[0].device

            async def followed() -> bool:
                return (await host.device(device)).promisc

            await until(followed, timeout=5, what="the macvtap takes more addresses")
        await green.run(f"ip neigh replace 10.2.0.7 lladdr {VIRTUAL} dev eth0", check=True)
        assert (await green.ping("10.2.0.7")).received
    assert [found.code for found in await lab.links.check()] == ["refused"] * (not trusted)
    await guest.run("ip link del vrrp")

    async def good() -> bool:
        return await lab.links.check() == []

    await until(good, timeout=5, what="nothing more is asked for")


async def test_in_bridge_mode_a_second_address_is_told_with_what_would_give_it(lab: Lab) -> None:
    await lab.network("green", trust_guest=True)
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.plug(NIC, "green")
    events = lab.links.events()
    await take_virtual(guest)
    assert VIRTUAL in str(await heard(events, EventKind.REFUSED))
    (found,) = await lab.links.check()
    assert found.code == "refused"
    assert "passthru mode" in found.hint
