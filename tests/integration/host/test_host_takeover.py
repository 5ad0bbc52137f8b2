"""Frames arrive at the new place with the very next frame, and nothing is left at the old one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from linkmgr.errors import HostError, LinkMissing, NotForwarding
from linkmgr.host import Host, PortState, Tap, device_name, new_id
from tests.integration.host.host_kit import (
    NIC,
    PEER,
    TAG,
    Wire,
    bridge,
    frame,
    ip,
    read_all,
    read_within,
    texts,
    veth,
)

OPTIONS = {"isolated": False, "hairpin": False, "learning": True}


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Host() as made:
        yield made


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    with veth() as ends:
        yield ends


@pytest.fixture
async def two_taps(host: Host, cable: tuple[str, str]) -> AsyncIterator[tuple[str, Tap, Tap]]:
    async with AsyncExitStack() as stack:
        over = stack.enter_context(bridge(cable[0]))
        taps = []
        for _ in range(2):
            tap = await host.open_tap(device_name("lm", new_id()), TAG, mtu=1500)
            stack.push_async_callback(tap.fd.close_in_thread)
            await host.attach_to_bridge(tap.device.name, over, **OPTIONS)
            taps.append(tap)
        yield over, taps[0], taps[1]


def entries(port: str) -> dict[str, str]:
    """Addresses of a port and their state, as bridge(8) shows them."""
    command = ["bridge", "-j", "fdb", "show", "brport", port]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {entry["mac"]: entry.get("state", "") for entry in json.loads(shown)}


def set_entry(port: str, kind: str) -> None:
    """Have the bridge forward to the NIC through a port, as an operator does it."""
    subprocess.run(["bridge", "fdb", "add", NIC, "dev", port, "master", kind], check=True)


def behind(host: Host, over: str, tap: Tap) -> set[str]:
    return {entry.mac for entry in host.fdb_entries_behind(tap.device.name, over)}


async def move(host: Host, over: str, old: Tap, new: Tap) -> None:
    """As a switch does it between two ports of a bridge that has a spanning tree."""
    entries = host.fdb_entries_behind(old.device.name, over)
    await host.forget_fdb_entries(entries, old.device.name)
    await host.add_fdb_entries(entries, new.device.name, bridge=over)


# --- a bridge's forwarding entry ---


async def test_the_next_frame_after_a_move_arrives_at_the_new_tap_only(
    host: Host, two_taps: tuple[str, Tap, Tap], cable: tuple[str, str]
) -> None:
    over, old, new = two_taps
    os.write(old.fd.number, frame(PEER, NIC, "the bridge learns where the NIC is"))
    assert await read_within(new.fd)  # and floods, because it does not know the peer
    with Wire(cable[1]) as wire:
        for text, to, source in (("one", new, old), ("two", old, new)) * 5:
            assert behind(host, over, source) == {NIC}
            await move(host, over, source, to)
            wire.send(frame(NIC, PEER, text))
            assert texts(read_all(to.fd)) == [text] or await read_within(to.fd) == [text]
            assert texts(read_all(source.fd)) == []
            assert behind(host, over, to) == {NIC}
            assert behind(host, over, source) == set()


async def test_many_addresses_move_together(host: Host, two_taps: tuple[str, Tap, Tap]) -> None:
    over, old, new = two_taps
    macs = {f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}" for number in range(500)}
    for mac in macs:
        os.write(old.fd.number, frame(PEER, mac, "learn"))
    assert behind(host, over, old) == macs
    await move(host, over, old, new)
    assert behind(host, over, old) == set()
    assert behind(host, over, new) == macs


async def test_nothing_to_move_is_fine(host: Host, two_taps: tuple[str, Tap, Tap]) -> None:
    over, _, new = two_taps
    await host.add_fdb_entries([], new.device.name, bridge=over)
    assert behind(host, over, new) == set()


async def test_a_moved_entry_is_like_one_that_was_learned(
    host: Host, two_taps: tuple[str, Tap, Tap]
) -> None:
    over, old, new = two_taps
    os.write(old.fd.number, frame(PEER, NIC, "learn"))
    await move(host, over, old, new)
    assert entries(new.device.name)[NIC] == ""
    os.write(old.fd.number, frame(PEER, NIC, "the NIC speaks elsewhere"))
    assert behind(host, over, new) == set()
    assert behind(host, over, old) == {NIC}


async def test_an_entry_of_a_port_that_does_not_learn_stays(
    host: Host, two_taps: tuple[str, Tap, Tap]
) -> None:
    over, _, new = two_taps
    await host.add_fdb_entries([], new.device.name, bridge=over, learning=False, own=NIC)
    assert entries(new.device.name)[NIC] == "static"
    assert behind(host, over, new) == {NIC}


async def test_the_taps_own_address_is_not_forwarded(
    host: Host, two_taps: tuple[str, Tap, Tap]
) -> None:
    over, old, _ = two_taps
    assert behind(host, over, old) == set()


async def waiting(host: Host, over: str) -> tuple[AsyncExitStack, Tap]:
    """A tap that is a port of the bridge, but down."""
    stack = AsyncExitStack()
    tap = await host.open_tap(device_name("lm", new_id()), TAG, mtu=1500, up=False)
    stack.push_async_callback(tap.fd.close_in_thread)
    await host.attach_to_bridge(tap.device.name, over, **OPTIONS, up=False)
    return stack, tap


async def test_what_waits_carries_nothing_until_the_crossing_and_then_all(
    host: Host, two_taps: tuple[str, Tap, Tap], cable: tuple[str, str]
) -> None:
    over, old, _ = two_taps
    stack, new = await waiting(host, over)
    async with stack:
        with Wire(cable[1]) as wire:
            os.write(old.fd.number, frame(PEER, NIC, "before"))
            assert texts(wire.frames()) == ["before"]
            for old_, new_ in ((True, False), (False, True)):
                with contextlib.suppress(OSError):  # EIO, of a tap that is down
                    os.write(new.fd.number, frame(PEER, NIC, "of the new one"))
                os.write(old.fd.number, frame(PEER, NIC, "of the old one"))
                heard = texts(wire.frames())
                assert heard == ["of the old one"] * old_ + ["of the new one"] * new_
                wire.send(frame(NIC, PEER, "to the NIC"))
                await asyncio.sleep(0.05)
                assert texts(read_all(old.fd)) == ["to the NIC"] * old_
                assert texts(read_all(new.fd)) == ["to the NIC"] * new_
                if old_:
                    await host.switch_bridge_ports(old.device.name, new.device.name, bridge=over)
            # What happens to other ports does not open it, nor what happens to the device itself.
            ip(f"link set {old.device.name} mtu 1400")
            with veth() as (other, _):
                ip(f"link set {other} master {over}")
                await asyncio.sleep(1.1)  # the kernel looks at carriers once a second
            device = await host.device(old.device.name)
            assert device.port_state is PortState.DISABLED
            await host.enable_port(old.device.name)
            assert (await host.device(old.device.name)).port_state is PortState.FORWARDING


async def test_an_old_port_that_is_gone_hinders_no_crossing(
    host: Host, two_taps: tuple[str, Tap, Tap]
) -> None:
    over, old, _ = two_taps
    for spoil in ("link set {} nomaster", "link set {} down", "link del {}"):
        stack, new = await waiting(host, over)
        async with stack:
            ip(spoil.format(old.device.name))
            await host.switch_bridge_ports(old.device.name, new.device.name, bridge=over)
            assert (await host.device(new.device.name)).port_state is PortState.FORWARDING


async def test_in_every_vlan_of_the_port_the_entry_moves(
    host: Host, two_taps: tuple[str, Tap, Tap], cable: tuple[str, str]
) -> None:
    over, old, new = two_taps
    try:
        ip(f"link set {over} type bridge vlan_filtering 1")
    except subprocess.CalledProcessError:
        pytest.skip("this kernel's bridges know no VLANs")
    os.write(old.fd.number, frame(PEER, NIC, "learn"))
    await move(host, over, old, new)
    with Wire(cable[1]) as wire:
        wire.send(frame(NIC, PEER, "tagged by the bridge"))
        assert await read_within(new.fd) == ["tagged by the bridge"]
        assert texts(read_all(old.fd)) == []


async def test_what_is_no_port_cannot_have_addresses(
    host: Host, two_taps: tuple[str, Tap, Tap]
) -> None:
    over, _, new = two_taps
    await host.detach_from_bridge(new.device.name)
    with pytest.raises(NotForwarding, match=f"{new.device.name} is no port of {over}"):
        await host.add_fdb_entries([], new.device.name, bridge=over)


async def test_a_bridge_that_is_gone_is_said_to_be_gone(
    host: Host, two_taps: tuple[str, Tap, Tap]
) -> None:
    over, _, new = two_taps
    await host.delete_device(over)
    with pytest.raises(NotForwarding, match=f"bridge {over} does not exist any more") as caught:
        await host.add_fdb_entries([], new.device.name, bridge=over)
    assert caught.value.hint == f"make it again: 'ip link add {over} type bridge', then try again"


async def test_a_port_that_listens_cannot_have_addresses(host: Host) -> None:
    with bridge(options="stp_state 1") as over:
        tap = await host.open_tap(device_name("lm", new_id()), TAG, mtu=1500)
        with tap.fd:
            ip(f"link set {tap.device.name} master {over}")
            with pytest.raises(NotForwarding, match="state listening"):
                await host.add_fdb_entries([], tap.device.name, bridge=over)


async def test_missing_devices_are_named(host: Host, two_taps: tuple[str, Tap, Tap]) -> None:
    over, old, _ = two_taps
    with pytest.raises(LinkMissing, match="notap"):
        await host.add_fdb_entries([], "notap", bridge=over)
    assert host.fdb_entries_behind("notap", over) == []
    assert host.fdb_entries_behind(old.device.name, "nobridge") == []


async def test_while_a_bridge_floods_both_ports_hear_an_address(
    host: Host, two_taps: tuple[str, Tap, Tap], cable: tuple[str, str]
) -> None:
    over, old, new = two_taps
    os.write(old.fd.number, frame(PEER, NIC, "learn"))
    assert await read_within(new.fd) == ["learn"]
    taken = host.fdb_entries_behind(old.device.name, over)
    with Wire(cable[1]) as wire:
        for _ in range(2):  # what is forgotten already is no error
            await host.forget_fdb_entries(taken, old.device.name)
        wire.send(frame(NIC, PEER, "both"))
        assert await read_within(old.fd) == ["both"]
        assert await read_within(new.fd) == ["both"]
        await host.add_fdb_entries(taken, new.device.name, bridge=over)
        wire.send(frame(NIC, PEER, "new"))
        assert await read_within(new.fd) == ["new"]
        assert texts(read_all(old.fd)) == []


async def third(host: Host, over: str) -> tuple[AsyncExitStack, Tap]:
    """One more tap on the bridge, that forwards."""
    stack, tap = await waiting(host, over)
    await host.set_up(tap.device.name)
    return stack, tap


@pytest.mark.parametrize("crossing", [True, False])
async def test_an_address_that_has_spoken_elsewhere_meanwhile_stays_there(
    host: Host, two_taps: tuple[str, Tap, Tap], crossing: bool
) -> None:
    over, old, other = two_taps
    stack, new = await (waiting if crossing else third)(host, over)
    async with stack:
        os.write(old.fd.number, frame(PEER, NIC, "here"))
        os.write(old.fd.number, frame(PEER, "52:54:00:00:00:77", "and one that stays"))
        if crossing:
            os.write(other.fd.number, frame(PEER, NIC, "and now there"))
            await host.switch_bridge_ports(old.device.name, new.device.name, bridge=over)
        else:
            entries = host.fdb_entries_behind(old.device.name, over)
            await host.forget_fdb_entries(entries, old.device.name)
            os.write(other.fd.number, frame(PEER, NIC, "and now there"))
            await host.add_fdb_entries(entries, new.device.name, bridge=over)
        assert behind(host, over, other) == {NIC}
        assert behind(host, over, new) == {"52:54:00:00:00:77"}


async def test_an_entry_that_somebody_set_for_good_moves_as_it_is(
    host: Host, two_taps: tuple[str, Tap, Tap]
) -> None:
    over, old, new = two_taps
    set_entry(old.device.name, "static")
    await move(host, over, old, new)
    assert entries(new.device.name)[NIC] == "static"


@pytest.mark.parametrize("learned", [True, False])
async def test_a_port_that_does_not_learn_gets_its_address_back_from_one_that_has_only_learned_it(
    host: Host, two_taps: tuple[str, Tap, Tap], learned: bool
) -> None:
    over, old, new = two_taps
    kind = "dynamic" if learned else "static"
    set_entry(old.device.name, kind)
    await host.add_fdb_entries([], new.device.name, bridge=over, learning=False, own=NIC)
    owner = new if learned else old
    assert behind(host, over, owner) == {NIC}
    assert entries(owner.device.name)[NIC] == "static"


async def test_an_old_port_that_cannot_be_shut_does_not_leave_the_new_one_open_beside_it(
    host: Host, two_taps: tuple[str, Tap, Tap]
) -> None:
    """Both are plugged into one hub, so they would join two networks."""
    over, old, new = two_taps
    await host.set_down(new.device.name)
    ip(f"link set {over} type bridge stp_state 1")  # since `new` was staged
    with pytest.raises(HostError):
        await host.switch_bridge_ports(old.device.name, new.device.name, bridge=over)
    assert not (await host.device(new.device.name)).up
