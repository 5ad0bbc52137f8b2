"""What is gone is in nobody's way: devices, networks and guests that vanish under a cable."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from linkmgr import LinkState, NicState, hub_args
from linkmgr.errors import HostError, LinkMissing, MonitorGone, NetworkInUse, UnknownNetwork
from linkmgr.swap.steps import Step
from linkmgr.testing import Guest
from linkmgr.testing.process import until
from tests.integration.failures_lab import (
    NIC,
    Scene,
    another_guest,
    is_told,
    make_scene,
    no_frame_lost,
    nothing_left,
    scene,
    spare,
    traces,
)
from tests.integration.lab import mac_of

__all__ = ["scene", "spare"]  # fixtures

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def built(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with make_scene(tmp_path_factory.mktemp("scene")) as made:
        yield made


async def make(scene: Scene, kind: str) -> str:
    """Make the device called spare, and plug the NIC into its network."""
    if kind == "bridge":
        await scene.lab.sh("ip link add spare type bridge && ip link set spare up")
        network = "spare"
    else:
        await scene.lab.sh("ip link add spare type veth peer name spare2")
        network = "spare-direct"
    await scene.lab.links.plug(NIC, network, notify="silent")
    return network


async def vanish(scene: Scene, what: str) -> None:
    """Remove what the NIC is plugged into, or the NIC's own device on it."""
    (connection,) = await scene.lab.links.connections()
    await scene.lab.sh(f"ip link del {connection.device if what == 'device' else 'spare'}")


KINDS = pytest.mark.parametrize("kind", ["bridge", "parent"])
WHAT = pytest.mark.parametrize("what", ["network", "device"])


@KINDS
@WHAT
async def test_a_dead_old_network_never_blocks_moving_away(
    scene: Scene, spare: str, kind: str, what: str
) -> None:
    await make(scene, kind)
    await vanish(scene, what)
    assert {finding.code for finding in await scene.lab.links.check()} & {
        "device-gone", "endpoint-gone"
    }  # fmt: skip
    for target in ("blue", "green"):
        await scene.plug(target)
        async with no_frame_lost(scene.guest, scene.lab.peers[target]):
            pass
        assert await scene.lab.links.check() == []


@KINDS
@WHAT
async def test_a_dead_network_never_blocks_unplugging(
    scene: Scene, spare: str, kind: str, what: str
) -> None:
    await make(scene, kind)
    await vanish(scene, what)
    assert (await scene.lab.links.unplug(NIC)).changed
    assert not (await scene.lab.links.unplug(NIC)).changed
    assert await scene.lab.links.check() == []


@KINDS
async def test_a_device_that_somebody_deleted_is_replaced_by_another_port_of_its_network(
    scene: Scene, spare: str, kind: str
) -> None:
    network = await make(scene, kind)
    await vanish(scene, "device")
    await scene.lab.links.create_port(network, "other")
    await scene.lab.links.plug(NIC, f"{network}:other", notify="silent")
    assert await scene.lab.links.check() == []
    await scene.lab.links.unplug(NIC)


@KINDS
async def test_a_network_that_is_made_again_is_plugged_again(
    scene: Scene, spare: str, kind: str
) -> None:
    network = await make(scene, kind)
    await vanish(scene, "network")
    await scene.lab.links.create_port(network, "other")
    with pytest.raises(LinkMissing, match="no device spare") as caught:
        await scene.lab.links.plug(NIC, f"{network}:other")
    is_told(caught.value, state=f"plugged into {network}, link up")
    if kind == "bridge":
        await scene.lab.sh("ip link add spare type bridge && ip link set spare up")
    else:
        await scene.lab.sh("ip link add spare type veth peer name spare2")
    await scene.lab.links.plug(NIC, f"{network}:other", notify="silent")
    assert await scene.lab.links.check() == []
    await scene.lab.links.unplug(NIC)


@KINDS
@WHAT
async def test_a_failure_to_move_away_from_a_dead_network_leaves_nothing_to_be_done(
    scene: Scene, spare: str, kind: str, what: str
) -> None:
    network = await make(scene, kind)
    await vanish(scene, what)
    dead = await scene.lab.links.check()

    async def fail() -> None:
        raise HostError("no", hint="try again")

    scene.fault.at(Step.ACTIVATE, fail)
    with pytest.raises(HostError) as caught:
        await scene.lab.links.plug(NIC, "red")
    is_told(caught.value, state=f"plugged into {network}, link up")

    async def as_before() -> bool:
        return await scene.lab.links.check() == dead

    await until(as_before, timeout=3, what="check says what it said before")
    await scene.plug("red")
    async with no_frame_lost(scene.guest, scene.lab.peers["red"]):
        pass


@pytest.mark.parametrize("network", ["blue", "green"])
async def test_unplugging_twice_succeeds(scene: Scene, network: str) -> None:
    await scene.plug(network)
    assert (await scene.lab.links.unplug(NIC)).changed
    outcome = await scene.lab.links.unplug(NIC)
    assert (outcome.changed, outcome.nic.state) == (False, NicState.UNPLUGGED)
    assert outcome.nic.link is LinkState.DOWN
    await scene.guest.wait_carrier("eth0", False)


async def test_a_network_cannot_be_deleted_while_a_nic_is_on_its_way_there(scene: Scene) -> None:
    await scene.plug("blue")
    refused: list[str] = []

    async def delete() -> None:
        with pytest.raises(NetworkInUse) as caught:
            await scene.lab.links.delete_network("red")
        refused.append(str(caught.value))

    scene.fault.at(Step.STAGE, delete)
    await scene.lab.links.plug(NIC, "red", notify="silent")
    assert refused == ["network red is in use by web1/net0. To do: unplug them first"]


async def test_a_network_that_is_deleted_before_the_nics_turn_comes(scene: Scene) -> None:
    await scene.lab.links.create_network("short", "bridge", bridge="br-red")
    await scene.plug("blue")
    slow = scene.fault

    async def delete() -> None:
        assert await scene.lab.links.delete_network("short")

    slow.at(Step.OFFER, delete)
    await scene.lab.links.plug(NIC, "red", notify="silent")
    with pytest.raises(UnknownNetwork, match="no network short") as caught:
        await scene.lab.links.plug(NIC, "short")
    is_told(caught.value, state="plugged into red, link up")


@pytest_asyncio.fixture(loop_scope="module")
async def mortal(built: Scene) -> AsyncIterator[Guest]:
    """A guest for a test that kills it; nothing is left of either."""
    before = await traces(built.lab)
    args = [arg for n in (0, 1) for arg in hub_args(f"net{n}", mac=mac_of(9, n))]
    async with another_guest(built.lab, "mortal", args) as guest:
        yield guest
    await nothing_left(built.lab, before)


async def is_dead(scene: Scene) -> None:
    async def gone() -> bool:
        return (await scene.lab.links.nic("mortal/net0")).state is NicState.GONE

    await until(gone, timeout=5, what="the guest is seen to be gone")


@pytest.mark.parametrize("network", ["blue", "green"])
async def test_unplugging_succeeds_after_the_guest_has_died(
    built: Scene, mortal: Guest, network: str
) -> None:
    links = built.lab.links
    await links.plug("mortal/net0", network, notify="silent")
    await links.plug("mortal/net1", "red", notify="silent")
    mortal.kill()
    await is_dead(built)
    for nic in ("mortal/net0", "mortal/net1", "mortal/net0"):
        assert (await links.unplug(nic)).nic.state is NicState.GONE
    assert await links.connections() == []
    with pytest.raises(MonitorGone) as caught:
        await links.plug("mortal/net0", network)
    is_told(caught.value, nic="mortal/net0", state="gone with its guest")


async def test_unplugging_succeeds_while_the_guest_is_dying(built: Scene, mortal: Guest) -> None:
    links = built.lab.links
    await links.plug("mortal/net0", "blue", notify="silent")
    mortal.kill()
    assert (await links.unplug("mortal/net0")).nic.state is NicState.GONE
    assert await links.connections() == []


async def test_a_guest_that_is_started_again_begins_unplugged(built: Scene, mortal: Guest) -> None:
    links = built.lab.links
    await links.plug("mortal/net0", "blue", notify="silent")
    mortal.kill()
    await mortal.stop()
    args = [arg for n in (0, 1) for arg in hub_args(f"net{n}", mac=mac_of(9, n))]
    async with another_guest(built.lab, "mortal", args):
        nics = [nic for nic in await links.nics() if nic.ref.vm == "mortal"]
        assert {nic.state for nic in nics} == {NicState.UNPLUGGED}
        await links.plug("mortal/net0", "blue", notify="silent")
        assert len(await links.connections()) == 1
    built.lab.guests["mortal"] = mortal
