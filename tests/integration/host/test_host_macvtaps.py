"""Making macvtaps: on which parents, in which modes, with which node; what arrives at them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from linkmgr.errors import Denied, HostError, LinkBusy, LinkMissing, NameTaken, Unsupported
from linkmgr.host import Host, Tap, device_name, new_id, private_mac
from linkmgr.host.devices import macvtap as macvtap_module
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.model import DirectMode, OwnerTag
from tests.integration.host.host_kit import (
    NIC,
    PEER,
    TAG,
    Wire,
    bridge,
    discarding,
    frame,
    read_within,
    veth,
)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Host() as made:
        yield made


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    with veth() as ends:
        yield ends


@pytest.fixture
def name() -> str:
    return device_name("lm", new_id())


async def make(
    host: Host, name: str, parent: str, *, mode: DirectMode = DirectMode.BRIDGE,
    mac: str = NIC, mtu: int = 1500, tag: OwnerTag = TAG, up: bool = True,
) -> Tap:  # fmt: skip
    return await host.open_macvtap(name, parent, tag, mode=mode, mac=mac, mtu=mtu, up=up)


@pytest.mark.parametrize("mode", list(DirectMode))
async def test_a_macvtap_is_up_tagged_and_of_its_mode(
    host: Host, cable: tuple[str, str], name: str, mode: DirectMode
) -> None:
    async with discarding(host, name):
        tap = await make(host, name, cable[0], mode=mode, mtu=1400)
        with tap.fd:
            device = tap.device
            assert device == await host.device(name)
            assert (device.kind, device.mode, device.mac, device.mtu) == (
                "macvtap",
                mode,
                NIC,
                1400,
            )
            assert (device.up, device.allmulti, device.alias) == (True, True, str(TAG))
            assert device.parent == (await host.device(cable[0])).index


@pytest.mark.parametrize("mode", list(DirectMode))
async def test_frames_for_the_nic_arrive_and_what_it_sends_leaves(
    host: Host, cable: tuple[str, str], name: str, mode: DirectMode
) -> None:
    async with discarding(host, name):
        tap = await make(host, name, cable[0], mode=mode)
        with tap.fd, Wire(cable[1]) as wire:
            wire.send(frame(NIC, PEER, "to the NIC"))
            assert await read_within(tap.fd) == ["to the NIC"]
            os.write(tap.fd.number, frame(PEER, NIC, "from the NIC"))
            assert frame(PEER, NIC, "from the NIC") in wire.frames()


@pytest.mark.parametrize("mode", list(DirectMode))
async def test_all_multicast_arrives_from_the_start(
    host: Host, cable: tuple[str, str], name: str, mode: DirectMode
) -> None:
    # A neighbour solicitation goes to 33:33:ff and the end of the address that is looked for.
    async with discarding(host, name):
        tap = await make(host, name, cable[0], mode=mode)
        with tap.fd, Wire(cable[1]) as wire:
            for dst in ("33:33:ff:00:00:01", "01:00:5e:01:02:03", "ff:ff:ff:ff:ff:ff"):
                wire.send(frame(dst, PEER, f"to {dst}"))
                assert await read_within(tap.fd) == [f"to {dst}"]


async def test_frames_for_others_arrive_only_in_passthru_mode(
    host: Host, cable: tuple[str, str]
) -> None:
    for mode in DirectMode:
        name = device_name("lm", new_id())
        async with discarding(host, name):
            tap = await make(host, name, cable[0], mode=mode)
            with tap.fd, Wire(cable[1]) as wire:
                wire.send(frame("52:54:00:00:00:77", PEER, "to another"))
                wire.send(frame(NIC, PEER, "end"))
                first = (await read_within(tap.fd))[0]
                assert first == ("to another" if mode is DirectMode.PASSTHRU else "end")


async def test_passthru_gives_the_parent_its_address_back(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    before = await host.device(cable[0])
    async with discarding(host, name):
        tap = await make(host, name, cable[0], mode=DirectMode.PASSTHRU)
        assert (await host.device(cable[0])).mac == NIC
        tap.fd.close()
    assert (await host.device(cable[0])).mac == before.mac


async def test_the_link_outlives_its_descriptor(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    tap = await make(host, name, cable[0])
    await tap.fd.close_in_thread()
    assert await host.find_device(name) is not None
    assert await host.delete_device(name)


# --- parents ---


async def test_a_missing_parent_is_named(host: Host, name: str) -> None:
    for call in (
        make(host, name, "nothere"),
        host.ensure_parent_usable("nothere", DirectMode.BRIDGE),
    ):
        with pytest.raises(LinkMissing, match="nothere, needed as the parent"):
            await call


async def test_a_parent_that_is_down_is_refused_but_can_be_made_usable(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    await host.set_down(cable[0])
    with pytest.raises(LinkBusy, match=f"{cable[0]} is down"):
        await make(host, name, cable[0])
    assert await host.find_device(name) is None
    parent = await host.ensure_parent_usable(cable[0], DirectMode.BRIDGE)
    assert parent.up
    assert parent == await host.device(cable[0])


async def test_a_parent_that_is_a_bridge_port_names_the_bridge(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    with bridge(cable[0]) as over:
        for call in (
            make(host, name, cable[0]),
            host.ensure_parent_usable(cable[0], DirectMode.VEPA),
        ):
            with pytest.raises(LinkBusy, match=f"{cable[0]} is a port of {over}"):
                await call
    assert await host.find_device(name) is None


async def test_a_bridge_itself_can_be_a_parent(host: Host, name: str) -> None:
    with bridge() as over:
        async with discarding(host, name):
            tap = await make(host, name, over)
            tap.fd.close()


async def test_a_parent_in_passthru_names_who_has_it(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    first = device_name("lm", new_id())
    async with discarding(host, first):
        (await make(host, first, cable[0], mode=DirectMode.PASSTHRU)).fd.close()
        for mode in DirectMode:
            for call in (
                make(host, name, cable[0], mode=mode, mac=private_mac()),
                host.ensure_parent_usable(cable[0], mode),
            ):
                with pytest.raises(LinkBusy, match=rf"{first} \(of web1/net0\).*passthru"):
                    await call
        assert await host.find_device(name) is None


async def test_passthru_beside_others_names_them(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    first = device_name("lm", new_id())
    async with discarding(host, first):
        (await make(host, first, cable[0])).fd.close()
        for call in (
            make(host, name, cable[0], mode=DirectMode.PASSTHRU, mac=private_mac()),
            host.ensure_parent_usable(cable[0], DirectMode.PASSTHRU),
        ):
            with pytest.raises(LinkBusy, match=rf"others on it \({first} \(of web1/net0\)\)"):
                await call
        assert await host.find_device(name) is None


async def test_two_modes_share_a_parent(host: Host, cable: tuple[str, str], name: str) -> None:
    other = device_name("lm", new_id())
    async with discarding(host, name, other):
        (await make(host, name, cable[0], mode=DirectMode.BRIDGE)).fd.close()
        (await make(host, other, cable[0], mode=DirectMode.VEPA, mac=private_mac())).fd.close()


async def test_an_address_that_is_taken_names_who_has_it(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    first = device_name("lm", new_id())
    async with discarding(host, first, name):
        (await make(host, first, cable[0])).fd.close()
        with pytest.raises(
            LinkBusy, match=rf"{name} .*{NIC} .*belongs to {first} \(of web1/net0\)"
        ):
            await make(host, name, cable[0])
        assert await host.find_device(name) is None
        (await make(host, name, cable[0], mac=private_mac())).fd.close()
        with pytest.raises(LinkBusy, match=rf"{name} .*{NIC} .*belongs to {first}"):
            await host.set_mac(name, NIC)


async def test_a_macvtap_that_stays_down_may_have_an_address_that_is_taken(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    first = device_name("lm", new_id())
    async with discarding(host, first, name):
        (await make(host, first, cable[0])).fd.close()
        tap = await make(host, name, cable[0], up=False)
        tap.fd.close()
        assert (tap.device.up, tap.device.mac) == (False, NIC)


async def test_an_mtu_above_the_parents_says_so(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    with pytest.raises(HostError, match=f"cannot carry 9000 bytes: its parent {cable[0]} .* 1500"):
        await make(host, name, cable[0], mtu=9000)
    assert await host.find_device(name) is None


async def test_what_is_no_ethernet_device_cannot_be_a_parent(host: Host, name: str) -> None:
    with pytest.raises(Unsupported, match="lo cannot carry a macvtap"):
        await make(host, name, "lo", mtu=1500)


async def test_a_taken_name_is_refused_and_its_owner_untouched(
    host: Host, cable: tuple[str, str]
) -> None:
    before = await host.device(cable[1])
    with pytest.raises(NameTaken, match=cable[1]):
        await make(host, cable[1], cable[0])
    assert await host.device(cable[1]) == before


# --- nodes ---


async def test_it_is_opened_without_a_node_in_dev(
    host: Host, cable: tuple[str, str], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(macvtap_module, "_DEV", tmp_path)
    async with discarding(host, name):
        (await make(host, name, cable[0])).fd.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_wrong_node_in_dev_is_not_opened(
    host: Host, cable: tuple[str, str], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The node of another network namespace can have this name.
    async with discarding(host, name):
        tap = await make(host, name, cable[0])
        tap.fd.close()
        os.mknod(tmp_path / f"tap{tap.device.index}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        monkeypatch.setattr(macvtap_module, "_DEV", tmp_path)
        with macvtap_module.open_macvtap_fd(name, tap.device.index) as queue:
            assert os.fstat(queue.number).st_rdev != os.makedev(1, 3)


def no_private_node(*_: object) -> int:
    raise PermissionError(1, "Operation not permitted")


async def test_where_no_node_can_be_made_the_one_in_dev_is_used(
    host: Host, cable: tuple[str, str], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with discarding(host, name):
        tap = await make(host, name, cable[0])
        number = os.fstat(tap.fd.number).st_rdev
        tap.fd.close()
        monkeypatch.setattr(macvtap_module, "_DEV", tmp_path)
        monkeypatch.setattr(macvtap_module, "_open_private_node", no_private_node)
        with pytest.raises(KernelRefused):
            macvtap_module.open_macvtap_fd(name, tap.device.index)
        node = tmp_path / f"tap{tap.device.index}"
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        with pytest.raises(KernelRefused):
            macvtap_module.open_macvtap_fd(name, tap.device.index)
        node.unlink()
        os.mknod(node, stat.S_IFCHR | 0o600, number)
        with macvtap_module.open_macvtap_fd(name, tap.device.index) as queue:
            assert os.fstat(queue.number).st_rdev == number


async def test_the_sysfs_of_another_namespace_is_noticed(
    host: Host, cable: tuple[str, str], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(macvtap_module, "_SYSFS", tmp_path)
    with pytest.raises(Unsupported, match="must be that of this network namespace"):
        await make(host, name, cable[0])
    assert await host.find_device(name) is None


# --- failures ---


@pytest.mark.parametrize("step", ["disable_ipv6", "set_link", "open_macvtap_fd", "index_of"])
async def test_a_refusal_at_any_step_leaves_nothing(
    host: Host, cable: tuple[str, str], name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KernelRefused(1, f"do {step} of {name}")

    monkeypatch.setattr(macvtap_module, step, refuse)
    with pytest.raises(Denied, match=f"do {step}"):
        await make(host, name, cable[0])
    assert await host.find_device(name) is None


async def test_a_caller_that_leaves_at_any_moment_leaves_nothing(
    host: Host, cable: tuple[str, str]
) -> None:
    for moment in range(25):
        name = device_name("lm", new_id())
        task = asyncio.create_task(make(host, name, cable[0]))
        await asyncio.sleep(moment * 0.0002)
        task.cancel()
        try:
            tap = await task
        except asyncio.CancelledError:
            assert await host.find_device(name) is None
        else:
            tap.fd.close()
            await host.delete_device(name)


# --- changes ---


async def test_its_address_changes_while_it_is_up_and_takes_effect(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    async with discarding(host, name):
        tap = await make(host, name, cable[0])
        with tap.fd, Wire(cable[1]) as wire:
            await host.set_mac(name, "52:54:00:00:00:55")
            wire.send(frame(NIC, PEER, "to the old address"))
            wire.send(frame("52:54:00:00:00:55", PEER, "to the new address"))
            assert await read_within(tap.fd) == ["to the new address"]
            assert (await host.device(name)).up


async def test_its_mode_changes_but_not_into_passthru(
    host: Host, cable: tuple[str, str], name: str
) -> None:
    async with discarding(host, name):
        with (await make(host, name, cable[0])).fd:
            await host.set_macvtap_mode(name, DirectMode.PRIVATE)
            assert (await host.device(name)).mode == "private"
            with pytest.raises(HostError, match=f"set {name} to mode passthru"):
                await host.set_macvtap_mode(name, DirectMode.PASSTHRU)
            assert (await host.device(name)).mode == "private"


@pytest.mark.parametrize("free", [0, 1, 2, 3])
async def test_a_macvtap_is_opened_or_not_with_few_descriptors_but_nothing_is_lost(
    host: Host, cable: tuple[str, str], name: str, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(_: Path) -> os.stat_result:
        raise FileNotFoundError

    async with discarding(host, name):
        tap = await make(host, name, cable[0])
        tap.fd.close()
        index = (await host.device(name)).index
        monkeypatch.setattr(Path, "lstat", no_device)  # as without the kernel's own node
        folders = set(Path("/dev").glob("linkmgr-*"))
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        last = os.dup(0)
        os.close(last)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + free, before[1]))
        try:
            with (
                contextlib.suppress(OSError, KernelRefused),
                macvtap_module.open_macvtap_fd(name, index),
            ):
                pass
            assert os.dup(0) == last if free else True
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        if free:
            os.close(last)
        assert set(Path("/dev").glob("linkmgr-*")) == folders
