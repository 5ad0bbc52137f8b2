"""NICs of a real QEMU that have no id, or one that cannot be a name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkmgr import LinkManager, NicState, hub_args
from linkmgr.errors import UnusableNicId
from linkmgr.model import NicRef
from linkmgr.state.codec import JsonReader, read_nic, to_json
from linkmgr.testing import Guest
from linkmgr.wirings.hub.alias import alias_of
from tests.integration.lab import Lab, mac_of

LONG = "a" * 64
GOOD = hub_args("net0", mac=mac_of(1, 0))


def on_hub(number: int, device: str) -> list[str]:
    """The arguments of a NIC on a hub of its own, whatever its id is."""
    return [
        "-netdev", f"hubport,id=hub{number},hubid={number}",
        "-netdev", f"hubport,id=sink{number},hubid={number}",
        "-device", f"{device},netdev=hub{number},mac={mac_of(1, number)}",
    ]  # fmt: skip


ODD: dict[str, tuple[list[str], str]] = {
    "a long id": (on_hub(7, f"virtio-net-pci,id={LONG}"), alias_of(LONG)),
    "a very long id": (on_hub(7, f"virtio-net-pci,id={LONG * 10}"), alias_of(LONG * 10)),
    "no id": (on_hub(7, "virtio-net-pci"), "virtio-net-pci.1"),
    "-nic": (
        [
            "-nic", f"hubport,hubid=7,model=virtio-net-pci,mac={mac_of(1, 7)}",
            "-netdev", "hubport,id=sink7,hubid=7",
        ],
        "virtio-net-pci.0",
    ),
    "-net": (["-net", "nic,model=e1000", "-net", "user"], "e1000.0"),
}  # fmt: skip


async def expect_unmanaged(links: LinkManager, alias: str) -> None:
    """The NIC is listed, and all that can be asked of it says why its cable cannot change."""
    ref = NicRef("web1", alias)
    by_ref = {nic.ref: nic for nic in await links.nics()}
    assert by_ref[ref].state is NicState.UNMANAGED
    assert read_nic(JsonReader(to_json(by_ref[ref]))) == by_ref[ref], "a client can read it"
    assert ref in (await links.vms())[0].nics
    (finding,) = [each for each in await links.check() if each.subject == str(ref)]
    assert finding.code == "unusable-nic-id"
    assert "an id" in finding.hint
    with pytest.raises(UnusableNicId, match="id") as info:
        await links.plug(str(ref), "blue")
    assert info.value.nic == str(ref)


@pytest.mark.next_qemu
@pytest.mark.parametrize(("arguments", "alias"), ODD.values(), ids=ODD)
async def test_a_nic_without_a_usable_id_is_shown_as_unmanaged_and_harms_no_other(
    lab: Lab, tmp_path: Path, arguments: list[str], alias: str
) -> None:
    guest = Guest("web1", nic_args=[*GOOD, *arguments], workdir=lab.workdir)
    await lab.stack.enter_async_context(guest)
    await lab.network("blue")
    state = tmp_path / "state"
    for first in (True, False):  # and after a restart
        async with LinkManager(state=state, timeout=5) as links:
            if first:
                await links.add_vm("web1", guest.qmp_path)
                await links.create_network("blue", "bridge", bridge="br-blue")
                await links.plug("web1/net0", "blue", notify="silent")
            else:
                assert not [f for f in await links.check() if f.code == "state-damaged"]
            assert (await links.nic("web1/net0")).state is NicState.PLUGGED
            await expect_unmanaged(links, alias)
            assert (await links.nic("web1/net0")).state is NicState.PLUGGED


@pytest.mark.next_qemu
@pytest.mark.parametrize("ident", [LONG, None], ids=["a long id", "no id"])
async def test_a_nic_without_a_usable_id_that_is_hot_plugged_is_shown_as_unmanaged(
    lab: Lab, ident: str | None
) -> None:
    slot = ["-device", "pcie-root-port,id=slot1,chassis=1"]
    guest = await lab.guest(boot=False, nic_args=[*GOOD, *slot])
    await lab.network("blue")
    await lab.links.plug("web1/net0", "blue", notify="silent")
    for name in ("hub8", "sink8"):
        await guest.qmp("netdev_add", type="hubport", id=name, hubid=8)
    device = {} if ident is None else {"id": ident}
    await guest.qmp("device_add", driver="virtio-net-pci", netdev="hub8", bus="slot1", **device)
    await asyncio.sleep(1.1)  # new ones are looked for once a second
    await expect_unmanaged(lab.links, "virtio-net-pci.1" if ident is None else alias_of(ident))
    await lab.links.unplug("web1/net0")


async def test_the_link_of_a_nic_whose_cable_cannot_change_stays_as_it_is_over_a_restart(
    lab: Lab, tmp_path: Path
) -> None:
    fixed = [
        "-netdev",
        "user,id=u",
        "-device",
        f"virtio-net-pci,id=net1,netdev=u,mac={mac_of(1, 1)}",
    ]
    guest = await lab.guest(add=False, nic_args=[*GOOD, *fixed])
    for _ in range(2):
        async with LinkManager(state=tmp_path / "state", timeout=5) as links:
            if not await links.vms():
                await links.add_vm("web1", guest.qmp_path)
            assert (await links.nic("web1/net1")).state is NicState.UNMANAGED
            eth = "$(dirname $(grep -l 52:54:00:00:01:01 /sys/class/net/*/address))"
            await guest.run(f"ip link set $(basename {eth}) up; sleep 1.2")
            assert (await guest.run(f"cat {eth}/carrier")).output.strip() == "1"
