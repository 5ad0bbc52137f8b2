"""Many swaps under traffic: frames go where the cable is, nothing leaks, nothing wedges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from linkmgr.hypervisors.qemu.qmp import Monitor
from linkmgr.hypervisors.qemu.qmp.info_network import parse_info_network
from linkmgr.swap.steps import Step
from linkmgr.testing import Guest
from tests.integration.lab import SUBNETS, Lab, mac_of, make_lab

NIC = "web1/net0"
EVERYBODY = "ff:ff:ff:ff:ff:ff"
STATIC = " ".join(f"lm.ip.eth0=10.{n}.0.2/24 lm.ip6.eth0=fd00:{n}::2/64" for n in (1, 2))


def _entries(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


@dataclass(frozen=True)
class Held:
    """What is held on behalf of one guest: it must not grow."""

    qemu_fds: int
    own_fds: int
    links: int
    netdevs: int
    hub_ports: int

    @classmethod
    async def by(cls, guest: Guest) -> Held:
        async with await Monitor.connect(guest.qmp2_path) as monitor:
            info = parse_info_network(await monitor.hmp("info network"))
            qemu_fds = _entries(f"/proc/{guest.pid}/fd")  # this monitor's always among them
        return cls(
            qemu_fds=qemu_fds,
            own_fds=_entries("/proc/self/fd"),
            links=_entries("/sys/class/net"),
            netdevs=len(info.netdevs),
            hub_ports=sum(len(hub.ports) for hub in info.hubs.values()),
        )


# What each swap leaves shows after a few, so on the newer QEMU there are fewer.
@pytest.mark.timeout(400)
@pytest.mark.parametrize("swaps", [pytest.param(40, marks=pytest.mark.next_qemu), 200])
async def test_swaps_between_tap_and_macvtap_with_traffic_on_leave_no_trace(
    lab: Lab, swaps: int
) -> None:
    peers = {name: await lab.network(name) for name in ("blue", "green")}
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.plug(NIC, "blue")
    device = (await guest.ifindex("eth0"), await guest.pci_address("eth0"))
    uevents = await guest.uevent_seqnum()
    held = None
    captures = {
        name: await peer.spawn(f"tcpdump -i eth0 -tt -n -l ether src {mac_of(1, 0)}")
        for name, peer in peers.items()
    }
    stays = []  # (network, from, to): when the guest may be heard there
    async with guest.sending("eth0", EVERYBODY, rate=100, tag="guest"):
        for swap in range(1, swaps + 2):
            here, left = ("green", "blue") if swap % 2 else ("blue", "green")
            await lab.links.plug(NIC, here, notify="announce")
            arrived_at = time.time()
            # To the network that it left, too: what comes out of the guest must not get there.
            lost = await guest.spawn(f"ping -c 3 -i 0.05 -w 1 10.{SUBNETS[left]}.0.1")
            async with peers[here].counting("eth0", tag="guest") as arrived:
                for address in (f"10.{SUBNETS[here]}.0.1", f"fd00:{SUBNETS[here]}::1"):
                    answer = await guest.ping(address, count=2, interval=0.05)
                    assert answer.received, f"swap {swap}: {address} does not answer"
            assert arrived.report.unique("guest") > 0, f"swap {swap}: nothing arrives on {here}"
            await lost.stop()
            stays.append((here, arrived_at, time.time()))
            if swap % 40 == 0:
                for address in (f"10.{SUBNETS[left]}.0.1", f"fd00:{SUBNETS[left]}::1"):
                    assert not (await guest.ping(address, count=1)).received
            if swap == 1:
                held = await Held.by(guest)
    assert await Held.by(guest) == held
    for name, capture in captures.items():
        heard = [float(line.split()[0]) for line in (await capture.stop()).output.splitlines()
                 if line[:1].isdigit()]  # fmt: skip
        for other, begin, end in stays:
            found = [at for at in heard if begin < at < end]
            assert bool(found) is (other == name), f"{name} heard {len(found)} frames, not {other}"
    assert (await guest.ifindex("eth0"), await guest.pci_address("eth0")) == device
    assert await guest.uevent_seqnum() == uevents
    assert await lab.links.check() == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["virtio-net-pci", "vmxnet3"])
async def test_a_guest_that_sends_all_the_time_still_sends_after_60_rounds(
    lab: Lab, model: str
) -> None:
    blue, green = await lab.network("blue"), await lab.network("green")
    guest = await lab.guest(model=model)
    await lab.links.plug(NIC, "blue")
    async with guest.sending("eth0", EVERYBODY, rate=1000, tag="guest"):
        await lab.links.unplug(NIC)
        await asyncio.sleep(2)
        for _ in range(60):
            await lab.links.plug(NIC, "blue", notify="silent")
            await lab.links.plug(NIC, "green", notify="silent")
            await lab.links.unplug(NIC)
        for peer in (blue, green):
            await lab.links.plug(NIC, peer.name)
            async with peer.counting("eth0", tag="guest") as arrived:
                await asyncio.sleep(1)
            assert arrived.report.unique("guest") > 0


@pytest.mark.timeout(300)
async def test_four_nics_swapped_at_once_see_only_frames_of_their_own_network(lab: Lab) -> None:
    names = ("blue", "green", "red", "grey")
    peers = [await lab.network(name) for name in names]
    guests = [await lab.guest(name, nics=2) for name in ("one", "two")]
    nics = [(guest, nic) for guest in guests for nic in (0, 1)]
    async with AsyncExitStack() as stack:
        # The peers never stop: should ever two cables be on one hub, one hears another's frames.
        heard = [await stack.enter_async_context(peer.counting("eth0")) for peer in peers]
        for peer in peers:
            await stack.enter_async_context(
                peer.sending("eth0", EVERYBODY, rate=200, tag=peer.name)
            )
        for number in range(50):
            # Another order each round, so that every NIC meets every network.
            where = [names[(index * (1 + number % 2 * 2) + number) % 4] for index in range(4)]
            await asyncio.gather(
                *(
                    lab.links.plug(f"{guest.name}/net{nic}", network, notify="silent")
                    for (guest, nic), network in zip(nics, where, strict=True)
                )
            )
            await asyncio.gather(
                *(
                    _hears_and_says_only(guest, f"eth{nic}", network)
                    for (guest, nic), network in zip(nics, where, strict=True)
                )
            )
    for peer, measured in zip(peers, heard, strict=True):
        assert set(measured.report.tags) == {peer.name}
        assert measured.report.tags[peer.name].frames > 50 * 10


async def _hears_and_says_only(guest: Guest, ifname: str, network: str) -> None:
    async with guest.counting(ifname) as measured:
        await guest.send_frames(ifname, EVERYBODY, count=20, rate=200, tag=network)
    assert set(measured.report.tags) == {network}, f"{guest.name} {ifname}"


async def test_link_state_is_obeyed_before_during_and_after_a_swap(lab: Lab) -> None:
    await lab.network("blue")
    await lab.network("green")
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.set_link(NIC, "down")
    await lab.links.plug(NIC, "blue")
    changes = await guest.carrier_changes("eth0")
    for network in ("green", "blue", "green"):
        outcome = await lab.links.plug(NIC, network)
        assert (outcome.nic.link, outcome.nic.wanted_link) == ("down", "down")
        assert await guest.carrier("eth0") is False
    assert await guest.carrier_changes("eth0") == changes
    await lab.links.set_link(NIC, "up")
    await guest.wait_carrier("eth0", True)
    assert (await guest.ping("10.2.0.1")).received
    await lab.links.set_link(NIC, "down")
    await lab.links.unplug(NIC)
    await lab.links.set_link(NIC, "up")
    assert await guest.carrier("eth0") is False, "an unplugged NIC is always down"
    await lab.links.plug(NIC, "blue")
    await guest.wait_carrier("eth0", True)


@pytest.mark.parametrize("wanted", ["up", "down"])
async def test_a_link_that_another_monitor_has_set_is_as_it_is_told_to_be(
    lab: Lab, wanted: str
) -> None:
    """QEMU tells nobody of it, so linkmgr cannot know; what it is told it does all the same."""
    await lab.network("blue")
    guest = await lab.guest()
    await lab.links.set_link(NIC, wanted)
    for network in ("blue", None):
        await (lab.links.plug(NIC, network) if network else lab.links.unplug(NIC))
        up = wanted == "up" and network is not None
        await guest.wait_carrier("eth0", up)
        await guest.qmp("set_link", name="net0", up=not up)
        await guest.wait_carrier("eth0", not up)
        outcome = await lab.links.set_link(NIC, wanted)
        await guest.wait_carrier("eth0", up)
        assert not outcome.changed, "as far as anybody can know"


async def test_a_guest_notices_every_swap_to_another_network_and_none_within_one(lab: Lab) -> None:
    await lab.network("blue")
    await lab.network("green")
    await lab.links.create_port("blue", "p1")
    await lab.links.create_port("blue", "p2")
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.plug(NIC, "blue:p1")
    await guest.wait_carrier("eth0", True)
    for target, noticed in (
        ("green", True), ("blue:p1", True), ("blue:p2", False), ("green", True), ("blue:p2", True),
    ):  # fmt: skip
        async with _operstates(guest) as seen:
            await lab.links.plug(NIC, target)
        assert ("down" in seen) is noticed, f"{target}: {seen}"
        assert "up" in seen
        assert await guest.carrier("eth0")


@asynccontextmanager
async def _operstates(guest: Guest) -> AsyncIterator[set[str]]:
    """What Linux in the guest has noticed, by its link watch: not the device's own counter."""
    seen: set[str] = set()
    job = await guest.spawn(
        "sh -c 'while cat /sys/class/net/eth0/operstate; do usleep 10000; done'"
    )
    await asyncio.sleep(0.2)
    yield seen
    await asyncio.sleep(0.2)
    seen.update((await job.stop()).output.split())


@pytest.mark.parametrize(
    ("start", "target"),
    [
        ("blue:p1", "blue:p2"),
        ("tree:p1", "tree:p2"),
        ("green:p1", "green:p2"),
    ],
    ids=["by-the-kernel", "with-a-spanning-tree", "of-one-parent"],
)
async def test_the_network_delivers_to_the_new_place_at_once(
    tmp_path: Path, start: str, target: str
) -> None:
    """A replug within one layer 2 with nobody speaking, while the old device is still there."""
    switched, go_on = asyncio.Event(), asyncio.Event()
    swaps = 0

    async def hold(step: Step) -> None:
        nonlocal swaps
        swaps += step is Step.SWITCH
        if step is Step.RELEASE and swaps == 2:
            switched.set()
            await go_on.wait()

    async with make_lab(tmp_path, probe=hold) as lab:
        network = "green" if target.startswith("green") else "blue"
        peer = await lab.network(network)
        if network == "blue":
            # A second network of the same bridge.
            await lab.links.create_network("tree", "bridge", bridge="br-blue")
        if start.startswith("tree"):
            await lab.sh("ip link set br-blue type bridge stp_state 1 forward_delay 200")
        for port in (start, target):
            await lab.links.create_port(*port.split(":"))
        guest = await lab.guest(cmdline=STATIC)
        await lab.links.plug(NIC, start)
        assert (await guest.ping(f"10.{SUBNETS[network]}.0.1")).received
        mac = await guest.mac("eth0")
        async with guest.counting("eth0", tag="peer") as heard:
            replug = asyncio.create_task(lab.links.plug(NIC, target, notify="silent"))
            await switched.wait()
            said = await peer.send_frames("eth0", mac, rate=500, count=100, tag="peer")
        go_on.set()
        await replug
    assert heard.report.unique("peer") == said.sent
