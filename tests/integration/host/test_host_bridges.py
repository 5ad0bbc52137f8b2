"""Bridges and their ports: options before traffic, forwarding before success."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from linkmgr.errors import HostError, LinkBusy, LinkMissing, NameTaken, NotForwarding
from linkmgr.host import Host, PortState, Tap, device_name, new_id
from linkmgr.host.devices import bridge as bridge_module
from linkmgr.host.netlink.changes import set_bridge_port
from linkmgr.host.netlink.errors import KernelRefused
from tests.integration.host.host_kit import (
    NIC,
    PEER,
    TAG,
    Wire,
    bridge,
    discarding,
    frame,
    ip,
    read_within,
    veth,
)

PLAIN = {"isolated": False, "hairpin": False, "learning": True}
STP = "stp_state 1 forward_delay 200 mcast_snooping 0"  # two seconds of each


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Host() as made:
        yield made


@pytest.fixture
async def tap(host: Host) -> AsyncIterator[Tap]:
    made = await host.open_tap(device_name("lm", new_id()), TAG, mtu=1500)
    with made.fd:
        yield made


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    with veth() as ends:
        yield ends


def port_options(name: str) -> dict[str, bool]:
    files = {"isolated": "isolated", "hairpin": "hairpin_mode", "learning": "learning"}
    port = Path("/sys/class/net", name, "brport")
    return {key: (port / file).read_text().strip() == "1" for key, file in files.items()}


async def test_a_bridge_is_up_tagged_and_keeps_its_mtu(host: Host) -> None:
    async with discarding(host, "lmbr0"):
        device = await host.create_bridge("lmbr0", TAG, mtu=1400)
        assert (device.kind, device.up, device.mtu, device.alias) == (
            "bridge",
            True,
            1400,
            str(TAG),
        )
        with veth() as (one, _):
            ip(f"link set {one} mtu 1300 master lmbr0")
            found = await host.device("lmbr0")
            assert (found.mtu, found.mac) == (1400, device.mac)


async def test_a_taken_name_is_refused_and_its_owner_untouched(host: Host) -> None:
    with bridge() as name:
        before = await host.device(name)
        with pytest.raises(NameTaken, match=name):
            await host.create_bridge(name, TAG, mtu=1500)
        assert await host.device(name) == before


async def test_a_bridge_that_cannot_be_finished_is_not_left(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HostError, match="lmbr0"):
        await host.create_bridge("lmbr0", TAG, mtu=1000000)
    assert await host.find_device("lmbr0") is None

    def refuse(*_: object) -> None:
        raise KernelRefused(1, "disable IPv6")

    monkeypatch.setattr(bridge_module, "disable_ipv6", refuse)
    with pytest.raises(HostError, match="disable IPv6"):
        await host.create_bridge("lmbr0", TAG, mtu=1500)
    assert await host.find_device("lmbr0") is None


async def test_a_caller_that_leaves_at_any_moment_leaves_no_bridge(host: Host) -> None:
    for moment in range(12):
        async with discarding(host, "lmbr0"):
            task = asyncio.create_task(host.create_bridge("lmbr0", TAG, mtu=1500))
            await asyncio.sleep(moment * 0.0003)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                assert await host.find_device("lmbr0") is None


@pytest.mark.parametrize("option", ["isolated", "hairpin", "learning", None])
@pytest.mark.parametrize("up", [True, False])
async def test_a_port_forwards_and_has_its_options(
    host: Host, option: str | None, up: bool
) -> None:
    options = {key: key == option for key in PLAIN}
    with bridge() as over:
        tap = await host.open_tap(device_name("lm", new_id()), TAG, mtu=1500, up=up)
        with tap.fd:
            await host.attach_to_bridge(tap.device.name, over, **options)
            assert port_options(tap.device.name) == options
            device = await host.device(tap.device.name)
            assert device.master == (await host.device(over)).index
            assert (device.up, device.port_state) == (True, PortState.FORWARDING)


async def test_attaching_again_changes_the_options(host: Host, tap: Tap) -> None:
    with bridge() as over:
        await host.attach_to_bridge(tap.device.name, over, **PLAIN)
        other = {"isolated": True, "hairpin": True, "learning": False}
        await host.attach_to_bridge(tap.device.name, over, **other)
        assert port_options(tap.device.name) == other


async def test_a_port_is_taken_off_once_or_twice(host: Host, tap: Tap) -> None:
    with bridge() as over:
        await host.attach_to_bridge(tap.device.name, over, **PLAIN)
        for _ in range(2):
            await host.detach_from_bridge(tap.device.name)
            assert (await host.device(tap.device.name)).master is None


async def test_frames_pass_both_ways(host: Host, tap: Tap, cable: tuple[str, str]) -> None:
    with bridge(cable[0]) as over, Wire(cable[1]) as wire:
        await host.attach_to_bridge(tap.device.name, over, **PLAIN)
        wire.send(frame(NIC, PEER, "in"))
        assert await read_within(tap.fd) == ["in"]
        os.write(tap.fd.number, frame(PEER, NIC, "out"))
        assert frame(PEER, NIC, "out") in wire.frames()


async def test_what_is_missing_is_named(host: Host, tap: Tap) -> None:
    with pytest.raises(LinkMissing, match="no device nobridge, needed as a bridge"):
        await host.attach_to_bridge(tap.device.name, "nobridge", **PLAIN)
    with bridge() as over, pytest.raises(LinkMissing, match="no device notap"):
        await host.attach_to_bridge("notap", over, **PLAIN)


async def test_what_is_no_bridge_is_not_taken_for_one(
    host: Host, tap: Tap, cable: tuple[str, str]
) -> None:
    with pytest.raises(LinkBusy, match=f"{cable[0]} is not a bridge but a veth"):
        await host.attach_to_bridge(tap.device.name, cable[0], **PLAIN)
    assert (await host.device(tap.device.name)).master is None


async def test_a_port_of_another_bridge_is_not_stolen(host: Host, tap: Tap) -> None:
    with bridge() as one, bridge() as other:
        await host.attach_to_bridge(tap.device.name, one, **PLAIN)
        with pytest.raises(LinkBusy, match=f"{tap.device.name} is a port of {one}"):
            await host.attach_to_bridge(tap.device.name, other, **PLAIN)
        assert (await host.device(tap.device.name)).master == (await host.device(one)).index


async def test_a_device_that_no_bridge_takes_is_refused(host: Host) -> None:
    with bridge() as over, bridge() as no_port:
        refusal = pytest.raises(HostError, match=f"put {no_port} on the bridge")
        with refusal:
            await host.attach_to_bridge(no_port, over, **PLAIN)


async def test_a_bridge_that_is_down_forwards_nothing(host: Host, tap: Tap) -> None:
    with bridge() as over:
        await host.set_down(over)
        with pytest.raises(NotForwarding, match=f"bridge {over} is down"):
            await host.attach_to_bridge(tap.device.name, over, **PLAIN)
        assert (await host.device(tap.device.name)).master is None


async def test_with_a_spanning_tree_it_waits_until_the_port_forwards(host: Host, tap: Tap) -> None:
    with bridge(options=STP) as over:
        start = time.monotonic()
        await host.attach_to_bridge(tap.device.name, over, **PLAIN, timeout=10)
        assert time.monotonic() - start > 3
        assert (await host.device(tap.device.name)).port_state is PortState.FORWARDING


async def test_when_the_time_is_over_the_port_is_off_the_bridge_again(host: Host, tap: Tap) -> None:
    with bridge(options=STP) as over:
        with pytest.raises(
            NotForwarding, match=f"{tap.device.name} is a port of {over} .*listening"
        ):
            await host.attach_to_bridge(tap.device.name, over, **PLAIN, timeout=0.2)
        assert (await host.device(tap.device.name)).master is None


def set_by_somebody(name: str) -> bool:
    return Path("/sys/class/net", name, "addr_assign_type").read_text().strip() == "3"


async def test_a_bridge_keeps_its_address_while_our_taps_come_and_go(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Else every guest loses the host, which is what the bridge's address is there for."""
    caplog.set_level(logging.INFO, "linkmgr")
    with bridge() as over:
        ip(f"addr add 10.9.0.1/24 dev {over}")
        had = (await host.device(over)).mac
        seen = []
        taps: list[Tap] = []
        with contextlib.ExitStack() as at_the_end:
            for moment in ("join", "join", "leave", "join", "leave", "leave", "join"):
                if moment == "join":
                    made = await host.open_tap(device_name("lm", new_id()), TAG, mtu=1500)
                    at_the_end.enter_context(made.fd)
                    taps.append(made)
                    await host.attach_to_bridge(made.device.name, over, **PLAIN)
                else:
                    await taps.pop(0).fd.close_in_thread()
                seen.append((await host.device(over)).mac)
        assert seen == [had] * len(seen)
        told = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
        assert told == [f"bridge {over} keeps its address {had}, whichever taps come and go"]


async def test_a_bridge_that_has_lost_its_address_is_given_one(host: Host, tap: Tap) -> None:
    """The kernel leaves a bridge whose last port goes without any, which cannot be set."""
    with contextlib.ExitStack() as at_the_end:
        over = at_the_end.enter_context(bridge())
        with veth() as (one, _):
            ip(f"link set {one} master {over}")
        assert (await host.device(over)).mac == "00:00:00:00:00:00"
        others = [await host.open_tap(f"lmother{n}", TAG, mtu=1500) for n in range(4)]
        for other in others:
            at_the_end.enter_context(other.fd)
        names = [tap.device.name, *(other.device.name for other in others)]
        await asyncio.gather(*(host.attach_to_bridge(name, over, **PLAIN) for name in names))
        had = (await host.device(over)).mac
        assert had[1] in "26ae"
        assert had not in {(await host.device(name)).mac for name in names}
        for other in others:
            await other.fd.close_in_thread()
        assert (await host.device(over)).mac == had


async def test_a_bridge_follows_the_address_of_its_uplink(
    host: Host, tap: Tap, cable: tuple[str, str]
) -> None:
    ip(f"link set {cable[0]} address 02:00:00:00:00:01")
    with bridge(cable[0]) as over:
        await host.attach_to_bridge(tap.device.name, over, **PLAIN)
        assert (await host.device(over)).mac == "02:00:00:00:00:01"
        assert not set_by_somebody(over)
        ip(f"link set {cable[0]} address 02:00:00:00:00:02")
        assert (await host.device(over)).mac == "02:00:00:00:00:02"


async def test_an_address_that_was_set_is_left_alone(
    host: Host, tap: Tap, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "linkmgr")
    with bridge() as over:
        ip(f"link set {over} address 02:00:00:00:00:09")
        await host.attach_to_bridge(tap.device.name, over, **PLAIN)
        assert (await host.device(over)).mac == "02:00:00:00:00:09"
        assert caplog.records == []


async def test_a_caller_that_leaves_takes_the_port_along(host: Host, tap: Tap) -> None:
    with bridge(options=STP) as over:
        for moment in (0, 0.001, 0.002, 0.004, 0.1):
            task = asyncio.create_task(host.attach_to_bridge(tap.device.name, over, **PLAIN))
            await asyncio.sleep(moment)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await host.device(tap.device.name)).master is None


async def test_a_bridge_that_goes_while_it_waits_is_noticed(host: Host, tap: Tap) -> None:
    with bridge(options=STP) as over:
        task = asyncio.create_task(host.attach_to_bridge(tap.device.name, over, **PLAIN))
        await asyncio.sleep(0.2)
        await host.delete_device(over)
        with pytest.raises(NotForwarding, match=f"bridge {over} does not exist any more"):
            await task


async def test_a_device_that_goes_while_it_waits_is_noticed(host: Host) -> None:
    tap = await host.open_tap(device_name("lm", new_id()), TAG, mtu=1500)
    with bridge(options=STP) as over:
        task = asyncio.create_task(host.attach_to_bridge(tap.device.name, over, **PLAIN))
        await asyncio.sleep(0.2)
        await tap.fd.close_in_thread()
        with pytest.raises(LinkMissing, match=tap.device.name):
            await task


async def test_options_that_are_refused_leave_the_device_off_the_bridge(
    host: Host, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = set_bridge_port
    monkeypatch.setattr(
        bridge_module,
        "set_bridge_port",
        lambda action, device, data: real(action, device, {"IFLA_BRPORT_STATE": 77}),
    )
    with bridge() as over:
        with pytest.raises(HostError, match="port flags"):
            await host.attach_to_bridge(tap.device.name, over, **PLAIN)
        assert (await host.device(tap.device.name)).master is None
