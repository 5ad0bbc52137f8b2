"""Our devices say nothing by themselves: nothing on the parent, on the bridge, or to the guest.

Every test has a control beside it: the same devices made by ip(8), which do speak. So the silence
of ours is neither an early end nor a deaf capture.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.host import Fd, Host, device_name, new_id, private_mac
from linkmgr.host.devices.tap import IFF_NO_PI, IFF_TAP, _open, set_interface
from linkmgr.model import DirectMode
from tests.integration.host.host_kit import (
    NIC,
    TAG,
    Wire,
    discarding,
    ip,
    read_all,
    veth,
)

IPV6 = "/proc/sys/net/ipv6/conf"
LONGER = 0.5  # s, after the control has spoken
PLAIN = {"isolated": False, "hairpin": False, "learning": True}

pytestmark = pytest.mark.skipif(not Path(IPV6).is_dir(), reason="a kernel without IPv6 is silent")


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Host() as made:
        yield made


async def until_it_speaks(wire: Wire) -> list[bytes]:
    """Frames of the control: those until it has sent an IPv6 frame, and some more time."""
    heard: list[bytes] = []
    async with asyncio.timeout(10):
        while not any(sent[12:14] == b"\x86\xdd" for sent in heard):
            await asyncio.sleep(0.02)
            heard += wire.frames()
    await asyncio.sleep(LONGER)
    return heard


@pytest.mark.parametrize("mode", list(DirectMode))
async def test_a_macvtap_is_silent_from_its_making_to_its_end(host: Host, mode: DirectMode) -> None:
    name = device_name("lm", new_id())
    with veth() as ours, veth() as control, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(end)) for end in ours]
        loud = stack.enter_context(Wire(control[1]))
        async with discarding(host, name):
            tap = await host.open_macvtap(name, ours[0], TAG, mode=mode, mac=NIC, mtu=1500)
            with tap.fd:
                ip(f"link add link {control[0]} name loud0 address {private_mac()} type macvtap")
                ip("link set loud0 up")
                assert await until_it_speaks(loud)
                await host.set_down(name)
                await host.set_mac(name, private_mac())
                await host.set_up(name)
                await host.set_mac(name, NIC)
                await asyncio.sleep(LONGER)
                assert read_all(tap.fd) == []
        ip("link del loud0")
        assert [wire.frames() for wire in wires] == [[], []]


async def test_a_bridge_and_a_tap_are_silent_from_their_making_to_their_end(host: Host) -> None:
    name = device_name("lm", new_id())
    with veth() as cable, contextlib.ExitStack() as stack:
        async with discarding(host, "lmbr0", "loudbr"):
            await host.create_bridge("lmbr0", TAG, mtu=1500)
            await host.attach_to_bridge(cable[0], "lmbr0", **PLAIN)
            wires = [stack.enter_context(Wire(end)) for end in ("lmbr0", *cable)]
            # The control: a bridge and a tap in which nobody switched anything off.
            loud = stack.enter_context(Fd(_open("loudtap")))
            set_interface(loud.number, "loudtap", IFF_TAP | IFF_NO_PI, "make the control")
            ip("link add loudbr type bridge")
            ip("link set loudtap master loudbr")
            heard = stack.enter_context(Wire("loudbr"))
            ip("link set loudbr up")
            ip("link set loudtap up")

            tap = await host.open_tap(name, TAG, mtu=1500)
            await host.attach_to_bridge(name, "lmbr0", **PLAIN)
            assert await until_it_speaks(heard)
            assert read_all(loud) != []  # the bridge spoke to its ports
            await host.detach_from_bridge(name)
            await host.attach_to_bridge(name, "lmbr0", **PLAIN)
            await asyncio.sleep(LONGER)
            assert read_all(tap.fd) == []
            await tap.fd.close_in_thread()
            await host.detach_from_bridge(cable[0])
            loud.close()
        assert [wire.frames() for wire in wires] == [[], [], []]


async def test_ipv6_is_off_before_a_device_comes_up(host: Host) -> None:
    name, above = device_name("lm", new_id()), device_name("lm", new_id())
    with veth() as cable:
        async with discarding(host, above, "lmbr0"):
            tap = await host.open_tap(name, TAG, mtu=1500, up=False)
            over = await host.open_macvtap(
                above, cable[0], TAG, mode=DirectMode.BRIDGE, mac=NIC, mtu=1500, up=False
            )
            await host.create_bridge("lmbr0", TAG, mtu=1500)
            with tap.fd, over.fd:
                for device in (name, above, "lmbr0"):
                    assert Path(IPV6, device, "disable_ipv6").read_text().strip() == "1"
                assert Path(IPV6, cable[1], "disable_ipv6").exists()


async def test_a_small_mtu_needs_no_silencing(host: Host) -> None:
    # Below 1280 bytes a device has no IPv6 at all, so there is nothing to switch off.
    tap = await host.open_tap(device_name("lm", new_id()), TAG, mtu=1000)
    with tap.fd:
        assert not Path(IPV6, tap.device.name).exists()


@pytest.mark.parametrize("off", [True, False], ids=["off-by-default", "on"])
async def test_where_nothing_in_proc_sys_can_be_written(off: bool) -> None:
    """In a container: what is off already needs no writing, and else the hint is one that helps."""
    script = """
import asyncio, ctypes, sys
from linkmgr.errors import HostError
from linkmgr.host import Host
from linkmgr.model import OwnerTag
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000 | 0x40000000) == 0  # CLONE_NEWNS, CLONE_NEWNET
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w").write(sys.argv[1])
assert libc.mount(b"/proc/sys", b"/proc/sys", None, 0x1000, None) == 0  # MS_BIND
assert libc.mount(None, b"/proc/sys", None, 0x1021, None) == 0  # and MS_REMOUNT | MS_RDONLY
async def main():
    async with Host() as host:
        try:
            tap = await host.open_tap("lmro", OwnerTag("web1/net0", "0123abcd"), mtu=1500)
        except HostError as error:
            print(error.hint)
        else:
            print("made", (await host.device("lmro")).ipv6_disabled)
            tap.fd.close()
asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(int(off)), stdout=PIPE, stderr=PIPE
    )
    out, err = await child.communicate()
    assert child.returncode == 0, err.decode()
    said = out.decode().strip()
    assert said == "made True" if off else "net.ipv6.conf.default.disable_ipv6=1" in said
