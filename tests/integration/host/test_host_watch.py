"""Who watches the devices is woken by what matters to a cable, and by nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from linkmgr.host.netlink.monitor import NetDeviceChanges
from linkmgr.testing.process import execute

QUIET = 0.5  # seconds: more than the watch gathers changes for
SETTLES = 1.5  # seconds: Linux looks at carriers once a second


async def sh(command: str) -> None:
    await execute(["sh", "-c", command])


@pytest.fixture
async def changes() -> AsyncIterator[NetDeviceChanges]:
    await sh("ip link add br0 type bridge && ip link set br0 up && ip tuntap add t0 mode tap")
    try:
        async with NetDeviceChanges(debounce=0.05) as changes:
            yield changes
    finally:
        await sh("ip link del t0; ip link del br0")


async def wakes(changes: NetDeviceChanges, within: float = QUIET) -> bool:
    try:
        await asyncio.wait_for(changes.wait(), within)
    except TimeoutError:
        return False
    return True


async def settled(changes: NetDeviceChanges) -> None:
    while await wakes(changes, SETTLES):
        pass


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ("true", "ip link set t0 master br0"),
        ("ip link set t0 master br0", "ip link set t0 nomaster"),
        ("true", "ip link set t0 up"),
        ("ip link set t0 up", "ip link set t0 down"),
        ("ip link set t0 up", "ip link set t0 alias else"),
        ("true", "ip link set br0 down"),
        ("true", "ip tuntap add t1 mode tap && ip link del t1"),
    ],
)
async def test_what_matters_to_a_cable_wakes(
    changes: NetDeviceChanges, before: str, change: str
) -> None:
    await sh(before)
    await settled(changes)
    await sh(change)
    assert await wakes(changes)


async def test_what_a_bridge_says_of_its_port_does_not_wake(changes: NetDeviceChanges) -> None:
    await sh("ip link set t0 master br0 up")
    await settled(changes)
    await sh("bridge link set dev t0 cost 7 && bridge link set dev t0 learning off")
    assert not await wakes(changes)
    await sh("ip link set t0 nomaster")
    assert await wakes(changes)
