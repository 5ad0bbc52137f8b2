"""Guests and linkmgr come and go, and each finds the other as it should be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkmgr import EventKind, LinkManager, NicState, hub_args
from linkmgr.drivers import Attachment
from linkmgr.drivers.bridge import BridgeDriver
from linkmgr.errors import HostError, MonitorError, SwitchFailed, UnknownVm
from linkmgr.host import Host
from linkmgr.swap.steps import Step
from linkmgr.testing import Guest
from linkmgr.testing.process import until
from tests.integration.lab import Lab, mac_of, make_lab
from tests.integration.monitor_proxy import MonitorProxy

NIC = "web1/net0"
STATIC = " ".join(f"lm.ip.eth0=10.{n}.0.2/24 lm.ip6.eth0=fd00:{n}::2/64" for n in (1, 2))


def own_devices() -> set[str]:
    """Devices of linkmgr on this host."""
    return {path.name for path in Path("/sys/class/net").glob("lm*")}


@pytest.mark.parametrize("first", ["blue", "green"])
async def test_a_new_linkmgr_moves_a_guest_on_from_the_cable_of_an_earlier_one(
    lab: Lab, first: str
) -> None:
    await lab.network("blue")
    await lab.network("green")
    guest = await lab.guest(cmdline=STATIC, add=False)
    async with LinkManager() as earlier:
        await earlier.add_vm("web1", guest.qmp_path)
        await earlier.create_network("blue", "bridge", bridge="br-blue")
        await earlier.create_network("green", "direct", parent="v-green")
        await earlier.plug(NIC, first)
    number = {"blue": 1, "green": 2}[first]
    assert (await guest.ping(f"10.{number}.0.1")).received, "a closed linkmgr hurts no guest"
    (nic,) = await lab.links.add_vm("web1", guest.qmp_path)
    assert nic.state is NicState.FOREIGN
    assert (await guest.ping(f"10.{number}.0.1")).received
    # The same network first: in the direct case the macvtap with the NIC's address is in the way.
    for network, at in ((first, number), ("blue", 1), ("green", 2)):
        await lab.links.plug(NIC, network)
        assert (await guest.ping(f"10.{at}.0.1")).received
        assert len(own_devices()) == 1
    await lab.links.unplug(NIC)
    assert own_devices() == set()
    assert await lab.links.check() == []


async def test_a_guest_notices_that_it_leaves_the_cable_of_an_earlier_linkmgr(lab: Lab) -> None:
    await lab.network("blue")
    await lab.network("green")
    guest = await lab.guest(cmdline="lm.dhcp=eth0", add=False)
    async with LinkManager() as earlier:
        await earlier.add_vm("web1", guest.qmp_path)
        await earlier.create_network("blue", "bridge", bridge="br-blue")
        await earlier.plug(NIC, "blue")
        await guest.wait_ipv4("eth0", "10.1.0.")
    await lab.links.add_vm("web1", guest.qmp_path)
    await lab.links.plug(NIC, "green")
    await guest.wait_ipv4("eth0", "10.2.0.")


async def test_both_nics_of_a_guest_notice_when_they_move_one_after_the_other(lab: Lab) -> None:
    for name in ("blue", "green", "red"):
        await lab.network(name)
    guest = await lab.guest(nics=2, cmdline="lm.dhcp=eth0,eth1")
    for nic in (0, 1):
        await lab.links.plug(f"web1/net{nic}", "blue")
        await guest.wait_ipv4(f"eth{nic}", "10.1.0.")
    for network, prefix in (("green", "10.2.0."), ("red", "10.3.0."), ("blue", "10.1.0.")):
        await lab.links.plug("web1/net0", network)
        await asyncio.sleep(0.3)  # within the second in which Linux does not look again
        await lab.links.plug("web1/net1", network)
        for nic in (0, 1):
            await guest.wait_ipv4(f"eth{nic}", prefix)


async def test_a_cable_that_qemu_does_not_let_go_of_is_never_joined_by_a_second(lab: Lab) -> None:
    """``-net user`` makes a hub port that netdev_del refuses."""
    await lab.network("blue")
    args = [
        "-net", "user,restrict=on",
        "-netdev", "hubport,id=h0,hubid=0", "-netdev", "hubport,id=sink0,hubid=0",
        "-device", f"virtio-net-pci,id=net0,netdev=h0,mac={mac_of(1, 0)}",
    ]  # fmt: skip
    guest = await lab.guest(nic_args=args, boot=False)
    before = await guest.qmp("human-monitor-command", **{"command-line": "info network"})
    with pytest.raises(SwitchFailed, match="web1/net0"):
        await lab.links.plug(NIC, "blue")
    assert own_devices() == set()
    assert before == await guest.qmp("human-monitor-command", **{"command-line": "info network"})


async def test_a_vm_is_removed_while_its_nic_is_being_plugged(tmp_path: Path) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(step: Step) -> None:
        if step is Step.STAGE:
            reached.set()
            await go_on.wait()

    async with make_lab(tmp_path, probe=hold) as lab:
        await lab.network("blue")
        await lab.guest(boot=False)
        plugging = asyncio.create_task(lab.links.plug(NIC, "blue"))
        await reached.wait()
        removing = asyncio.create_task(lab.links.remove_vm("web1"))
        await asyncio.sleep(0)
        go_on.set()
        await plugging
        assert await removing
        assert own_devices() == set()
        with pytest.raises(UnknownVm):
            await lab.links.plug(NIC, "blue")
        assert await lab.links.delete_network("blue")
        assert not await lab.links.remove_vm("web1")


async def test_a_vm_is_not_forgotten_while_something_of_it_is_left(tmp_path: Path) -> None:
    guests: list[Guest] = []

    async def stop(step: Step) -> None:
        if step is Step.RELEASE and guests:
            guests[0].signal(19)  # SIGSTOP

    async with make_lab(tmp_path, probe=stop, timeout=1) as lab:
        await lab.network("blue")
        guest = await lab.guest(boot=False)
        await lab.links.plug(NIC, "blue")
        guests.append(guest)
        with pytest.raises(MonitorError, match="web1/net0"):
            await lab.links.remove_vm("web1")
        guests.clear()
        guest.signal(18)  # SIGCONT

        async def cleared() -> bool:
            return not own_devices()

        await until(cleared, timeout=10, what="the old cable is taken down")
        assert await lab.links.remove_vm("web1")
        assert await lab.links.delete_network("blue")


@pytest.mark.parametrize("network", ["blue", "green"])
async def test_closing_right_after_a_guest_was_killed_leaves_no_device(
    tmp_path: Path, network: str
) -> None:
    async with make_lab(tmp_path) as lab:
        await lab.network(network)
        guest = await lab.guest(boot=False)
        await lab.links.plug(NIC, network)
        guest.kill()
        await guest.wait_exit()
        await lab.links.close()
        assert own_devices() == set()


async def test_a_guest_that_ends_is_told_and_frees_everything(lab: Lab) -> None:
    await lab.network("green")
    guest = await lab.guest(boot=False)
    events = lab.links.events()
    await lab.links.plug(NIC, "green")
    await guest.stop()
    kinds = []
    async with asyncio.timeout(10):
        async for event in events:
            kinds.append(event.kind)
            if event.kind is EventKind.VM_GONE:
                break
    assert kinds[0] is EventKind.PLUGGED
    (nic,) = await lab.links.nics()
    assert (nic.state, nic.connection) == (NicState.GONE, None)
    assert own_devices() == set()
    assert await lab.links.delete_network("green")


async def test_a_guests_new_address_is_followed_after_the_monitor_was_away(
    lab: Lab, tmp_path: Path
) -> None:
    await lab.network("green", trust_guest=True)
    guest = await lab.guest(cmdline=STATIC, add=False)
    async with MonitorProxy(tmp_path / "proxy", guest.qmp_path) as proxy:
        await lab.links.add_vm("web1", tmp_path / "proxy")
        await lab.links.plug(NIC, "green")
        (connection,) = await lab.links.connections()
    events = lab.links.events()
    mac = "52:54:00:aa:bb:cc"
    await guest.run(f"ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up")
    async with MonitorProxy(tmp_path / "proxy", guest.qmp_path) as proxy, Host() as host:
        assert proxy

        async def followed() -> bool:
            return (await host.device(connection.device)).mac == mac

        await until(followed, timeout=10, what="the macvtap has the guest's address")
        await lab.links.unplug(NIC)
        assert await lab.links.remove_vm("web1")
    assert events


async def test_a_nic_that_is_hot_unplugged_leaves_no_cable(lab: Lab) -> None:
    await lab.network("blue")
    args = [
        "-device", "pcie-root-port,id=slot1,chassis=1",
        *hub_args("net0", mac=mac_of(1, 0), properties="bus=slot1"),
        *hub_args("net1", mac=mac_of(1, 1)),
    ]  # fmt: skip
    guest = await lab.guest(nic_args=args)
    events = lab.links.events()
    await lab.links.plug(NIC, "blue")
    await guest.qmp("device_del", id="net0")
    async with asyncio.timeout(20):
        async for event in events:
            if event.kind is EventKind.NIC_GONE:
                break
    assert [str(nic.ref) for nic in await lab.links.nics()] == ["web1/net1"]
    assert own_devices() == set()


async def test_a_bridge_that_carries_a_macvtap_of_another_nic_stays(lab: Lab) -> None:
    await lab.links.create_network("made", "bridge", bridge="br-made", create=True)
    await lab.links.create_network("above", "direct", parent="br-made")
    await lab.guest(nics=2, boot=False)
    await lab.links.plug("web1/net0", "made")
    await lab.links.plug("web1/net1", "above")
    await lab.links.unplug("web1/net0")
    assert Path("/sys/class/net/br-made").exists()
    await lab.links.unplug("web1/net1")
    await lab.links.delete_network("made")
    assert not Path("/sys/class/net/br-made").exists()


async def test_an_odd_nic_keeps_no_other_from_being_managed(lab: Lab) -> None:
    args = [
        *hub_args("net0", mac=mac_of(1, 0)),
        "-netdev", "hubport,id=h1,hubid=1", "-netdev", "hubport,id=s1,hubid=1",
        "-device", f"virtio-net-pci,netdev=h1,mac={mac_of(1, 1)}",  # no id
        "-netdev", "hubport,id=h2,hubid=2", "-netdev", "hubport,id=s2,hubid=2",
        "-device", f"virtio-net-pci,id=net2,netdev=h2,mac={mac_of(1, 2)}",
        "-netdev", "user,id=u1,restrict=on", "-netdev", "hubport,id=c1,hubid=2,netdev=u1",
        "-netdev", "user,id=u2,restrict=on", "-netdev", "hubport,id=c2,hubid=2,netdev=u2",
    ]  # fmt: skip
    await lab.network("blue")
    await lab.guest(nic_args=args, boot=False)
    states = {nic.ref.alias: nic.state for nic in await lab.links.nics()}
    assert len(states) == 3
    assert states["net0"] is NicState.UNPLUGGED
    assert states["net2"] is NicState.FOREIGN
    assert (await lab.links.plug(NIC, "blue")).changed


async def test_what_a_dead_guest_held_is_freed_later_if_it_cannot_be_at_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the VM can be removed."""
    await lab.network("blue")
    await lab.links.create_port("blue", "one")
    guest = await lab.guest(boot=False)
    await lab.links.plug(NIC, "blue:one")
    terminate, failures = BridgeDriver.terminate_attachment, [1, 2]

    async def fails_twice(self: BridgeDriver, attachment: Attachment) -> None:
        if failures:
            failures.pop()
            raise HostError("not now")
        await terminate(self, attachment)

    monkeypatch.setattr(BridgeDriver, "terminate_attachment", fails_twice)
    monkeypatch.setattr("linkmgr.reconcile.supervisor.REFUSED_RETRY_INTERVAL_S", 0.1)
    events = lab.links.events()
    await guest.stop()
    async for event in events:
        if event.kind is EventKind.VM_GONE:
            break
    events.close()

    async def removed() -> bool:
        try:
            return await lab.links.remove_vm("web1")
        except MonitorError:
            return False

    await until(removed, timeout=5, what="the VM is removed")
    assert failures == []
    assert await lab.links.delete_port("blue", "one")
