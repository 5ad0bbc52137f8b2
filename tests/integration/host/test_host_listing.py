"""Devices are read as they are, all at once and one by one, whatever they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.host import Host
from linkmgr.host.netlink.dump import parse_device
from linkmgr.host.netlink.link import NetDevice, PortState
from linkmgr.testing.process import execute

DEVICES = """
set -e
ip netns add away
ip link add br0 type bridge
ip link add br1 group 27757 type bridge mcast_snooping 0
ip link add v0 type veth peer name v1
ip link add v2 type veth peer name eth0 netns away
ip link set v0 master br0 up
ip link set v1 up
ip tuntap add t0 mode tap
ip link set t0 master br0 alias 'Zürich: linkmgr:web1/net0:1234abcd'
ip link add m0 link v1 type macvtap mode vepa
ip link add m1 link v1 type macvlan mode private
ip link set m0 mtu 1400 allmulticast on promisc on up
ip link add vx type vxlan id 5 dev v1 dstport 4789
"""
CLEAN = "for d in br1 vx m1 m0 t0 v2 v0 br0; do ip link del $d; done; ip netns del away"


@pytest.fixture
async def devices() -> AsyncIterator[None]:
    try:
        await execute(["sh", "-c", DEVICES])
        yield
    finally:
        await execute(["sh", "-c", CLEAN], check=False)


async def test_every_device_is_what_iproute2_says_it_is(devices: None) -> None:
    async with Host() as host:
        listed = await host.list_devices()
        alone = [await host.find_device(device.name) for device in listed]
        assert [await host.find_device(device.index) for device in listed] == listed
    assert listed == alone
    said = json.loads((await execute(["ip", "-json", "-details", "link", "show"])).output)
    index = {each["ifname"]: each["ifindex"] for each in said}
    assert {"lo", "br0", "br1", "v0", "v1", "v2", "t0", "m0", "m1", "vx"} <= index.keys()
    assert {device.name: device.index for device in listed} == index
    for device, other in zip(listed, said, strict=True):
        info = other.get("linkinfo", {})
        port = info.get("info_slave_data", {}).get("state")
        data = info.get("info_data", {})
        assert device == NetDevice(
            index=other["ifindex"],
            name=other["ifname"],
            kind=info.get("info_kind"),
            mac=other["address"],
            mtu=other["mtu"],
            up="UP" in other["flags"],
            operstate=other["operstate"].lower(),
            carrier=device.carrier,  # it says so only in words that it leaves out
            master=index.get(other.get("master")),
            parent=index.get(other.get("link")),
            alias=other.get("ifalias"),
            mode=data.get("mode") if info.get("info_kind") in {"macvtap", "macvlan"} else None,
            promisc="PROMISC" in other["flags"],
            allmulti="ALLMULTI" in other["flags"],
            port_state=None if port is None else PortState[port.upper()],
            snooping=bool(data.get("mcast_snooping")),
            group=0 if other["group"] == "default" else int(other["group"]),
        )
    carriers = {device.name for device in listed if device.carrier}
    assert {"v0", "v1", "m0"} & carriers == {"v0", "v1", "m0"}
    assert "t0" not in carriers  # nobody has it open


async def test_a_device_that_is_not_there_is_none(devices: None) -> None:
    async with Host() as host:
        assert await host.find_device("nothing") is None
        assert await host.find_device(2**31 - 1) is None


async def test_what_was_asked_leaves_nothing_open(devices: None) -> None:
    async with Host() as host:
        await asyncio.gather(*(host.find_device("v0") for _ in range(50)), host.list_devices())
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(50):
            task = asyncio.create_task(host.list_devices())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_many_devices_are_listed_whole_by_many_who_ask_at_once() -> None:
    names = [f"many{number}" for number in range(150)]
    await execute(["sh", "-c", "set -e; for n in $0; do ip tuntap add $n mode tap; done",
                   " ".join(names)])  # fmt: skip
    try:
        async with Host() as host:
            answers = await asyncio.gather(*(host.list_devices() for _ in range(8)))
    finally:
        await execute(["sh", "-c", "for n in $0; do ip link del $n; done", " ".join(names)])
    for devices in answers:
        assert {device.name for device in devices} >= set(names)


def test_a_message_that_is_cut_short_is_no_endless_loop() -> None:
    start = bytes(16)
    assert parse_device(memoryview(start + b"\0\0\3\0")).name == ""
    assert parse_device(memoryview(start + b"\xff\xff\3\0ab")).name == "ab"
