"""Making taps: what they are, and that nothing is left when it goes wrong."""

from __future__ import annotations

import asyncio
import fcntl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.errors import BadName, HostError, NameTaken, Unsupported
from linkmgr.host import Host, device_name, new_id
from linkmgr.host.devices import tap as tap_module
from linkmgr.host.netlink.errors import KernelRefused
from tests.integration.host.host_kit import TAG, ip, veth

TUNGETIFF = 0x800454D2
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_PERSIST = 0x2, 0x1000, 0x4000, 0x100, 0x800


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Host() as made:
        yield made


@pytest.fixture
def name() -> str:
    return device_name("lm", new_id())


def flags(fd: int) -> int:
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
    found: int = struct.unpack_from("=16sH", answer)[1]
    return found


async def test_a_tap_is_up_tagged_and_of_the_right_sort(host: Host, name: str) -> None:
    tap = await host.open_tap(name, TAG, mtu=1400)
    with tap.fd:
        assert tap.device == await host.device(name)
        assert (tap.device.up, tap.device.mtu, tap.device.alias) == (True, 1400, str(TAG))
        assert tap.device.mac.startswith("fe:")
        found = flags(tap.fd.number)
        assert found & IFF_TAP
        assert found & IFF_NO_PI
        assert not found & (IFF_VNET_HDR | IFF_MULTI_QUEUE | IFF_PERSIST)


async def test_a_tap_goes_with_its_last_descriptor(host: Host, name: str) -> None:
    tap = await host.open_tap(name, TAG, mtu=1500)
    copy = tap.fd.dup()
    tap.fd.close()
    assert await host.find_device(name) is not None
    await copy.close_in_thread()
    assert await host.find_device(name) is None


async def test_a_tap_has_a_virtio_net_header_only_if_asked(host: Host, name: str) -> None:
    tap = await host.open_tap(name, TAG, mtu=1500, vnet_hdr=True)
    with tap.fd:
        assert flags(tap.fd.number) & IFF_VNET_HDR


async def test_a_tap_stays_down_if_asked(host: Host, name: str) -> None:
    tap = await host.open_tap(name, TAG, mtu=1500, up=False)
    with tap.fd:
        assert not tap.device.up


async def test_a_taken_name_is_refused_and_its_owner_untouched(host: Host) -> None:
    with veth() as (one, _):
        before = await host.device(one)
        with pytest.raises(NameTaken, match=one):
            await host.open_tap(one, TAG, mtu=1500)
        assert await host.device(one) == before


async def test_a_persistent_tap_of_somebody_else_is_not_taken_over(host: Host, name: str) -> None:
    ip(f"tuntap add {name} mode tap")
    try:
        with pytest.raises(NameTaken, match=name):
            await host.open_tap(name, TAG, mtu=1500)
        assert (await host.device(name)).alias is None
    finally:
        ip(f"link del {name}")


async def test_a_bad_name_is_refused(host: Host) -> None:
    with pytest.raises(BadName):
        await host.open_tap("../../etc", TAG, mtu=1500)


async def test_an_mtu_that_cannot_be_leaves_nothing(host: Host, name: str) -> None:
    with pytest.raises(HostError, match=name):
        await host.open_tap(name, TAG, mtu=1000000)
    assert await host.find_device(name) is None


async def test_without_dev_net_tun_the_error_says_so(
    host: Host, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tap_module, "TUN", str(tmp_path / "tun"))
    with pytest.raises(Unsupported, match="tun"):
        await host.open_tap(name, TAG, mtu=1500)


@pytest.mark.parametrize("step", ["disable_ipv6", "set_link"])
async def test_a_refusal_at_any_step_leaves_nothing(
    host: Host, name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KernelRefused(1, f"do {step} of {name}")

    monkeypatch.setattr(tap_module, step, refuse)
    with pytest.raises(HostError, match=f"do {step}"):
        await host.open_tap(name, TAG, mtu=1500)
    assert await host.find_device(name) is None


async def test_a_caller_that_leaves_at_any_moment_leaves_nothing(host: Host) -> None:
    for moment in range(30):
        name = device_name("lm", new_id())
        task = asyncio.create_task(host.open_tap(name, TAG, mtu=1500))
        await asyncio.sleep(moment * 0.0001)
        task.cancel()
        try:
            tap = await task
        except asyncio.CancelledError:
            assert await host.find_device(name) is None
        else:
            tap.fd.close()


async def test_many_taps_at_once_have_different_names_and_addresses(host: Host) -> None:
    names = [device_name("lm", new_id()) for _ in range(30)]
    taps = await asyncio.gather(*(host.open_tap(name, TAG, mtu=1500) for name in names))
    try:
        assert [tap.device.name for tap in taps] == names
        assert len({tap.device.mac for tap in taps}) == 30
    finally:
        await asyncio.gather(*(tap.fd.close_in_thread() for tap in taps))
