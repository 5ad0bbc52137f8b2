"""A linkmgr that is killed while it makes a device leaves none that lacks its tag."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from linkmgr import LinkManager
from linkmgr.host.devices import macvtap
from linkmgr.host.netlink.link import DEVICE_GROUP
from linkmgr.reconcile.orphans import UNTAGGED_MIN_AGE_S
from linkmgr.testing.process import execute
from tests.integration.crash import NETLINK, NODE, STAY
from tests.integration.forks import Forks
from tests.integration.lab import Lab, make_lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

NIC = "web1/net0"
NET = Path("/sys/class/net")
MADE = "lmbr-made"  #: the bridge of the network made, which linkmgr makes


@dataclass
class World:
    """A guest that waits, the networks made (a bridge) and green (macvtaps)."""

    lab: Lab
    state: Path
    crash: Forks
    nothing: set[str]  #: the devices when no NIC is plugged

    def links(self) -> LinkManager:
        return LinkManager(state=self.state, watch=False)

    async def killed(self, where: str, target: str) -> bool:
        """Let a linkmgr be killed there while it plugs; false if it never got there."""
        monitor = str(self.lab.guests["web1"].qmp_path)
        words = (str(self.state), where, "web1", monitor, "plug", NIC, target)
        await self.crash.start(*words)
        status = await self.crash.ended()
        assert status in (-signal.SIGKILL, STAY), self.crash.said()
        return status == -signal.SIGKILL

    def left(self) -> set[str]:
        return {path.name for path in NET.iterdir()} - self.nothing


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("world")
    (folder / "dev").mkdir()
    forks = Forks("tests.integration.crash", log=folder / "crash.log")
    async with make_lab(folder) as lab, forks as crash:
        async with LinkManager(state=folder / "state", watch=False) as links:
            lab.links = links
            await lab.network("green")
            await links.create_network("made", "bridge", bridge=MADE, create=True)
            await lab.guest(boot=False)
        yield World(lab, folder / "state", crash, {path.name for path in NET.iterdir()})


def untagged() -> list[str]:
    """Devices that are in our group and have no tag."""
    return [
        path.name
        for path in NET.iterdir()
        if (path / "netdev_group").read_text().strip() == str(DEVICE_GROUP)
        and not (path / "ifalias").read_text().startswith("linkmgr:")
    ]


def talks_ipv6(device: str) -> bool:
    return Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").read_text().strip() != "1"


@pytest.mark.parametrize("target", ["made", "green"])
async def test_killed_after_any_word_to_the_kernel_nothing_is_left_after_the_restart(
    world: World, target: str, subtests: pytest.Subtests
) -> None:
    half_made = []
    for number in range(1, 40):
        if not await world.killed(f"{NETLINK}{number}", target):
            break
        where = world.state.with_name("killed-at").read_text()
        half_made += untagged()
        with subtests.test(msg=where):
            async with world.links() as links:
                assert untagged() == []
                nic = await links.nic(NIC)
                assert await links.check() == []
                await links.unplug(NIC)
                assert nic.connection is None or nic.connection.network == target
                assert world.left() == set()
                assert await links.gc(older_than=0) == []
    else:
        pytest.fail("it never got to its end")
    assert half_made, "no kill came between a device and its tag"
    async with world.links() as links:
        await links.unplug(NIC)
        assert world.left() == set()


async def test_a_bridge_that_is_made_again_after_a_kill_never_talks_ipv6(world: World) -> None:
    for number in range(1, 40):
        if not await world.killed(f"{NETLINK}{number}", "made"):
            break
        async with world.links() as links:
            await links.plug(NIC, "made")
            assert not talks_ipv6(MADE)
            await links.unplug(NIC)
    async with world.links() as links:
        await links.unplug(NIC)
        assert world.left() == set()


async def test_a_bridge_that_was_tagged_and_not_silenced_is_silenced_before_it_comes_up(
    world: World,
) -> None:
    async with world.links() as links:
        await execute(["ip", "link", "add", MADE, "type", "bridge"])
        await execute(["ip", "link", "set", MADE, "alias", "linkmgr:network:made:0000aaaa"])
        await links.plug(NIC, "made")
        assert not talks_ipv6(MADE)
        await links.unplug(NIC)
        assert world.left() == set()


async def test_a_node_of_a_killed_one_is_removed_at_the_start_and_no_other_folder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = world.state.with_name("dev")
    monkeypatch.setattr(macvtap, "_DEV", dev)
    assert await world.killed(NODE, "green")
    assert len(list(dev.glob("linkmgr-node-*/tap"))) == 1
    old = dev / "linkmgr-0a1b2c3d"  # as an older linkmgr called it
    old.mkdir()
    os.mknod(old / "tap", 0o600 | 0o020000, os.makedev(1, 3))
    others = [dev / "linkmgr-notes", dev / "linkmgr-node-in-use"]
    (others[0] / "tap").mkdir(parents=True)
    others[1].mkdir()
    in_use = os.open(others[1], os.O_RDONLY)
    try:
        fcntl.flock(in_use, fcntl.LOCK_EX)
        async with world.links():
            assert sorted(dev.iterdir()) == sorted(others)
    finally:
        os.close(in_use)


@pytest.mark.parametrize(
    "command",
    [
        "ip link add DEV group GROUP type bridge",
        f"ip link add {MADE} group GROUP type bridge",
        f"ip link add {MADE} type bridge mcast_snooping 0",
        f"ip link add {MADE} group GROUP type bridge mcast_snooping 0 && ip link set {MADE} up",
        f"ip link add {MADE} group GROUP type bridge mcast_snooping 0 && "
        f"ip link set {MADE} alias uplink",
        "ip link add lm0123abcd group GROUP type veth peer name lm4567abcd",
        "ip link add lm0123abcd group GROUP type bridge mcast_snooping 0",
        "ip link add tap0123abcd group GROUP link v-green type macvtap",
        "ip link add lm0123abcd link v-green type macvtap",
        "ip link add lm0123abcd group GROUP link v-green type macvtap && ip link set lm0123abcd up",
    ],
)
async def test_a_device_of_somebody_else_stays_whatever_its_group_or_its_name(
    world: World, command: str
) -> None:
    await execute(["sh", "-c", command.replace("GROUP", str(DEVICE_GROUP)).replace("DEV", "br-x")])
    made = world.left()
    try:
        async with world.links() as links:
            await links.gc(older_than=0)
            assert world.left() == made
    finally:
        await execute(["ip", "link", "del", min(made)])


async def test_a_device_that_another_linkmgr_is_about_to_tag_is_left_to_it(world: World) -> None:
    """It is seen twice before it is taken for one that nobody will tag."""
    device = "lm0123abcd"
    make = f"ip link add {device} group {DEVICE_GROUP} link v-green type macvtap"
    await execute(["sh", "-c", make])
    alias = "linkmgr:nic:web9/net0:0123abcd"
    tag = f"sleep {UNTAGGED_MIN_AGE_S / 2}; ip link set {device} alias {alias}"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(execute(["sh", "-c", tag]))
            async with world.links():
                assert world.left() == {device}
    finally:
        await execute(["ip", "link", "del", device])


async def test_gc_removes_what_was_never_tagged(world: World) -> None:
    async with world.links() as links:
        make = f"ip link add lm0123abcd group {DEVICE_GROUP} link v-green type macvtap"
        await execute(["sh", "-c", make])
        (young,) = await links.gc()
        assert (young.device, young.removed) == ("lm0123abcd", False)
        (gone,) = await links.gc(older_than=0)
        assert (gone.device, gone.removed) == ("lm0123abcd", True)
        assert world.left() == set()
