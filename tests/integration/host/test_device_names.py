"""A device goes by any of its names, and stays what it is when somebody renames it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr import EventKind, LinkManager
from linkmgr.events import EventSubscription
from linkmgr.testing.process import until
from tests.integration.lab import Lab, make_lab

NIC = "web1/net0"
LONG = "wan-" + "x" * 100
STATIC = "lm.ip.eth0=10.2.0.2/24"


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Lab]:
    async with make_lab(tmp_path, watch=True) as lab:
        yield lab


async def device(links: LinkManager) -> str:
    connection = (await links.nic(NIC)).connection
    assert connection is not None
    return connection.device


async def repairs(events: EventSubscription, seconds: float = 1.5) -> list[str]:
    """What is told of drift within some seconds."""
    heard: list[str] = []
    try:
        async with asyncio.timeout(seconds):
            async for event in events:
                if event.kind in {EventKind.DRIFT, EventKind.REPAIRED, EventKind.FAILED}:
                    heard.append(f"{event.kind} {event.details}")
    except TimeoutError:
        pass
    return heard


async def quiet(lab: Lab, network: str) -> None:
    """Plug into a network twice; nothing is wrong then, and nothing is repaired."""
    await lab.links.plug(NIC, network)
    events = lab.links.events()
    await lab.sh("ip link add x type veth; ip link del x")
    assert await repairs(events) == []
    events.close()
    assert await lab.links.check() == []
    assert (await lab.guests["web1"].ping("10.2.0.1")).received


@pytest.mark.parametrize("name", ["uplink", LONG])
async def test_a_parent_is_named_by_an_altname(watched: Lab, name: str) -> None:
    await watched.network("green")
    await watched.sh(f"ip link property add dev v-green altname {name}")
    await watched.links.create_network("named", "direct", parent=name)
    await watched.guest(cmdline=STATIC)
    await quiet(watched, "named")
    assert not (await watched.links.plug(NIC, "green")).notes, "the same parent: its cable stays"
    await quiet(watched, "green")


@pytest.mark.parametrize("name", ["uplink", LONG])
async def test_a_bridge_is_named_by_an_altname(watched: Lab, name: str) -> None:
    await watched.network("blue")
    await watched.sh(f"ip link property add dev br-blue altname {name}")
    await watched.links.create_network("named", "bridge", bridge=name)
    guest = await watched.guest(cmdline="lm.ip.eth0=10.1.0.2/24")
    await watched.links.plug(NIC, "named")
    await watched.links.plug(NIC, "blue")
    assert await watched.links.check() == []
    assert (await guest.ping("10.1.0.1")).received


async def test_a_parent_that_is_a_macvlan_of_the_host_leads_to_the_device_below_it(
    watched: Lab,
) -> None:
    await watched.network("green")
    await watched.sh("ip link add mine link v-green up type macvlan mode bridge")
    watched.stack.push_async_callback(watched.sh, "ip link del mine")
    await watched.links.create_network("named", "direct", parent="mine")
    await watched.guest(cmdline=STATIC)
    await quiet(watched, "named")


@pytest.mark.parametrize("keep", [True, False], ids=["as-altname", "altogether"])
async def test_a_parent_that_is_renamed_later_is_the_same_parent(watched: Lab, keep: bool) -> None:
    await watched.network("green")
    await watched.guest(cmdline=STATIC)
    await watched.links.plug(NIC, "green")
    events = watched.links.events()
    await watched.sh("ip link set v-green name enp9s0")
    watched.stack.push_async_callback(watched.sh, "ip link set enp9s0 name v-green")
    if keep:
        await watched.sh("ip link property add dev enp9s0 altname v-green")
        watched.stack.push_async_callback(
            watched.sh, "ip link property del dev enp9s0 altname v-green"
        )
    assert not any("repaired" in told or "failed" in told for told in await repairs(events))
    events.close()
    codes = [found.code for found in await watched.links.check()]
    assert codes == ([] if keep else ["endpoint-renamed"])
    assert (await watched.guests["web1"].ping("10.2.0.1")).received


@pytest.mark.parametrize("network", ["blue", "green"])
async def test_a_device_that_somebody_renames_is_found_by_its_tag_and_used(
    watched: Lab, network: str
) -> None:
    number = 1 if network == "blue" else 2
    links = watched.links
    await watched.network(network)
    await links.create_port(network, "spare")
    guest = await watched.guest(cmdline=f"lm.ip.eth0=10.{number}.0.2/24")
    await links.plug(NIC, network)
    before = await device(links)
    events = links.events()
    await watched.sh(f"ip link set {before} name theirs")
    assert await repairs(events) == []
    assert await links.check() == []
    assert await device(links) == "theirs"
    # Harm to it is found and repaired under its new name, and so are a replug and an unplug.
    await watched.sh("ip link set theirs mtu 1400")

    async def repaired() -> bool:
        return "mtu 1500" in await watched.sh("ip link show theirs") and not await links.check()

    await until(repaired, timeout=5, what="its MTU is set again")
    events.close()
    await links.plug(NIC, f"{network}:spare")
    assert (await guest.ping(f"10.{number}.0.1")).received
    assert await links.check() == []
    await links.unplug(NIC)
    assert "linkmgr:" not in await watched.sh("ip link show")
