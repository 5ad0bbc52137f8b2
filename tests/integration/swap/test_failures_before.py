"""What fails before the switch leaves the guest on its cable: nothing lost, nothing left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from linkmgr.errors import (
    CommandFailed,
    Denied,
    LinkBusy,
    LinkmgrError,
    LinkMissing,
    NameTaken,
    NotForwarding,
)
from linkmgr.swap.steps import Step
from tests.integration.failures_lab import (
    NIC,
    Scene,
    is_told,
    known_ids,
    no_frame_lost,
    no_permission,
    nothing_left,
    scene_on_blue,
    spare,
    traces,
)

__all__ = ["scene_on_blue", "spare"]  # fixtures

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def stays_on_blue(
    scene: Scene, kind: type[LinkmgrError], match: str, *, target: str = "red"
) -> AsyncIterator[None]:
    """Plugging into `target` fails like this once the block is over, and harms nothing."""
    blue = scene.lab.peers["blue"]
    before = await traces(scene.lab)
    async with no_frame_lost(scene.guest, blue):
        yield
        with pytest.raises(kind, match=match) as caught:
            await scene.lab.links.plug(NIC, target)
    assert type(caught.value) is kind
    is_told(caught.value, state="plugged into blue, link up")
    assert await scene.state() == "plugged blue"
    await nothing_left(scene.lab, before)


@pytest.fixture
def same_id(monkeypatch: pytest.MonkeyPatch) -> str:
    """Every attachment gets this id, and so every device and backend a name that is known."""
    return known_ids(monkeypatch)


async def test_a_bridge_that_does_not_exist(scene: Scene, spare: str) -> None:
    async with stays_on_blue(scene, LinkMissing, "no device spare", target="spare"):
        pass


async def test_a_bridge_that_vanishes_while_the_cable_is_made(scene: Scene, spare: str) -> None:
    await scene.lab.sh("ip link add spare type bridge && ip link set spare up")
    scene.fault.at(Step.STAGE, lambda: scene.lab.sh("ip link del spare"))
    before = await traces(scene.lab)
    async with no_frame_lost(scene.guest, scene.lab.peers["blue"]):
        with pytest.raises(LinkMissing, match="spare") as caught:
            await scene.lab.links.plug(NIC, "spare")
    is_told(caught.value, state="plugged into blue, link up")
    before["links"] = [name for name in before["links"] if name != "spare"]  # type: ignore[attr-defined]
    await nothing_left(scene.lab, before)


async def test_a_device_of_the_bridges_name_that_is_no_bridge(scene: Scene, spare: str) -> None:
    await scene.lab.sh("ip link add spare type veth peer name spare2")
    async with stays_on_blue(scene, LinkBusy, "spare is a veth device", target="spare"):
        pass


@pytest.mark.parametrize("parent", ["missing", "vanished"])
async def test_a_parent_that_does_not_exist_or_vanishes(
    scene: Scene, spare: str, parent: str
) -> None:
    if parent == "vanished":
        await scene.lab.sh("ip link add spare type veth peer name spare2 && ip link set spare up")
        scene.fault.at(Step.STAGE, lambda: scene.lab.sh("ip link del spare"))
    before = await traces(scene.lab)
    async with no_frame_lost(scene.guest, scene.lab.peers["blue"]):
        with pytest.raises(LinkMissing, match="no device spare") as caught:
            await scene.lab.links.plug(NIC, "spare-direct")
    is_told(caught.value, state="plugged into blue, link up")
    gone = ("spare", "spare2")
    before["links"] = [name for name in before["links"] if name not in gone]  # type: ignore[attr-defined]
    await nothing_left(scene.lab, before)


async def test_a_parent_that_is_a_port_of_a_bridge(scene: Scene, spare: str) -> None:
    await scene.lab.sh("ip link add spare type veth peer name spare2")
    await scene.lab.sh("ip link set spare master br-red up")
    async with stays_on_blue(scene, LinkBusy, "spare is a port of br-red", target="spare-direct"):
        pass


async def test_a_parent_that_somebody_passes_through(scene: Scene, spare: str) -> None:
    await scene.lab.sh("ip link add spare type veth peer name spare2 && ip link set spare up")
    await scene.lab.sh("ip link add link spare name spare3 type macvtap mode passthru")
    async with stays_on_blue(scene, LinkBusy, "spare3 alone", target="spare-direct"):
        pass


@pytest.mark.parametrize("target", ["red", "green"])
async def test_a_device_name_that_is_taken(scene: Scene, same_id: str, target: str) -> None:
    await scene.lab.sh(f"ip link add lm{same_id} type bridge")
    try:
        async with stays_on_blue(scene, NameTaken, f"lm{same_id}", target=target):
            pass
    finally:
        await scene.lab.sh(f"ip link del lm{same_id}")  # it is still there


@pytest.mark.parametrize("target", ["red", "green"])
async def test_a_backend_that_qemu_refuses(scene: Scene, same_id: str, target: str) -> None:
    backend = f"lmt-{same_id}"
    await scene.guest.qmp("netdev_add", type="user", id=backend)
    try:
        async with stays_on_blue(scene, CommandFailed, "netdev_add", target=target):
            pass
    finally:
        await scene.guest.qmp("netdev_del", id=backend)  # that of somebody else is still there


@pytest.mark.parametrize("target", ["red", "green"])
async def test_no_permission(scene: Scene, target: str) -> None:
    before = await traces(scene.lab)
    async with no_frame_lost(scene.guest, scene.lab.peers["blue"]):
        with no_permission(), pytest.raises(Denied, match="not permitted") as caught:
            await scene.lab.links.plug(NIC, target)
    is_told(caught.value, state="plugged into blue, link up")
    assert "CAP_NET_ADMIN" in str(caught.value)
    await nothing_left(scene.lab, before)


async def test_a_bridge_port_that_never_forwards(
    scene: Scene, spare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.lab.sh("ip link add spare type bridge stp_state 1 && ip link set spare up")
    monkeypatch.setattr("linkmgr.wirings.endpoints.host_side.FORWARDING_TIMEOUT_S", 0.3)
    async with stays_on_blue(scene, NotForwarding, "listening", target="spare"):
        pass
