"""What linkmgr has set on devices and somebody else changes is found, and set again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from linkmgr import EventKind, LinkManager
from linkmgr.host import Host, NetDevice
from linkmgr.testing.process import until
from tests.integration.lab import Lab, make_lab

NIC = "web1/net0"
TOUCH = "ip link add x type veth; ip link del x"  # of /proc/sys and port options nobody is told

TAP = {
    "ip link set {0} mtu 1400": "mtu-changed",
    "ip link set {0} address 52:54:00:00:01:00": "address-changed",
    f"bridge link set dev {{0}} isolated on; {TOUCH}": "isolated-changed",
    f"bridge link set dev {{0}} hairpin on; {TOUCH}": "hairpin-changed",
    f"bridge link set dev {{0}} learning off; {TOUCH}": "learning-changed",
    f"echo 0 >/proc/sys/net/ipv6/conf/{{0}}/disable_ipv6; {TOUCH}": "ipv6-on",
    "ip link set {0} addrgenmode eui64": "ipv6-on",
    "ip link set {0} alias mine": "not-ours",
    "ip link set {0} down": "device-down",
    "ip link set {0} carrier off": "carrier-off",
}
MACVTAP = {
    "ip link set {0} address 52:54:00:99:99:99": "address-changed",
    "ip link set {0} mtu 1400": "mtu-changed",
    "ip link set {0} allmulticast off": "allmulti-off",
    "ip link set {0} type macvtap mode private": "mode-changed",
    f"echo 0 >/proc/sys/net/ipv6/conf/{{0}}/disable_ipv6; {TOUCH}": "ipv6-on",
    "ip link set {0} alias ''": "not-ours",
    "ip link set {0} down": "device-down",
    "ip link set v-green down": "endpoint-down",
}
PASSTHRU = {
    "ip link set v-green address 52:54:00:99:99:99": "address-changed",
    "ip link set {0} promisc on": "promisc-changed",
}


async def device(links: LinkManager) -> str:
    connection = (await links.nic(NIC)).connection
    assert connection is not None
    return connection.device


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Lab]:
    async with make_lab(tmp_path, watch=True) as lab:
        yield lab


@pytest.mark.parametrize(
    ("network", "options", "harms"),
    [("blue", {}, TAP), ("green", {}, MACVTAP), ("green", {"mode": "passthru"}, PASSTHRU)],
    ids=["tap", "macvtap", "passthru"],
)
async def test_each_attribute_that_somebody_changes_is_told_and_set_again_in_place(
    watched: Lab, network: str, options: dict[str, str], harms: dict[str, str]
) -> None:
    number = 1 if network == "blue" else 2
    links = watched.links
    await watched.network(network, **options)
    guest = await watched.guest(cmdline=f"lm.ip.eth0=10.{number}.0.2/24")
    await links.plug(NIC, network)
    assert (await guest.ping(f"10.{number}.0.1")).received
    async with Host() as host:
        before = await host.device(name := await device(links))
        for harm, code in harms.items():
            events = links.events()
            await watched.sh(harm.format(name))
            async with asyncio.timeout(10):
                async for event in events:
                    if event.kind is EventKind.DRIFT:
                        assert code in str(event.details["codes"]), harm
                    if event.kind is EventKind.REPAIRED:
                        break
            events.close()

            async def as_before(wanted: NetDevice = before) -> bool:
                now = await host.find_device(name)
                if now:
                    wanted = replace(wanted, operstate=now.operstate)
                if now and network == "blue" and now.mac.startswith("fe:"):
                    wanted = replace(wanted, mac=now.mac)  # any address of that kind will do
                return now == wanted

            await until(as_before, timeout=5, what=f"after {harm!r} {name} is as it was")
            assert await links.check() == []
            assert (await guest.ping(f"10.{number}.0.1")).received, harm


REPORTED = {
    "bridge link set dev {0} flood off": "port-flood",
    "bridge link set dev {0} mcast_flood off": "port-flood",
    "bridge link set dev {0} bcast_flood off": "port-flood",
    "bridge link set dev {0} locked on": "port-flood",
    "ip link set {0} group 5": "group-changed",
}
#: Of a bridge that linkmgr made, whose name has a dot.
BRIDGE = {
    "ip link set {0} mtu 1400": "bridge-mtu",
    "ip link set {0} mtu 1600": "bridge-mtu",
    "ip link set {0} type bridge mcast_snooping 1": "bridge-snooping",
    "ip link set {0} type bridge stp_state 1": "bridge-stp",
    "echo 0 >/proc/sys/net/ipv6/conf/{0}/disable_ipv6": "bridge-ipv6",
    "ip link set {0} addrgenmode eui64": "bridge-ipv6",
    "ip link set {0} group 0": "bridge-group",
}


async def is_told_and_left(lab: Lab, harm: str, name: str, code: str) -> None:
    await lab.sh(harm.format(name))
    (found,) = await lab.links.check()
    assert found.code == code, harm
    (said,) = (await lab.links.plug(NIC, "blue")).notes
    assert found.what in said
    await lab.sh(found.hint.partition("'")[2].rpartition("'")[0])
    assert await lab.links.check() == [], "the hint is a command that helps"


async def test_what_an_operator_may_change_on_a_port_is_told_and_left(watched: Lab) -> None:
    await watched.network("blue")
    await watched.guest(boot=False)
    await watched.links.plug(NIC, "blue")
    name = await device(watched.links)
    for harm, code in REPORTED.items():
        await is_told_and_left(watched, harm, name, code)


async def test_what_an_operator_may_change_on_a_bridge_of_linkmgrs_is_told_and_left(
    watched: Lab,
) -> None:
    name = "br.made"
    await watched.links.create_network("blue", "bridge", bridge=name, create=True)
    await watched.guest(boot=False)
    await watched.links.plug(NIC, "blue")
    assert await watched.links.check() == []
    for harm, code in BRIDGE.items():
        await is_told_and_left(watched, harm, name, code)


async def test_what_an_operator_has_set_on_a_bridge_of_his_own_is_no_finding(watched: Lab) -> None:
    await watched.network("blue")
    await watched.guest(boot=False)
    await watched.links.plug(NIC, "blue")
    for harm, code in BRIDGE.items():
        if code not in {"bridge-stp", "bridge-mtu"}:  # a tree shuts the port, for some seconds
            await watched.sh(harm.format("br-blue"))
    assert await watched.links.check() == []


async def test_a_parent_that_carries_less_than_its_network_is_told_with_the_command_that_helps(
    watched: Lab,
) -> None:
    await watched.network("green")
    await watched.guest()
    await watched.links.plug(NIC, "green")
    await watched.sh("ip link set v-green mtu 1400")
    (found,) = await watched.links.check()
    assert found.code == "endpoint-mtu"
    await watched.sh(found.hint.partition("'")[2].rpartition("'")[0])

    async def good() -> bool:
        return await watched.links.check() == []

    await until(good, timeout=5, what="the macvtap carries as much again")


async def test_a_replug_on_one_parent_sets_all_again_whatever_linkmgr_set_last(lab: Lab) -> None:
    await lab.network("green", drift="report")
    await lab.links.create_port("green", "spare")
    guest = await lab.guest(cmdline="lm.ip.eth0=10.2.0.2/24")
    await lab.links.plug(NIC, "green")
    name = await device(lab.links)
    for harm in MACVTAP:
        if "v-green" not in harm:
            await lab.sh(harm.format(name))
    # The address may be the guest's again: its driver tells what it receives, and that is obeyed.
    assert {found.code for found in await lab.links.check()} >= {"mtu-changed", "allmulti-off"}
    await lab.links.plug(NIC, "green:spare")
    assert await lab.links.check() == []
    assert (await guest.ping("10.2.0.1")).received


async def test_a_bridge_whose_uplink_left_keeps_its_address_whichever_taps_come(
    watched: Lab,
) -> None:
    await watched.network("blue")
    await watched.guest(boot=False)
    await watched.links.plug(NIC, "blue")
    await watched.sh("ip link set v-blue nomaster")
    kind = "cat /sys/class/net/br-blue/addr_assign_type"

    async def pinned() -> bool:
        return (await watched.sh(kind)).strip() == "3" and not await watched.links.check()

    await until(pinned, timeout=5, what="the bridge's address is set")
