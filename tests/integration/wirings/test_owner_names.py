"""Names that mean something to linkmgr itself are names like any other for a VM or a network."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from linkmgr import LinkManager, NicState, hub_args
from linkmgr.model import OwnerTag
from linkmgr.testing import Guest
from linkmgr.testing.process import execute
from tests.integration.lab import Lab, make_lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

NET = Path("/sys/class/net")
BRIDGE = "lmbr-lab"
PORT = 7700  #: of this host, which only this network namespace sees
#: Kinds of owner, groups of documents, prefixes of addresses and of aliases.
WORDS = ("network", "nic", "port", "bridge", "fd", "vms", "networks", "linkmgr", "doctor")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    """One guest that waits at its first instruction, added under one name after the other."""
    async with make_lab(tmp_path_factory.mktemp("names")) as made:
        await made.guest("first", boot=False, add=False)
        await made.guest("second", boot=False, add=False)
        yield made


@pytest.fixture
def guest(lab: Lab) -> Guest:
    return lab.guests["first"]


async def set_alias(device: str, alias: str) -> None:
    await execute(["ip", "link", "set", device, "alias", alias])


def alias(device: str) -> str:
    return (NET / device / "ifalias").read_text().strip()


def index(device: str) -> int:
    return int((NET / device / "ifindex").read_text())


@pytest.mark.parametrize("old_form", [False, True], ids=["tagged-now", "tagged-by-an-older-one"])
@pytest.mark.parametrize("name", WORDS)
async def test_a_vm_of_any_name_leaves_the_bridges_of_others_alone_at_a_restart(
    lab: Lab, guest: Guest, tmp_path: Path, name: str, old_form: bool
) -> None:
    state = tmp_path / "state"
    async with LinkManager(state=state, watch=False) as links:
        await links.add_vm("other", lab.guests["second"].qmp_path)
        await links.create_network("net0", "bridge", bridge=BRIDGE, create=True)
        await links.plug("other/net0", "net0")
        await links.add_vm(name, guest.qmp_path)
        tap = (await links.nic("other/net0")).connection
        assert tap is not None
    bridge, device = index(BRIDGE), index(tap.device)
    if old_form:
        await set_alias(BRIDGE, f"linkmgr:network/net0:{alias(BRIDGE).rpartition(':')[2]}")
        await set_alias(tap.device, f"linkmgr:other/net0:{tap.attachment}")
    for _ in range(2):
        async with LinkManager(state=state, watch=False) as links:
            assert (index(BRIDGE), index(tap.device)) == (bridge, device)
            assert await links.check() == []
            assert await links.gc(older_than=0) == []
            assert (await links.nic("other/net0")).state is NicState.PLUGGED
    async with LinkManager(state=state, watch=False) as links:
        assert await links.remove_vm(name)
        assert await links.remove_vm("other")
        assert await links.delete_network("net0")
        assert not (NET / BRIDGE).exists()


@pytest.mark.parametrize("old_form", [False, True], ids=["tagged-now", "tagged-by-an-older-one"])
async def test_a_vm_called_network_keeps_its_own_cable_and_loses_what_was_left_of_it(
    guest: Guest, tmp_path: Path, old_form: bool
) -> None:
    state = tmp_path / "state"
    async with LinkManager(state=state, watch=False) as links:
        await links.create_network("net0", "bridge", bridge=BRIDGE, create=True)
        await links.add_vm("network", guest.qmp_path)
        await links.plug("network/net0", "net0")
        tap = (await links.nic("network/net0")).connection
        assert tap is not None
    await execute(["ip", "tuntap", "add", "lm0000aaaa", "mode", "tap"])
    await set_alias("lm0000aaaa", "linkmgr:network/net0:0000aaaa")
    if old_form:
        await set_alias(tap.device, f"linkmgr:network/net0:{tap.attachment}")
        await set_alias(BRIDGE, "linkmgr:network/net0:0000bbbb")
    async with LinkManager(state=state, watch=False) as links:
        assert not (NET / "lm0000aaaa").exists()
        assert (NET / BRIDGE).exists()
        assert await links.check() == []
        assert alias(tap.device) == str(OwnerTag("network/net0", tap.attachment))
        await links.unplug("network/net0")
        assert not (NET / tap.device).exists()
        assert not (NET / BRIDGE).exists()
        assert await links.remove_vm("network")


async def test_backends_of_others_that_are_called_as_ours_stay_in_qemu(
    lab: Lab, tmp_path: Path
) -> None:
    """A NIC that is plugged into such a backend without a hub would lose its network for good."""
    names = ["lmt-uplink", "lmt-0123abcd", "lmp-"]
    args = hub_args("net0", mac="52:54:00:00:07:00")
    for number, name in enumerate(names, start=1):
        # What is deleted behind a NIC still stands in "info network", but listens no more.
        nic = f"virtio-net-pci,id=net{number},netdev={name},mac=52:54:00:00:07:0{number}"
        user = f"user,id={name},hostfwd=tcp:127.0.0.1:{PORT + number}-:22"
        args += ["-netdev", user, "-device", nic]
    other = await lab.guest("third", nic_args=args, boot=False, add=False)
    state = tmp_path / "state"
    try:
        async with LinkManager(state=state, watch=False) as links:
            await links.add_vm("third", other.qmp_path)
        async with LinkManager(state=state, watch=False) as links:
            assert await links.check() == []
            for number in range(1, 1 + len(names)):
                socket.create_connection(("127.0.0.1", PORT + number), timeout=5).close()
            assert await links.remove_vm("third")
    finally:
        await other.stop()
        del lab.guests["third"]


async def test_a_bridge_that_only_looks_like_a_cable_of_a_vm_is_not_one_of_a_network(
    tmp_path: Path,
) -> None:
    """The tag of a NIC's device does not let a network remove it, whatever it is called."""
    async with LinkManager(state=tmp_path / "state", watch=False) as links:
        await links.create_network("lab", "bridge", bridge=BRIDGE)
        await execute(["ip", "link", "add", BRIDGE, "type", "bridge"])
        await set_alias(BRIDGE, str(OwnerTag("network/lab", "0000aaaa")))
        try:
            assert await links.delete_network("lab")
            assert (NET / BRIDGE).exists()
        finally:
            await execute(["ip", "link", "del", BRIDGE])
