"""What fails in the switch puts the old cable back, and the guest reaches its old network again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from linkmgr import LinkState, NicState, hub_args
from linkmgr.errors import (
    Denied,
    HostError,
    HubCrowded,
    LinkBusy,
    LinkmgrError,
    LinkMissing,
    NotForwarding,
    SwitchFailed,
)
from linkmgr.swap.steps import Step
from tests.integration.failures_lab import (
    NIC,
    Scene,
    another_guest,
    is_told,
    known_ids,
    make_scene,
    no_frame_lost,
    no_permission,
    nothing_left,
    scene,
    spare,
    traces,
)
from tests.integration.lab import mac_of

__all__ = ["scene", "spare"]  # fixtures

pytestmark = pytest.mark.asyncio(loop_scope="module")

STAGED = "lmt-0badcafe"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def built(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with make_scene(tmp_path_factory.mktemp("scene")) as made:
        for network in ("blue", "green"):
            for port in ("one", "two"):
                await made.lab.links.create_port(network, port)
        # On one parent the NIC's macvtap stays, and only its mode and MTU change.
        await made.lab.links.create_network("vepa", "direct", parent="v-green", mode="vepa")
        await made.lab.links.create_network(
            "private", "direct", parent="v-green", mode="private", mtu=1400
        )
        yield made


def in_the_switch(scene: Scene, command: str, **arguments: object) -> None:
    """Give QEMU a command over another monitor, just before the switch."""
    scene.fault.at(Step.SWITCH, lambda: scene.guest.qmp(command, **arguments))


async def is_back(scene: Scene, network: str, before: dict[str, object]) -> None:
    """The NIC is on the cable that it had, and frames flow."""
    await nothing_left(scene.lab, before)
    assert await scene.state() == f"plugged {network}"
    async with no_frame_lost(scene.guest, scene.lab.peers[network]):
        pass


@pytest.mark.parametrize(
    ("start", "target"),
    [
        ("blue:one", "red"),
        ("blue:one", "green:one"),
        ("blue:one", "blue:two"),
        ("green:one", "blue:one"),
    ],
)
async def test_a_new_cable_that_cannot_be_plugged(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, start: str, target: str
) -> None:
    await scene.plug(start)
    before = await traces(scene.lab)
    known_ids(monkeypatch)
    in_the_switch(scene, "netdev_del", id=STAGED)
    with pytest.raises(SwitchFailed, match="nothing is plugged in") as caught:
        await scene.lab.links.plug(NIC, target)
    network = start.partition(":")[0]
    is_told(caught.value, state=f"plugged into {start}, link up")
    await is_back(scene, network, before)


async def test_a_first_cable_that_cannot_be_plugged(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_ids(monkeypatch)
    before = await traces(scene.lab)
    in_the_switch(scene, "netdev_del", id=STAGED)
    with pytest.raises(SwitchFailed) as caught:
        await scene.lab.links.plug(NIC, "blue")
    is_told(caught.value, state="unplugged")
    assert (await scene.lab.links.nic(NIC)).link is LinkState.DOWN
    await nothing_left(scene.lab, before)


@pytest.mark.parametrize("start", ["blue:one", "green:one"])
async def test_an_old_cable_that_somebody_took_out_hinders_nobody(scene: Scene, start: str) -> None:
    await scene.plug(start)
    (connection,) = await scene.lab.links.connections()
    in_the_switch(scene, "netdev_del", id=f"lmp-{connection.attachment}")
    await scene.lab.links.plug(NIC, "red")
    assert await scene.state() == "plugged red"
    assert await scene.lab.links.check() == []


async def test_a_bridge_that_vanishes_in_the_switch(scene: Scene, spare: str) -> None:
    await scene.plug("blue")
    before = await traces(scene.lab)
    await scene.lab.sh("ip link add spare type bridge && ip link set spare up")
    scene.fault.at(Step.SWITCH, lambda: scene.lab.sh("ip link del spare"))
    with pytest.raises(NotForwarding, match="bridge spare does not exist any more") as caught:
        await scene.lab.links.plug(NIC, "spare")
    is_told(caught.value, state="plugged into blue, link up")
    await is_back(scene, "blue", before)


@pytest.mark.parametrize(
    ("command", "kind", "what"),
    [
        ("ip link del spare", LinkMissing, "is gone: somebody has deleted it, or its parent spare"),
        ("ip link del lm0badcafe", LinkMissing, "lm0badcafe is gone"),
        ("ip link set spare down", LinkBusy, "spare is down"),
        ("ip link set lm0badcafe down", LinkBusy, "lm0badcafe is down"),
    ],
)
@pytest.mark.parametrize("start", ["blue", None])
async def test_a_macvtap_that_reaches_nothing_by_the_time_of_the_switch(
    scene: Scene, spare: str, monkeypatch: pytest.MonkeyPatch,
    start: str | None, command: str, kind: type[LinkmgrError], what: str,
) -> None:  # fmt: skip
    if start:
        await scene.plug(start)
    before = await traces(scene.lab)
    known_ids(monkeypatch)
    await scene.lab.sh("ip link add spare type veth peer name spare-far && ip link set spare up")
    scene.fault.at(Step.SWITCH, lambda: scene.lab.sh(command))
    with pytest.raises(kind, match=what) as caught:
        await scene.lab.links.plug(NIC, "spare-direct")
    is_told(caught.value, state=f"plugged into {start}, link up" if start else "unplugged")
    await scene.lab.sh("ip link del spare 2>/dev/null || true")
    if start:
        await is_back(scene, start, before)
    else:
        await nothing_left(scene.lab, before)


async def test_a_parent_that_is_taken_down_under_a_macvtap_that_stays(scene: Scene) -> None:
    await scene.plug("green:one")
    before = await traces(scene.lab)
    scene.fault.at(Step.SWITCH, lambda: scene.lab.sh("ip link set v-green down"))
    try:
        with pytest.raises(LinkBusy, match="v-green is down") as caught:
            await scene.lab.links.plug(NIC, "private")
        is_told(caught.value, state="plugged into green:one, link up")
    finally:
        await scene.lab.sh("ip link set v-green up")
    await is_back(scene, "green", before)


@pytest.mark.parametrize("start", ["blue:one", "green:one"])
@pytest.mark.parametrize("target", ["red", "blue:two", "green:two", None])
async def test_an_old_cable_that_somebody_took_out_long_ago_hinders_nobody(
    scene: Scene, start: str, target: str | None
) -> None:
    await scene.plug(start)
    (connection,) = await scene.lab.links.connections()
    await scene.guest.qmp("netdev_del", id=f"lmp-{connection.attachment}")
    assert [each.code for each in await scene.lab.links.check()] == ["wrong-cable"]
    if target is None:
        await scene.lab.links.unplug(NIC)
    else:
        await scene.lab.links.plug(NIC, target)
        network = target.partition(":")[0]
        assert await scene.state() == f"plugged {network}"
        async with no_frame_lost(scene.guest, scene.lab.peers[network]):
            pass
    assert await scene.lab.links.check() == []


@pytest.mark.parametrize(
    ("start", "target"),
    [("blue:one", "red"), ("blue:one", "blue:two")],
)
async def test_a_permission_that_is_lost_in_the_switch(
    scene: Scene, start: str, target: str
) -> None:
    await scene.plug(start)
    before = await traces(scene.lab)
    with contextlib.ExitStack() as undo:

        async def lose() -> None:
            undo.enter_context(no_permission())

        scene.fault.at(Step.SWITCH, lose)
        with pytest.raises(Denied, match="not permitted") as caught:
            await scene.lab.links.plug(NIC, target)
    is_told(caught.value, state=f"plugged into {start}, link up")
    await is_back(scene, start.partition(":")[0], before)


async def shape(scene: Scene) -> tuple[str, str]:
    """Mode and MTU of the NIC's macvtap."""
    (connection,) = await scene.lab.links.connections()
    told = await scene.lab.sh(f"ip -d link show {connection.device}")
    words = told.split()
    return words[words.index("mode", words.index("macvtap")) + 1], words[words.index("mtu") + 1]


async def test_a_macvtap_that_stays_has_its_old_shape_again(scene: Scene) -> None:
    await scene.plug("green:one")
    before = await traces(scene.lab)
    assert await shape(scene) == ("bridge", "1500")
    # The mode can be changed then, but not the MTU: the parent has become too small for it.
    scene.fault.at(Step.SWITCH, lambda: scene.lab.sh("ip link set v-green mtu 1300"))
    try:
        with pytest.raises(HostError, match="MTU") as caught:
            await scene.lab.links.plug(NIC, "private")
        is_told(caught.value, state="plugged into green:one, link up")
        assert await shape(scene) == ("bridge", "1300")  # it follows its parent when that shrinks
    finally:
        await scene.lab.sh("ip link set v-green mtu 1500")
    (found,) = await scene.lab.links.check()  # but not when that grows, which a watch would repair
    assert found.code == "mtu-changed"
    await scene.lab.sh(found.hint.partition("'")[2].rpartition("'")[0])
    await is_back(scene, "green", before)


async def test_a_macvtap_that_stays_is_given_back_when_a_later_step_fails(scene: Scene) -> None:
    await scene.plug("green:one")
    before = await traces(scene.lab)
    scene.fault.at(Step.ACTIVATE, _no)
    with pytest.raises(HostError):
        await scene.lab.links.plug(NIC, "private")
    assert await shape(scene) == ("bridge", "1500")
    await is_back(scene, "green", before)
    await scene.lab.links.plug(NIC, "private", notify="silent")
    assert await shape(scene) == ("private", "1400")


async def test_a_cable_that_somebody_else_plugs_meanwhile(scene: Scene) -> None:
    await scene.plug("blue")
    before = await traces(scene.lab)

    async def meddle() -> None:
        hub = await scene.guest.qmp("human-monitor-command", **{"command-line": "info network"})
        number = int(hub.split()[1])
        await scene.guest.qmp("netdev_add", type="user", id="theirs")
        await scene.guest.qmp(
            "netdev_add", type="hubport", id="theirs-port", hubid=number, netdev="theirs"
        )

    scene.fault.at(Step.SWITCH, meddle)
    with pytest.raises(SwitchFailed) as caught:
        await scene.lab.links.plug(NIC, "red")
    is_told(caught.value, state="plugged into blue, link up")
    # Never two cables on one hub: that would join two networks. And nobody else's is taken out.
    found = await scene.lab.links.check()
    assert [finding.code for finding in found] == ["wrong-cable", "port-shut", "leftover"]
    with pytest.raises(HubCrowded, match="theirs"):
        await scene.lab.links.plug(NIC, "red")
    for name in ("theirs-port", "theirs"):
        await scene.guest.qmp("netdev_del", id=name)
    # The next verb puts the own one back first, even if it has nothing else to do.
    assert not (await scene.lab.links.plug(NIC, "blue")).changed
    await is_back(scene, "blue", before)


@pytest.mark.parametrize("target", ["red", None])
async def test_a_cable_that_linkmgr_did_not_plug_is_put_back_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, target: str | None
) -> None:
    args = [*hub_args("net0", mac=mac_of(9, 0), hub=7), "-netdev", "user,id=theirs"]
    args += ["-netdev", "hubport,id=theirs-port,hubid=7,netdev=theirs"]
    lab, nic = scene.lab, "foreign/net0"
    before_all = await traces(lab)
    async with another_guest(lab, "foreign", args) as guest:
        assert (await lab.links.nic(nic)).state is NicState.FOREIGN
        before = await traces(lab)
        if target:
            known_ids(monkeypatch)
            scene.fault.at(Step.SWITCH, lambda: guest.qmp("netdev_del", id=STAGED))
        else:
            scene.fault.at(Step.SWITCH, _no)
        with pytest.raises(LinkmgrError) as caught:
            await (lab.links.plug(nic, target) if target else lab.links.unplug(nic))
        is_told(caught.value, state="on a cable that linkmgr did not plug", nic=nic)
        assert (await lab.links.nic(nic)).link in (None, LinkState.UP)
        await nothing_left(lab, before)
    await nothing_left(lab, before_all)


async def _no() -> None:
    raise HostError("no", hint="try again")
