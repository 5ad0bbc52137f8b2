"""A linkmgr that ends, or is killed at any step, while a NIC is on an fd or on its way there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from linkmgr import LinkManager, Nic, NicState
from linkmgr.errors import PortInUse
from linkmgr.model import FdEndpoint
from linkmgr.swap.steps import Step
from linkmgr.testing import Guest
from linkmgr.testing.process import until
from tests.integration.drivers.test_fd import open_devices, open_tap
from tests.integration.lab import Lab, make_lab
from tests.integration.steps import BEFORE_THE_SWITCH, PLUG, REPLUG, UNPLUG

pytestmark = pytest.mark.asyncio(loop_scope="module")

NIC = "web1/net0"
ROOT = Path(__file__).parents[3]
#: A persistent tap on the bridge of "red": it outlives every fd, as its owner wants it.
MAKE = "ip tuntap add up0 mode tap && ip link set up0 up master br-red"

#: Leaves the tap, plugs it or unplugs the NIC, and kills itself before a step.
CRASH = """
import asyncio, os, signal, sys
from linkmgr import LinkManager
from tests.integration.drivers.test_fd import open_tap

async def main(state, step, verb):
    async def probe(begun):
        if begun.value == step:
            os.kill(os.getpid(), signal.SIGKILL)

    async with LinkManager(state=state, probe=probe) as links:
        if verb == "unplug":
            await links.unplug("web1/net0")
        else:
            await links.fds.deposit(0, "uplink", open_tap("up0"))
            await links.plug("web1/net0", "fd:uplink")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    """Blue and red, a tap on red, one guest, and a state directory."""
    folder = tmp_path_factory.mktemp("bed")
    async with make_lab(folder) as lab:
        async with LinkManager(state=folder / "state") as lab.links:
            await lab.network("blue")
            await lab.network("red")
            await lab.sh(MAKE)
            await lab.guest(cmdline="lm.ip.eth0=10.1.0.2/24 lm.ip.eth0=10.3.0.2/24")
        yield lab
        async with LinkManager(state=folder / "state") as lab.links:
            assert await lab.links.remove_vm("web1")
        await lab.sh("ip link del up0")


async def reaches(guest: Guest, nic: Nic) -> None:
    """The guest and the network that it is on hear each other."""
    address = "10.1.0.1" if nic.connection and nic.connection.network == "blue" else "10.3.0.1"

    async def answered() -> bool:
        return (await guest.ping(address, count=1)).received == 1

    await until(answered, timeout=10, what=f"{address} answers")


async def recovered(links: LinkManager, guest: Guest) -> Nic:
    """The NIC after a restart, when journal, QEMU, kernel and guest agree about it."""
    assert await links.check() == []
    nic = await links.nic(NIC)
    info = await guest.qmp("human-monitor-command", **{"command-line": "info network"})
    assert info.count(" \\ lmp-") == (1 if nic.connection else 0)
    if nic.connection:
        await reaches(guest, nic)
    else:
        assert nic.state is NicState.UNPLUGGED
    return nic


async def test_a_cable_that_was_handed_over_is_adopted(bed: Lab) -> None:
    state, guest = bed.workdir / "state", bed.guests["web1"]
    async with LinkManager(state=state) as links:
        await links.fds.deposit(0, "uplink", open_tap("up0"))
        before = (await links.plug(NIC, "fd:uplink")).nic.connection
        assert before
    assert open_devices() == []
    async with LinkManager(state=state) as links:
        nic = await recovered(links, guest)
        assert nic.connection == before
        assert nic.connection.endpoint == FdEndpoint("0.uplink", "up0", vnet_hdr=False, mtu=1500)
        assert not (await links.plug(NIC, "fd:uplink")).changed
        with pytest.raises(PortInUse, match="in use by web1/net0"):
            await links.fds.deposit(0, "uplink", open_tap("t0"))
        await links.plug(NIC, "blue")
        await reaches(guest, await links.nic(NIC))
        # Nobody has the tap open any more, and the name is free.
        await links.fds.deposit(0, "uplink", open_tap("up0"))
        await links.plug(NIC, "fd:uplink")
        await links.unplug(NIC)
        assert open_devices() == []
        assert "up0" in await bed.sh("ip link show up0")


@pytest.mark.parametrize(
    ("start", "verb", "steps"),
    [(None, "plug", PLUG), ("blue", "plug", REPLUG), ("fd", "unplug", UNPLUG)],
    ids=["plug", "replug", "unplug"],
)
async def test_killed_at_any_step_the_guest_is_on_one_whole_cable_or_none(
    bed: Lab, subtests: pytest.Subtests, start: str | None, verb: str, steps: list[Step]
) -> None:
    state, guest = bed.workdir / "state", bed.guests["web1"]
    for step in steps:
        if step is Step.NAME:
            continue  # of the caller's device nothing is changed
        with subtests.test(step=step):
            async with LinkManager(state=state) as links:
                if start == "blue":
                    await links.plug(NIC, "blue", notify="silent")
                elif start == "fd":
                    await links.fds.deposit(0, "uplink", open_tap("up0"))
                    await links.plug(NIC, "fd:uplink", notify="silent")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CRASH, str(state), step, verb, cwd=ROOT
            )
            assert await process.wait() == -9, "the step was not reached"
            async with LinkManager(state=state) as links:
                nic = await recovered(links, guest)
                target = {"plug": "fd", "unplug": None}[verb]
                expected = start if step in BEFORE_THE_SWITCH else target
                assert (nic.connection.network if nic.connection else None) == expected
                if nic.connection and expected == "fd":
                    assert str(nic.connection.port) == "fd:0.uplink"
                await links.unplug(NIC)
                await links.fds.deposit(0, "uplink", open_tap("up0"))  # nobody holds it any more
            assert open_devices() == []
