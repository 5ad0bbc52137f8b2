"""A short soak of kills (`bench.soak.kills`), whose inspection finds what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bench.soak.kills.world import VM, World, make_world
from linkmgr.host.netlink.link import DEVICE_GROUP
from linkmgr.hypervisors.qemu.qmp.info_network import parse_info_network
from linkmgr.testing.process import execute

KILLS = 50

in_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.timeout(180)
def test_after_fifty_random_kills_nothing_is_lost_left_or_taken() -> None:
    words = ["--kills", str(KILLS), "--worlds", "2", "--minutes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak.kills", *words],
        stdout=subprocess.PIPE, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout  # with the seed
    assert done.stdout.startswith("seed ")
    assert "nothing lost, nothing left, nothing taken" in done.stdout


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One whose first NIC is plugged into a bridge that linkmgr made, and that nobody kills."""
    async with make_world(tmp_path_factory.mktemp("world"), "nobody throws") as made:
        await made.client.plug(f"{VM}/net0", "blue")
        await made.settled()
        yield made


@in_one_loop
@pytest.mark.parametrize(
    ("harm", "mend", "told"),
    [
        (
            f"ip link add lmbr-red group {DEVICE_GROUP} type bridge mcast_snooping 0",
            "ip link del lmbr-red",
            "lmbr-red is in the group of linkmgr and has no tag",
        ),
        (
            "ip link add lm0123abcd link v-green type macvtap",
            "ip link del lm0123abcd",
            "'lm0123abcd'",
        ),
        ("ip link set op-tap mtu 1400", "ip link set op-tap mtu 1500", "op-tap is not as it was"),
        (
            "ip link set op-br name op-gone",
            "ip link set op-gone name op-br",
            "op-br is gone, which was nobody's to remove",
        ),
        (
            "sysctl -qw net.ipv6.conf.lmbr-blue.disable_ipv6=0",
            "sysctl -qw net.ipv6.conf.lmbr-blue.disable_ipv6=1",
            "lmbr-blue has IPv6 on",
        ),
        (
            "touch STATE/vms/web1.json.abcdef.tmp",
            "rm STATE/vms/web1.json.abcdef.tmp",
            "vms/web1.json.abcdef.tmp is in the state directory",
        ),
    ],
)
async def test_what_is_wrong_on_the_host_is_found(
    world: World, harm: str, mend: str, told: str
) -> None:
    def here(command: str) -> list[str]:
        return ["sh", "-ec", command.replace("STATE", str(world.nursery.state))]

    await execute(here(harm))
    try:
        assert any(told in fault for fault in await world.inspection.faults(world.client))
    finally:
        await execute(here(mend))
    assert await world.inspection.faults(world.client) == []


@in_one_loop
async def test_a_second_cable_in_qemu_is_found(world: World) -> None:
    guest = world.inspection.guest
    said = await guest.qmp("human-monitor-command", **{"command-line": "info network"})
    hub = parse_info_network(said).hub_of("net1")
    assert hub is not None
    await guest.qmp("netdev_add", type="user", id="second")
    await guest.qmp("netdev_add", type="hubport", id="second-port", hubid=hub[0], netdev="second")
    try:
        faults = await world.inspection.faults(world.client)
        assert any(f"{VM}/net1 is unplugged, and on its hub are" in fault for fault in faults)
    finally:
        await guest.qmp("netdev_del", id="second-port")
        await guest.qmp("netdev_del", id="second")
    assert await world.inspection.faults(world.client) == []
