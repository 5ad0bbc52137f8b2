"""Reading devices and changing one thing of them."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest

from linkmgr.errors import BadName, HostError, LinkMissing, Unsupported
from linkmgr.host import Host
from linkmgr.model import OwnerTag
from tests.integration.host.host_kit import TAG, bridge, discarding, ip, veth


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Host() as made:
        yield made


async def test_a_device_is_read(host: Host) -> None:
    with veth() as (one, other):
        ip(f"link set {one} mtu 1400 address 52:54:00:AA:bb:0c alias hello")
        device = await host.device(one)
        assert (device.name, device.kind, device.mtu, device.up) == (one, "veth", 1400, True)
        assert (device.mac, device.alias, device.operstate) == ("52:54:00:aa:bb:0c", "hello", "up")
        assert device.carrier
        assert device.parent == (await host.device(other)).index
        assert (device.master, device.mode, device.port_state) == (None, None, None)
        assert await host.device(device.index) == device


async def test_a_device_that_is_down_says_so(host: Host) -> None:
    with veth() as (one, other):
        ip(f"link set {one} down")
        assert not (await host.device(one)).up
        device = await host.device(other)
        assert (device.up, device.carrier, device.operstate) == (True, False, "lowerlayerdown")


async def test_a_missing_device_is_missing(host: Host) -> None:
    assert await host.find_device("nothere") is None
    assert await host.find_device(99999) is None
    with pytest.raises(LinkMissing, match="no device nothere"):
        await host.device("nothere")
    with pytest.raises(LinkMissing, match="index 99999"):
        await host.device(99999)


async def test_all_devices_are_listed(host: Host) -> None:
    with veth() as (one, other):
        devices = {device.name: device for device in await host.list_devices()}
        assert {one, other, "lo"} <= set(devices)
        assert devices[one] == await host.device(one)


async def test_lists_can_be_asked_for_at_once(host: Host) -> None:
    with bridge() as name, veth() as (one, _):
        ip(f"link set {one} master {name}")
        lists = await asyncio.gather(*(host.list_devices() for _ in range(60)))
        assert all(len(devices) == len(lists[0]) for devices in lists)
        await asyncio.gather(*(host.ports_with_mac("52:54:00:00:00:01", name) for _ in range(60)))


async def test_a_list_of_very_many_devices_is_complete(host: Host) -> None:
    names = [f"many{number}" for number in range(100)]
    async with discarding(host, *names):
        for name in names:
            ip(f"link add {name} type veth peer name {name}p")
        found = {device.name for device in await host.list_devices()}
        assert {*names, *(f"{name}p" for name in names)} <= found


async def test_only_what_carries_our_tag_is_ours(host: Host) -> None:
    with veth() as (one, other):
        before = await host.tagged_devices()
        await host.set_alias(one, TAG)
        ip(f"link set {other} alias linkmgr")
        found = [pair for pair in await host.tagged_devices() if pair not in before]
        assert found == [(TAG, await host.device(one))]
        assert found[0][0] == OwnerTag("web1/net0", "0123abcd")


async def test_single_things_are_changed_by_name_and_by_index(host: Host) -> None:
    with veth() as (one, _):
        index = (await host.device(one)).index
        for device in (one, index):
            await host.set_down(device)
            assert not (await host.device(one)).up
            await host.set_up(device)
            assert (await host.device(one)).up
        await host.set_mtu(one, 1300)
        await host.set_mac(index, "52:54:00:00:00:42")
        await host.set_alias(one, "text")
        await host.set_promiscuity(index, True)
        net_device = await host.device(one)
        assert (net_device.mtu, net_device.mac, net_device.alias) == (
            1300,
            "52:54:00:00:00:42",
            "text",
        )
        assert net_device.promisc
        await host.set_promiscuity(one, False)
        net_device = await host.device(one)
        assert not net_device.promisc
        assert net_device.up


@pytest.mark.parametrize(
    "change",
    [
        lambda host: host.set_up("nothere"),
        lambda host: host.set_down(99999),
        lambda host: host.set_mtu("nothere", 1500),
        lambda host: host.set_mac("nothere", "52:54:00:00:00:01"),
        lambda host: host.set_alias("nothere", TAG),
        lambda host: host.set_promiscuity("nothere", True),
        lambda host: host.detach_from_bridge("nothere"),
    ],
)
async def test_changing_a_missing_device_says_which_is_missing(host: Host, change: object) -> None:
    with pytest.raises(LinkMissing, match=r"nothere|99999"):
        await change(host)  # type: ignore[operator]


async def test_a_value_that_the_kernel_refuses_is_an_error_that_names_the_device(
    host: Host,
) -> None:
    with veth() as (one, _):
        with pytest.raises(HostError, match=rf"MTU of {one} to 1000000"):
            await host.set_mtu(one, 1000000)
        with pytest.raises(HostError, match=one):
            await host.set_mac(one, "01:00:00:00:00:01")  # multicast


@pytest.mark.parametrize("name", ["", "a/b", "x\n", "x" * 128])
async def test_a_name_that_no_device_can_have_is_refused(host: Host, name: str) -> None:
    for call in (host.device, host.find_device, host.delete_device, host.set_up):
        with pytest.raises(BadName):
            await call(name)


async def test_a_device_is_deleted_by_name_or_index_and_only_once(host: Host) -> None:
    with veth() as (one, _):
        assert await host.delete_device(one) is True
        assert await host.delete_device(one) is False
    with bridge() as name:
        index = (await host.device(name)).index
        assert await host.delete_device(index) is True
        assert await host.delete_device(index) is False


async def test_what_cannot_be_deleted_says_so(host: Host) -> None:
    with pytest.raises(Unsupported, match="remove lo"):
        await host.delete_device("lo")


async def test_without_privilege_every_change_says_what_is_missing() -> None:
    # In a process of its own, because a capability that was dropped does not come back.
    script = """
import asyncio, ctypes, json
from linkmgr.errors import HostError
from linkmgr.host import FdbEntry, Host
from linkmgr.model import DirectMode, OwnerTag
header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, none) == 0
async def main():
    found = []
    async with Host() as host:
        tag = OwnerTag("web1/net0", "0123abcd")
        for call in (
            host.create_bridge("lmdenied", tag, mtu=1500),
            host.open_tap("lmdenied", tag, mtu=1500),
            host.open_macvtap("lmdenied", "lo", tag, mode=DirectMode.BRIDGE,
                              mac="52:54:00:00:00:01", mtu=1500),
            host.set_up("lo"),
            host.delete_device("lo"),
            host.forget_fdb_entries(
                [FdbEntry("52:54:00:00:00:01", 1, None, static=False, local=False)], "lo"
            ),
        ):
            try:
                await call
            except HostError as error:
                found.append([error.code, error.hint])
        assert await host.find_device("lmdenied") is None
        assert (await host.device("lo")).up
    print(json.dumps(found))
asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", script, stdout=PIPE, stderr=PIPE
    )
    out, err = await child.communicate()
    assert child.returncode == 0, err.decode()
    found = json.loads(out)
    assert [code for code, _ in found] == ["denied"] * 6
    assert all("CAP_NET_ADMIN" in hint for _, hint in found)


async def test_outside_its_block_a_host_says_so() -> None:
    host = Host()
    with pytest.raises(RuntimeError, match="async with"):
        await host.find_device("lo")
    async with host:
        await host.device("lo")
    with pytest.raises(RuntimeError, match="async with"):
        await host.list_devices()
    async with host:  # it can be opened again
        await host.device("lo")
