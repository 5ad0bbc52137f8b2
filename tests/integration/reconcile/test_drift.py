"""Cables that somebody else breaks, and what linkmgr does about it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr import EventKind, LinkManager
from linkmgr.events import EventSubscription
from linkmgr.testing.process import until
from tests.integration.lab import Lab, make_lab

NIC = "web1/net0"


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Lab]:
    async with make_lab(tmp_path, watch=True) as lab:
        yield lab


async def event(events: EventSubscription, *kinds: EventKind) -> str:
    """Wait for the next event of these kinds; return its kind."""
    async with asyncio.timeout(20):
        async for each in events:
            if each.kind in kinds:
                return each.kind
    raise AssertionError("the events ended")


async def answers(lab: Lab, number: int) -> None:
    guest = lab.guests["web1"]

    async def asked() -> bool:
        return (await guest.ping(f"10.{number}.0.1", count=1)).received == 1

    await until(asked, timeout=15, what="the peer answers")


async def device(links: LinkManager) -> str:
    nic = await links.nic(NIC)
    assert nic.connection is not None
    return nic.connection.device


async def good(links: LinkManager) -> bool:
    return await links.check() == []


@pytest.mark.parametrize(
    ("network", "number", "harm"),
    [
        ("blue", 1, "ip link del {device}"),
        ("blue", 1, "ip link set {device} nomaster"),
        ("blue", 1, "ip link set {device} down"),
        # Of the first nobody tells: it is seen with the next change of any device.
        ("blue", 1, "bridge link set dev {device} state 0; ip link add x type veth; ip link del x"),
        ("blue", 1, "ip link set br-blue down"),
        ("green", 2, "ip link del {device}"),
        ("green", 2, "ip link set {device} down"),
    ],
)
async def test_a_broken_cable_is_plugged_again(
    watched: Lab, network: str, number: int, harm: str
) -> None:
    links = watched.links
    await watched.network(network)
    guest = await watched.guest(cmdline=f"lm.ip.eth0=10.{number}.0.2/24")
    await links.plug(NIC, network)
    await answers(watched, number)
    index = await guest.run("cat /sys/class/net/eth0/ifindex")
    events = links.events()
    await watched.sh(harm.format(device=await device(links)))
    assert await event(events, EventKind.DRIFT) == EventKind.DRIFT
    assert await event(events, EventKind.REPAIRED) == EventKind.REPAIRED
    events.close()
    await answers(watched, number)
    await until(lambda: good(links), timeout=5, what="nothing is wrong")
    assert await guest.run("cat /sys/class/net/eth0/ifindex") == index
    await links.unplug(NIC)
    assert await links.delete_network(network), "the port is free again"


async def test_a_bridge_that_vanished_and_came_back_has_its_cables_again(watched: Lab) -> None:
    links = watched.links
    await watched.network("blue")
    await watched.guest(cmdline="lm.ip.eth0=10.1.0.2/24")
    await links.plug(NIC, "blue")
    await answers(watched, 1)
    events = links.events()
    await watched.sh("ip link del br-blue")
    await event(events, EventKind.DRIFT)
    await event(events, EventKind.FAILED)  # a repair, while there is no bridge
    await watched.sh("ip link add br-blue type bridge && ip link set br-blue up")
    await watched.sh("ip link set v-blue master br-blue")
    await event(events, EventKind.REPAIRED)
    events.close()
    await answers(watched, 1)
    await until(lambda: good(links), timeout=5, what="nothing is wrong")
    await links.unplug(NIC)


async def test_with_the_policy_report_it_is_told_once_and_left_alone(watched: Lab) -> None:
    links = watched.links
    await watched.network("blue", drift="report")
    await watched.guest(boot=False)
    await links.plug(NIC, "blue")
    before = await device(links)
    events = links.events()
    await watched.sh(f"ip link set {before} nomaster")
    await event(events, EventKind.DRIFT)
    await watched.sh("ip link add other type veth && ip link del other")  # more changes
    await asyncio.sleep(1)
    events.close()
    assert [each async for each in events if each.kind is EventKind.DRIFT] == []
    assert await device(links) == before
    assert [found.code for found in await links.check()] == ["moved"]
    again = await links.plug(NIC, "blue")
    assert (again.changed, await device(links)) == (False, before)
    assert again.notes == (
        f"device {before} is not on br-blue any more, and network blue says to report that only. "
        "To do: unplug it and plug it again",
    )
    await watched.sh(f"ip link set {before} master br-blue")
    assert (await links.plug(NIC, "blue")).notes == ()
    assert await links.check() == []
    await links.unplug(NIC)


@pytest.mark.parametrize(
    ("network", "harm", "said"),
    [
        ("blue", "ip link set {device} nomaster", "is not on br-blue any more"),
        ("blue", "ip link del br-blue", "br-blue does not exist any more"),
        ("green", "ip link del v-green", "does not exist any more"),
    ],
)
async def test_where_nobody_watches_a_plug_that_changes_nothing_says_what_is_wrong(
    tmp_path: Path, network: str, harm: str, said: str
) -> None:
    async with make_lab(tmp_path) as lab:
        links = lab.links
        await lab.network(network)
        await lab.guest(boot=False)
        await links.plug(NIC, network)
        await lab.sh(harm.format(device=await device(links)))
        again = await links.plug(NIC, network)
        assert not again.changed
        (note,) = again.notes
        assert f"{said}, and nobody watches cables to repair that. To do: " in note
        if harm == "ip link del br-blue":
            assert "make br-blue again, then unplug the NIC and plug it again" in note
            await lab.sh("ip link add br-blue type bridge && ip link set br-blue up")
            await lab.sh("ip link set v-blue master br-blue")
        if network == "blue":  # what the note says helps
            await links.unplug(NIC)
            assert (await links.plug(NIC, network)).changed
            assert (await links.plug(NIC, network)).notes == ()
            assert await links.check() == []
        await links.unplug(NIC)


async def test_while_a_repair_fails_a_plug_that_changes_nothing_says_so(watched: Lab) -> None:
    links = watched.links
    await watched.network("blue")
    await watched.guest(boot=False)
    await links.plug(NIC, "blue")
    events = links.events()
    await watched.sh("ip link del br-blue")
    await event(events, EventKind.FAILED)
    events.close()
    again = await links.plug(NIC, "blue")
    assert again.notes == (
        "br-blue does not exist any more, and that is not repaired yet. "
        "To do: make br-blue again, then unplug the NIC and plug it again; "
        "where linkmgr watches it is repaired by itself then",
    )
    await links.unplug(NIC)


async def test_verbs_and_repairs_do_not_disturb_each_other(watched: Lab) -> None:
    """Devices come and go all the time while a NIC is swapped; in the end all is whole."""
    links = watched.links
    await watched.network("blue")
    await watched.network("green")
    await watched.guest(cmdline="lm.ip.eth0=10.1.0.2/24")
    for round_ in range(20):
        await links.plug(NIC, ("blue", "green")[round_ % 2], notify="silent")
        if round_ % 5 == 4:
            await watched.sh(f"ip link del {await device(links)}")
    await until(lambda: good(links), timeout=20, what="nothing is wrong")
    await links.plug(NIC, "blue")
    await answers(watched, 1)
    await links.unplug(NIC)


async def test_a_cable_that_is_whole_by_now_is_not_plugged_again(watched: Lab) -> None:
    """Between the look and the repair a verb may have had the NIC."""
    links = watched.links
    await watched.network("blue")
    await watched.guest(boot=False)
    await links.plug(NIC, "blue")
    before = await device(links)
    nic = links._vms["web1"].nics["net0"]
    assert not await links._repair(nic)
    assert await device(links) == before
    await links.unplug(NIC)
    assert not await links._repair(nic)


async def test_a_qemu_that_is_stopped_does_not_delay_the_repair_of_another_guests_cable(
    watched: Lab,
) -> None:
    links = watched.links
    await watched.network("blue")
    for name in ("web1", "web2"):
        await watched.guest(name, boot=False)
        await links.plug(f"{name}/net0", "blue", notify="silent")
    first, second = [nic.connection for nic in await links.nics()]
    assert first
    assert second
    events = links.events()
    stopped = watched.guests["web1"]
    stopped.signal(signal.SIGSTOP)
    try:
        await watched.sh(f"ip link del {first.device}")
        await event(events, EventKind.DRIFT)
        await asyncio.sleep(0.3)  # its repair waits for an answer of QEMU
        began = asyncio.get_running_loop().time()
        await watched.sh(f"ip link del {second.device}")
        async with asyncio.timeout(20):
            async for each in events:
                if each.kind is EventKind.REPAIRED:
                    break
        assert each.subject == "web2/net0"
        assert asyncio.get_running_loop().time() - began < 3, "a command may take 5 s"
    finally:
        stopped.signal(signal.SIGCONT)
    events.close()
