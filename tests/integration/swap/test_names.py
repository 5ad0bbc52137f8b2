"""The host's device of a cable has the name that was asked for; one address is on a network once.

All with one guest, under plain QEMU: net0 to be named, net1 with an address of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from linkmgr import LinkManager, NicState, hub_args
from linkmgr.errors import BadName, LinkBusy, MacInUse
from linkmgr.host import Fd, NetDevice
from linkmgr.host.devices.tap import IFF_NO_PI, IFF_TAP, TUN, set_interface
from linkmgr.model import OwnerTag
from linkmgr.testing.process import until
from tests.integration.failures_lab import NIC, is_told, no_frame_lost
from tests.integration.lab import Lab, mac_of, make_lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "lmtap0"
NET = Path("/sys/class/net")


@dataclass
class Bed:
    """A lab with a state directory."""

    lab: Lab
    state: Path

    @asynccontextmanager
    async def links(self, *, watch: bool = False) -> AsyncIterator[LinkManager]:
        async with LinkManager(state=self.state, watch=watch) as links:
            self.lab.links = links
            yield links

    @property
    def recorded(self) -> str:
        """What the journal says that the device is called."""
        document = json.loads((self.state / "vms/web1.json").read_text())
        return str(document["nics"]["net0"]["cable"]["device"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    folder = tmp_path_factory.mktemp("names")
    async with make_lab(folder) as lab:
        bed = Bed(lab, folder / "state")
        async with bed.links() as links:
            for network in ("blue", "red", "green"):
                await lab.network(network)
            await links.create_port("green", "one")
            await lab.guest(nics=2, cmdline="lm.ip.eth0=10.1.0.2/24")
        yield bed


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def unplugged(bed: Bed) -> AsyncIterator[None]:
    """In the end nothing is plugged or named."""
    yield
    async with bed.links() as links:
        for nic in (NIC, "web1/net1"):
            await links.unplug(nic)
        await links.set_device_name(NIC, None)


async def device(links: LinkManager) -> str:
    nic = await links.nic(NIC)
    assert nic.connection is not None
    tag = OwnerTag.parse((NET / nic.connection.device / "ifalias").read_text().strip())
    assert tag is not None
    assert tag.owner == NIC
    return nic.connection.device


async def test_a_device_is_renamed_under_traffic_and_nothing_is_lost(bed: Bed) -> None:
    guest, peer = bed.lab.guests["web1"], bed.lab.peers["blue"]
    async with bed.links(watch=True) as links:
        await links.plug(NIC, "blue", notify="silent")
        await guest.wait_carrier("eth0", True)
        own = await device(links)
        async with no_frame_lost(guest, peer):
            for _ in range(5):
                assert (await links.set_device_name(NIC, NAME)).changed
                assert await device(links) == NAME == bed.recorded
                assert not (await links.set_device_name(NIC, NAME)).changed
                await links.set_device_name(NIC, None)
                assert await device(links) == own == bed.recorded
        assert await links.check() == []


async def test_a_name_stays_over_swaps_and_restarts(bed: Bed) -> None:
    async with bed.links() as links:
        assert (await links.set_device_name(NIC, NAME)).changed
        for target in ("blue", "red", "green", "green:one", "blue"):
            outcome = await links.plug(NIC, target, notify="silent")
            assert "name" in outcome.timings
            if target.startswith("green"):  # a macvtap would keep it from the guest's next start
                assert (await device(links)).startswith("lm")
                assert not (NET / NAME).exists()
            else:
                assert await device(links) == NAME == bed.recorded
            assert await links.check() == []
        await links.unplug(NIC)
        assert not (NET / NAME).exists()
    async with bed.links() as links:
        await links.plug(NIC, "red", notify="silent")
        assert await device(links) == NAME
    with pytest.raises(BadName):
        await links.set_device_name(NIC, "a/b")


async def test_killed_between_rename_and_record_it_is_found_under_either_name(bed: Bed) -> None:
    """The tag says which device it is."""
    lab = bed.lab
    async with bed.links() as links:
        await links.plug(NIC, "blue", notify="silent")
        own = await device(links)
    # As if killed right after the rename: only the kernel knows of it.
    await lab.sh(f"ip link set {own} name {NAME}")
    async with bed.links() as links:
        assert await device(links) == NAME == bed.recorded
        assert await links.check() == []
        assert await links.gc(older_than=0) == []
        await links.set_device_name(NIC, "lmtap1")
    await lab.sh(f"ip link set lmtap1 name {own}")
    async with bed.links() as links:
        assert await device(links) == "lmtap1" == bed.recorded, "what was asked for is done"
        await links.plug(NIC, "red", notify="silent")
        assert not (NET / own).exists()
        assert await links.check() == []


async def test_a_kernel_that_renames_nothing_that_is_up_gives_the_name_when_it_can(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As before Linux 6.2: a device that is made while nothing has the name has it."""

    async def refuse(_host: object, net_device: NetDevice, name: str) -> None:
        raise LinkBusy(f"cannot rename {net_device.name} to {name}: Device or resource busy")

    monkeypatch.setattr("linkmgr.host.Host.rename", refuse)
    async with bed.links() as links:
        await links.set_device_name(NIC, NAME)
        await links.plug(NIC, "blue", notify="silent")
        assert await device(links) == NAME
        for _ in range(2):
            await links.plug(NIC, "red", notify="silent")
            assert (await device(links)).startswith("lm")
            await links.plug(NIC, "blue", notify="silent")
            assert await device(links) == NAME
        assert await links.check() == []
    assert 1 <= caplog.text.count("its device keeps the name") <= 3


async def test_a_name_that_is_taken_is_told_and_had_when_it_is_free(bed: Bed) -> None:
    lab = bed.lab
    async with bed.links() as links:
        await lab.sh(f"ip link add {NAME} type bridge")
        await links.set_device_name(NIC, NAME)
        await links.plug(NIC, "blue", notify="silent")
        assert (await device(links)).startswith("lm")
        (found,) = await links.check()
        assert (found.code, found.subject) == ("name-taken", NIC)
        assert NAME in found.what
        await links.plug(NIC, "red", notify="silent")
        await lab.sh(f"ip link del {NAME}")
        await links.set_device_name(NIC, NAME)
        assert await device(links) == NAME
        assert await links.check() == []


async def test_a_device_that_took_the_name_is_never_taken_for_ours(bed: Bed) -> None:
    """As when libvirt starts a guest anew before the old one is buried: trap of `ip link del`."""
    lab = bed.lab
    async with bed.links() as links:
        await links.set_device_name(NIC, NAME)
        await links.plug(NIC, "blue", notify="silent")
        await lab.sh(f"ip link set {NAME} name lost0")
        await lab.sh(f"ip link add {NAME} type bridge")
        (found,) = await links.check()
        assert (found.code, found.subject) == ("device-renamed", NIC)
        assert f"lost0, not {NAME}" in found.what
        await links.unplug(NIC)
        assert (NET / NAME).exists(), "somebody else's device"
        assert not (NET / "lost0").exists(), "ours, whatever it was called"
        await lab.sh(f"ip link del {NAME}")


async def test_a_device_that_was_handed_over_is_never_renamed(bed: Bed) -> None:
    async with bed.links() as links:
        with open_tap("theirs0") as fd:
            await links.fds.deposit(0, "theirs", fd.dup())
            await links.set_device_name(NIC, NAME)
            await links.plug(NIC, "fd:theirs", notify="silent")
            assert (NET / "theirs0").exists()
            assert not (NET / NAME).exists()
            await links.unplug(NIC)


def open_tap(name: str) -> Fd:
    """A tap as a caller opens it."""
    fd = Fd(os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    set_interface(fd.number, name, IFF_TAP | IFF_NO_PI, "open")
    return fd


async def test_two_nics_with_one_address_are_not_on_one_network(bed: Bed) -> None:
    """Each would hear what is for the other. On two networks they are strangers."""
    lab, twin = bed.lab, "web2/net0"
    args = [arg for nic, mac in enumerate([mac_of(1, 0), mac_of(1, 0)])
            for arg in hub_args(f"net{nic}", mac=mac.upper())]  # fmt: skip
    async with bed.links() as links:
        await lab.guest("web2", nic_args=args, boot=False)
        await links.plug(NIC, "blue", notify="silent")
        with pytest.raises(MacInUse) as caught:
            await links.plug(twin, "blue")
        is_told(caught.value, state="unplugged", nic=twin)
        assert f"{NIC} has the same address, {mac_of(1, 0)}" in caught.value.what
        assert (await links.nic(twin)).state is NicState.UNPLUGGED
        await links.plug(twin, "red", notify="silent")
        with pytest.raises(MacInUse):
            await links.plug("web2/net1", "red")
        with pytest.raises(MacInUse):
            await links.plug(NIC, "red")
        await links.create_port("blue", "p")
        await links.plug(NIC, "blue:p", notify="silent")  # a replug of the same NIC
        with pytest.raises(MacInUse):
            await links.plug(twin, "blue")
        assert (await links.nic(twin)).connection is not None
    # It holds after a restart, and ends with the guest that had the address.
    async with bed.links() as links:
        with pytest.raises(MacInUse):
            await links.plug(NIC, "red")
        lab.guests["web2"].kill()

        async def gone() -> bool:
            return (await links.nic(twin)).state is NicState.GONE

        await until(gone, timeout=5, what="the twin is gone")
        await links.plug(NIC, "red", notify="silent")
        await links.remove_vm("web2")
        await links.unplug(NIC)
        await links.delete_port("blue", "p")
    await lab.guests["web2"].stop()
