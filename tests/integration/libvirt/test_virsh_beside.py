"""virsh beside linkmgr on the same guest: what libvirt says stays true, what it is told is obeyed.

A prepared domain under a real libvirtd. Its private monitor is a socket on which QEMU listens, and
libvirt is told of links by virsh itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from linkmgr import LinkManager, LinkState, NicState
from linkmgr.hypervisors.qemu.qmp.info_network import parse_info_network
from linkmgr.libvirt.domains.link_sync import LinkSync
from linkmgr.libvirt.prepare.rewrite import prepare
from linkmgr.libvirt.xml import monitor
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.qemu_namespace import add_arguments
from linkmgr.model import OwnerTag
from linkmgr.testing.process import until
from linkmgr.wirings.hub.placeholder import libvirt_netdev_id
from tests.integration.lab import Lab
from tests.integration.libvirtd import DomainGuest, Libvirtd, private_libvirtd, tiny_domain

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

NIC = "web1/ua-net0"
MACS = ("52:54:00:00:01:00", "52:54:00:00:01:01")
ROUNDS = 200


def listening_domain(libvirtd: Libvirtd, name: str) -> str:
    """A prepared domain with two NICs whose QEMU listens for linkmgr."""
    nics = [
        f"<interface type='ethernet'><mac address='{mac}'/><target dev='{name}tap{number}'/>"
        "<model type='virtio'/></interface>"
        for number, mac in enumerate(MACS)
    ]
    made = prepare(tiny_domain(libvirtd, name, nics).encode())
    document = monitor.remove(Document(made.xml))
    words = ["-qmp", f"unix:/run/lab/{name}.qmp,server=on,wait=off"]
    return add_arguments(document, words).source.decode()


@dataclass
class Early:
    """What there was while libvirt's own tap still had the name.

    :param alias: of that tap.
    :param codes: of what `check` found then.
    :param device: what the cable's device was called, and then `renamed`.
    """

    alias: str
    codes: list[str]
    device: str
    renamed: str


async def stub_late(links: LinkManager) -> Early:
    """Name and plug a NIC, and only then put the placeholders in."""
    alias = Path("/sys/class/net/web1tap0/ifalias").read_text().strip()
    await links.set_device_name(NIC, "web1tap0")
    nic = (await links.plug(NIC, "blue", notify="silent")).nic
    assert nic.connection is not None
    codes = [each.code for each in await links.check() if each.subject == NIC]
    for number in range(2):
        assert (await links.ensure_backend_placeholder(f"web1/ua-net{number}")).changed
    after = (await links.nic(NIC)).connection
    assert after is not None
    assert await links.check() == []
    await links.unplug(NIC)
    return Early(alias, codes, nic.connection.device, after.device)


@dataclass
class Beside:
    """A domain under libvirtd, its guest, and a manager that follows libvirt."""

    libvirtd: Libvirtd
    lab: Lab
    guest: DomainGuest
    early: Early
    told: list[str]  #: what libvirt was told, in order

    @property
    def links(self) -> LinkManager:
        return self.lab.links

    async def virsh(self, *words: str) -> str:
        return await self.libvirtd.virsh(*words)

    async def setlink(self, state: str, nic: int = 0) -> None:
        await self.virsh("domif-setlink", "web1", f"web1tap{nic}", state)

    async def getlink(self, nic: int = 0) -> str:
        return (await self.virsh("domif-getlink", "web1", f"web1tap{nic}")).split()[-1]

    async def become(self, what: str, asked: Callable[[], Awaitable[bool]]) -> None:
        await until(asked, timeout=10, what=what)

    async def libvirt_says(self, state: str) -> None:
        async def asked() -> bool:
            return await self.getlink() == state

        await self.become(f"libvirt says {state}", asked)

    async def wanted(self, state: LinkState) -> None:
        async def asked() -> bool:
            nic = await self.links.nic(NIC)
            shown = state if nic.connection else LinkState.DOWN
            return nic.wanted_link is state and nic.link is shown

        await self.become(f"{state} is wanted", asked)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def beside(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Beside]:
    folder = tmp_path_factory.mktemp("beside")
    async with contextlib.AsyncExitStack() as stack:
        libvirtd = await stack.enter_async_context(private_libvirtd())
        links = await stack.enter_async_context(LinkManager(state=folder / "state", watch=True))
        lab = Lab(links, folder, stack=stack)
        for network in ("blue", "red"):
            await lab.network(network)
        await libvirtd.define(listening_domain(libvirtd, "web1"))
        await libvirtd.virsh("start", "web1")
        guest = await stack.enter_async_context(DomainGuest(libvirtd, "web1"))
        await links.add_vm("web1", libvirtd.run / "lab/web1.qmp")
        await guest.connect()
        await guest.run("ip addr add 10.1.0.2/24 dev eth0 && ip link set eth0 up", check=True)
        early = await stub_late(links)
        told: list[str] = []

        async def tell(domain: str, mac: str, up: bool) -> None:
            told.append("up" if up else "down")
            await libvirtd.virsh("domif-setlink", domain, mac, told[-1])

        sync = LinkSync(libvirtd.run / "libvirt/qemu", links, set_link=tell)
        syncing = asyncio.create_task(sync.run())
        try:
            await until(_follows, timeout=5, what="libvirt's directory is watched")
            yield Beside(libvirtd, lab, guest, early, told)
        finally:
            syncing.cancel()
            await asyncio.gather(syncing, return_exceptions=True)
            await links.remove_vm("web1")
            await libvirtd.virsh("destroy", "web1")


async def _follows() -> bool:
    fds = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return any("inotify" in str(fd.readlink()) for fd in fds)


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def unplugged(beside: Beside) -> AsyncIterator[None]:
    """In the end the NIC is unplugged, and wants to be up."""
    yield
    await beside.links.set_link(NIC, "up")
    await beside.links.unplug(NIC)


async def test_the_stray_tap_goes_and_libvirt_knows_the_cable_by_its_name(beside: Beside) -> None:
    links, guest = beside.links, beside.guest
    stray = Path("/sys/class/net/web1tap0/ifalias")
    assert (beside.early.alias, beside.early.codes) == ("", ["name-taken"]), "libvirt's tap had it"
    assert beside.early.device.startswith("lm")
    assert beside.early.renamed == "web1tap0"

    for alias in ("ua-net0", "ua-net1"):
        assert not (await links.ensure_backend_placeholder(f"web1/{alias}")).changed
    info = parse_info_network(await beside.libvirtd.hmp("web1", "info network"))
    for alias in ("ua-net0", "ua-net1"):
        placeholder = info.netdevs[libvirt_netdev_id(alias)]
        assert (placeholder.type, placeholder.peer) == ("hubport", None)
    assert not Path("/sys/class/net/web1tap1").exists()
    assert not stray.exists()

    await links.plug(NIC, "blue", notify="silent")
    nic = await links.nic(NIC)
    assert nic.connection is not None
    assert nic.connection.device == "web1tap0"
    assert stray.read_text().strip() == str(OwnerTag(NIC, nic.connection.attachment))
    assert await links.check() == []
    await guest.wait_carrier("eth0", True)
    assert (await guest.ping("10.1.0.1", count=1)).received == 1

    for network in ("red", "blue"):
        await links.plug(NIC, network, notify="silent")
        assert await beside.lab.sh("cat /sys/class/net/web1tap0/master/uevent") == (
            await beside.lab.sh(f"cat /sys/class/net/br-{network}/uevent")
        )
    listed = (await beside.virsh("domiflist", "web1")).split("\n")[0]
    assert re.split(r"\s+", listed.strip()) == ["web1tap0", "ethernet", "-", "virtio", MACS[0]]


async def statistics(beside: Beside) -> tuple[dict[str, int], dict[str, int]]:
    """What libvirt and the guest say of packets and bytes."""
    said = await beside.virsh("domifstat", "web1", "web1tap0")
    libvirt = {line.split()[1]: int(line.split()[2]) for line in said.splitlines()}
    names = ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")
    files = " ".join(f"/sys/class/net/eth0/statistics/{name}" for name in names)
    numbers = (await beside.guest.run(f"cat {files}", check=True)).output.split()
    return libvirt, dict(zip(names, map(int, numbers), strict=True))


async def test_domifstat_counts_what_the_guest_counts(beside: Beside) -> None:
    """As the guest sees it: rx is what came to it."""
    await beside.links.plug(NIC, "blue", notify="silent")
    await beside.guest.wait_carrier("eth0", True)

    async def sends() -> bool:  # not before the guest's link watch has seen the carrier
        return (await beside.guest.ping("10.1.0.1", count=1)).lost == 0

    await until(sends, timeout=10, what="the guest reaches its peer")
    before = await statistics(beside)
    assert (await beside.guest.ping("10.1.0.1", count=40, interval=0.01)).lost == 0
    mac = await beside.lab.peers["blue"].mac("eth0")
    async with beside.guest.sending("eth0", mac, rate=200, tag="out"):
        await asyncio.sleep(0.5)

    async def agree() -> bool:
        after = await statistics(beside)
        rose = [{key: now[key] - was[key] for key in was if key in now}
                for was, now in zip(before, after, strict=True)]  # fmt: skip
        assert rose[1]["tx_packets"] > rose[1]["rx_packets"] + 50 >= 90
        # QEMU pads what is short on its way in, and one frame may come between two looks.
        return all(abs(rose[0][key] - rose[1][key]) <= (200 if "bytes" in key else 2)
                   for key in rose[1])  # fmt: skip

    await until(agree, timeout=5, what="libvirt and the guest count the same")


async def test_links_set_with_virsh_are_obeyed_and_ours_are_told(beside: Beside) -> None:
    links, guest = beside.links, beside.guest
    await links.plug(NIC, "blue", notify="silent")
    await guest.wait_carrier("eth0", True)
    await beside.libvirt_says("up")

    await beside.setlink("down")
    await guest.wait_carrier("eth0", False)
    await beside.wanted(LinkState.DOWN)
    await links.plug(NIC, "red")
    assert (await links.nic(NIC)).link is LinkState.DOWN
    assert not await guest.carrier("eth0"), "a swap forgets nobody's wish"
    await beside.setlink("up")
    await guest.wait_carrier("eth0", True)
    await beside.wanted(LinkState.UP)

    # The other way round, and then virsh is no silent no-op.
    await links.set_link(NIC, "down")
    await beside.libvirt_says("down")
    await beside.setlink("up")
    await beside.wanted(LinkState.UP)
    await guest.wait_carrier("eth0", True)

    # Unplugged it is down, whatever virsh says; the wish shows at the next plug.
    await links.set_link(NIC, "down")
    await links.unplug(NIC)
    await beside.libvirt_says("down")
    await beside.setlink("up")
    await beside.wanted(LinkState.UP)
    await beside.libvirt_says("down")
    await guest.wait_carrier("eth0", False)
    await links.plug(NIC, "blue")
    await guest.wait_carrier("eth0", True)
    await beside.libvirt_says("up")

    told = len(beside.told)
    await asyncio.sleep(1)
    assert len(beside.told) == told, "no echo"


async def test_a_link_that_somebody_set_is_put_right_when_the_guest_goes_on(beside: Beside) -> None:
    """As after a restore: the carrier is up in an unplugged NIC, and nobody was told."""
    links, guest = beside.links, beside.guest
    await links.unplug(NIC)
    await guest.wait_carrier("eth0", False)
    await beside.virsh("suspend", "web1")
    await beside.libvirtd.hmp("web1", "set_link ua-net0 on")
    await beside.virsh("resume", "web1")

    async def down() -> bool:
        return not await guest.carrier("eth0")

    await beside.become("the carrier is gone again", down)
    await links.plug(NIC, "blue")
    await guest.wait_carrier("eth0", True)
    changes = await guest.carrier_changes("eth0")
    await beside.virsh("suspend", "web1")
    await beside.virsh("resume", "web1")
    await asyncio.sleep(1.5)
    assert await guest.carrier_changes("eth0") == changes, "no flap"


async def test_200_rounds_of_virsh_while_cables_are_swapped(beside: Beside) -> None:
    links, guest = beside.links, beside.guest
    chance = random.Random(4)
    done = asyncio.Event()
    swaps = 0
    last: str = "up"
    notes: dict[str, str] = {}

    async def swap() -> None:
        nonlocal swaps
        while not done.is_set():
            for network in ("red", "blue"):
                await links.plug(NIC, network, notify="announce")
                swaps += 1
            await asyncio.sleep(0.02)

    async def command(number: int) -> None:
        nonlocal last
        match chance.randrange(6):
            case 0:
                assert "net.0.name=web1tap0" in await beside.virsh("domstats", "web1")
            case 1:
                assert MACS[0] in await beside.virsh("dumpxml", "web1")
            case 2 | 3:
                last = chance.choice(["up", "down"])
                await beside.setlink(last)
            case 4:
                notes["urn:x"] = f"<note>{number}</note>"
                await beside.virsh("metadata", "web1", "urn:x", "--key", "x", "--live",
                                   "--set", notes["urn:x"])  # fmt: skip
            case 5:
                await beside.virsh("suspend", "web1")
                await beside.virsh("resume", "web1")

    await links.plug(NIC, "blue", notify="silent")
    await beside.setlink("up")
    await beside.wanted(LinkState.UP)
    began, slowest = time.monotonic(), 0.0
    swapping = asyncio.create_task(swap())
    try:
        for number in range(ROUNDS):
            start = time.monotonic()
            await asyncio.wait_for(command(number), 20)
            slowest = max(slowest, time.monotonic() - start)
            assert not swapping.done(), swapping
    finally:
        done.set()
        await asyncio.wait_for(swapping, 20)
    took = time.monotonic() - began
    print(f"{ROUNDS} rounds, {swaps} swaps in {took:.1f} s, {slowest=:.2f}")  # noqa: T201
    assert swaps > 20
    # Nothing was lost: the last word on the link holds in all three places.
    await beside.wanted(LinkState(last))
    await guest.wait_carrier("eth0", last == "up")
    assert await beside.getlink() == last
    assert notes["urn:x"] in await beside.virsh("metadata", "web1", "urn:x")
    assert await links.check() == []
    await links.set_link(NIC, "up")
    await guest.wait_carrier("eth0", True)
    await links.plug(NIC, "blue")
    await guest.run("ip neigh flush dev eth0")
    assert (await guest.ping("10.1.0.1", count=3)).received > 0
    await beside.libvirt_says("up")


async def test_a_nic_that_virsh_detaches_frees_its_cable(beside: Beside) -> None:
    links = beside.links
    await links.set_device_name("web1/ua-net1", "web1tap1")
    await links.plug("web1/ua-net1", "red")
    assert Path("/sys/class/net/web1tap1").exists()
    await beside.virsh("detach-interface", "web1", "ethernet", "--mac", MACS[1], "--live")

    async def gone() -> bool:
        there = {str(nic.ref) for nic in await links.nics()}
        return there == {NIC} and not Path("/sys/class/net/web1tap1").exists()

    await beside.become("the NIC and its device are gone", gone)
    info = parse_info_network(await beside.libvirtd.hmp("web1", "info network"))
    assert libvirt_netdev_id("ua-net1") not in info.netdevs, "libvirt has removed the placeholder"
    assert await links.check() == []
    assert MACS[1] not in await beside.virsh("domiflist", "web1")


async def test_the_next_start_has_its_name_and_link_again(beside: Beside) -> None:
    """QEMU ends while our device has the name that libvirt's next tap wants."""
    libvirtd, links, guest = beside.libvirtd, beside.links, beside.guest
    await links.plug(NIC, "blue")
    assert await links.set_link(NIC, "up")
    await guest.stop()
    await libvirtd.virsh("destroy", "web1")
    await links.remove_vm("web1")
    assert not Path("/sys/class/net/web1tap0").exists()
    await libvirtd.virsh("start", "web1")
    await links.add_vm("web1", libvirtd.run / "lab/web1.qmp")
    for number in range(2):
        assert (await links.ensure_backend_placeholder(f"web1/ua-net{number}")).changed
        await links.set_device_name(f"web1/ua-net{number}", f"web1tap{number}")
    nic = (await links.plug(NIC, "blue")).nic
    assert nic.state is NicState.PLUGGED
    assert nic.connection is not None
    assert nic.connection.device == "web1tap0"
    assert (await links.nic(NIC)).wanted_link is LinkState.UP
    await beside.libvirt_says("up")
    await guest.connect()
    assert await guest.carrier("eth0")
    assert await links.check() == []
