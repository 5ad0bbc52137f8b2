"""Many VMs come back after a kill of the service: all at once, and no cable is touched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.fleet import Fleet
from bench.procfs import open_files
from bench.served import ServiceProcess
from linkmgr import NicState
from linkmgr.model import VmState
from linkmgr.testing.process import execute, until

COUNT = 60


@dataclass
class Site:
    """The VMs, the service, and which of the NICs are plugged."""

    fleet: Fleet
    service: ServiceProcess
    plugged: list[str]

    async def states(self) -> dict[str, NicState]:
        async with self.service.client() as links:
            return {str(nic.ref): nic.state for nic in await links.nics()}

    def expected(self) -> dict[str, NicState]:
        return {
            f"{name}/net0": (
                NicState.PLUGGED if f"{name}/net0" in self.plugged else NicState.UNPLUGGED
            )
            for name in self.fleet.names
        }


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with contextlib.AsyncExitStack() as stack:
        await execute(["ip", "link", "add", "br0", "type", "bridge"])
        stack.push_async_callback(execute, ["ip", "link", "del", "br0"])
        await execute(["ip", "link", "set", "br0", "up"])
        fleet = await stack.enter_async_context(Fleet(COUNT, tmp_path))
        service = await stack.enter_async_context(ServiceProcess(tmp_path))
        site = Site(fleet, service, [f"{name}/net0" for name in fleet.names[::2]])
        async with service.client() as links:
            await links.create_network("blue", "bridge", bridge="br0")
            await asyncio.gather(*(links.add_vm(each, fleet.monitor(each)) for each in fleet.names))
            await asyncio.gather(*(links.plug(nic, "blue") for nic in site.plugged))
        yield site


async def taps() -> dict[str, tuple[int, str, bool]]:
    """Index, alias and carrier of each port of the bridge: another tap would have others."""
    found = (await execute(["ip", "-json", "link", "show", "master", "br0"])).output
    return {
        link["ifname"]: (link["ifindex"], link["ifalias"], "LOWER_UP" in link["flags"])
        for link in json.loads(found)
    }


async def test_all_vms_come_back_after_a_kill_and_no_cable_is_touched(site: Site) -> None:
    before = await taps()
    assert len(before) == len(site.plugged) == COUNT // 2
    held = open_files(site.fleet.pid("vm0"))
    async with site.service.client() as links:
        cables = sorted(map(repr, await links.connections()))
    await site.service.stop(signal.SIGKILL)
    await site.service.start()
    assert await site.states() == site.expected()
    async with site.service.client() as links:
        assert sorted(map(repr, await links.connections())) == cables
        assert {vm.state for vm in await links.vms()} == {VmState.ANSWERS}
        assert await links.check() == []
        assert await links.gc(older_than=0, dry_run=True) == []
    assert await taps() == before
    assert open_files(site.fleet.pid("vm0")) == held
    # And it has an fd of each cable again: QEMU does not close the last one in the next swap.
    assert open_files(site.service.pid)["/dev/net/tun"] == len(site.plugged)


async def test_those_that_ended_meanwhile_are_forgotten_with_what_they_held(site: Site) -> None:
    before = await taps()
    dead = site.fleet.names[:20]
    await site.service.stop(signal.SIGKILL)
    for name in dead:
        await site.fleet.kill(name)
    await site.service.start()

    async def settled() -> bool:
        return len(await site.states()) == COUNT - len(dead)

    await until(settled, timeout=10, what="the dead are forgotten")
    living = {
        nic: state for nic, state in site.expected().items() if nic.partition("/")[0] not in dead
    }
    assert await site.states() == living
    after = await taps()
    assert len(after) == COUNT // 2 - 10
    assert after.items() <= before.items()
    assert {path.stem for path in (site.service.state / "vms").glob("*.json")} == {
        nic.partition("/")[0] for nic in living
    }
    async with site.service.client() as links:
        assert await links.check() == []


async def test_those_that_are_stopped_hold_nobody_else_up(site: Site) -> None:
    stopped = site.fleet.names[:3]
    await site.service.stop(signal.SIGKILL)
    for name in stopped:
        site.fleet.signal(name, signal.SIGSTOP)
    try:
        await site.service.start()
        states = await site.states()
        unknown = {nic for nic, state in states.items() if state is NicState.UNKNOWN}
        assert unknown == {f"{name}/net0" for name in stopped}
        rest = {nic: state for nic, state in site.expected().items() if nic not in unknown}
        assert {nic: states[nic] for nic in rest} == rest
        for name in stopped:
            site.fleet.signal(name, signal.SIGCONT)

        async def back() -> bool:
            return await site.states() == site.expected()

        await until(back, timeout=20, what="those that were stopped are back")
    finally:
        for name in stopped:
            site.fleet.signal(name, signal.SIGCONT)
