"""A NIC is named by VM/ALIAS, address, device or VM; what a QEMU claims never decides alone."""

from __future__ import annotations

import asyncio

import pytest

from linkmgr.errors import AmbiguousNic, BadName, NotFound, NotOnHub, UnknownNic, UnknownVm
from linkmgr.manager.manager import LinkManager
from linkmgr.model import NicRef
from linkmgr.naming import NicCandidate, NicName, find_nic
from linkmgr.text.suggest import COMPARED_MAX
from tests.unit.manager.test_manager_vms import HOT, HUB, FakeQemu, links, qemu
from tests.unit.qmp_peer import nothing_left_behind

__all__ = ["links", "nothing_left_behind", "qemu"]  # fixtures

A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
NICS = [
    NicCandidate(NicRef("web1", "net0"), A, "vnet0"),
    NicCandidate(NicRef("web2", "net0"), B, None, "vnet9"),
    NicCandidate(NicRef("web2", "net1"), "52:54:00:00:00:0c"),
]


def found(
    name: str, nics: list[NicCandidate] = NICS, vms: tuple[str, ...] = ("web1", "web2")
) -> str:
    return str(find_nic(NicName.parse(name), nics, vms))


@pytest.mark.parametrize(
    ("name", "nic"),
    [
        ("web1/net0", "web1/net0"),
        ("web1", "web1/net0"),
        (A, "web1/net0"),
        (A.upper(), "web1/net0"),
        ("vnet0", "web1/net0"),
        ("vnet9", "web2/net0"),
        (f"web2/{B}", "web2/net0"),
        ("web2/vnet9", "web2/net0"),
        ("web1/net7", "web1/net7"),  # the verb says that there is none
        ("web7/net0", "web7/net0"),
    ],
)
def test_each_of_its_names_means_the_nic(name: str, nic: str) -> None:
    assert found(name) == nic


@pytest.mark.parametrize("name", ["", "/", "web1/", "/net0", "a/b/c", "../net0", "52:54:00", "-x"])
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(BadName):
        NicName.parse(name)


def test_a_name_that_several_nics_have_is_an_error_that_lists_them() -> None:
    with pytest.raises(AmbiguousNic) as raised:
        found("web2")
    assert str(raised.value) == (
        "web2 may be any of 2 NICs. To do: name one of them: web2/net0, web2/net1"
    )
    many = [NicCandidate(NicRef("web3", f"net{number}")) for number in range(400)]
    with pytest.raises(AmbiguousNic, match="any of 400 NICs") as raised:
        found("web3", many)
    assert len(str(raised.value)) < 300


def test_a_name_that_no_nic_has_is_not_found() -> None:
    with pytest.raises(UnknownVm, match=r"there is no VM web, and no NIC .*did you mean web"):
        found("web")
    with pytest.raises(UnknownNic, match="no NIC of a running guest has the address 52:"):
        found("52:54:00:00:00:ff")
    with pytest.raises(UnknownNic, match="VM web1 has no NIC with the address") as raised:
        found(f"web1/{B}")
    assert raised.value.hint == "name one of its NICs: net0"
    with pytest.raises(UnknownNic, match="VM empty has no NICs"):
        found("empty", vms=("empty",))


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        (A, NicCandidate(NicRef("evil", "net0"), A)),
        ("web1", NicCandidate(NicRef("evil", "net0"), None, "web1")),
        ("vnet0", NicCandidate(NicRef("vnet0", "net0"))),
    ],
)
def test_a_name_that_another_vm_claims_too_is_ambiguous(name: str, claim: NicCandidate) -> None:
    with pytest.raises(AmbiguousNic, match=r"(evil|vnet0)/net0"):
        found(name, [*NICS, claim])


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("web1/net0", NicCandidate(NicRef("evil", "net0"), A, "vnet0")),
        ("web1/net0", NicCandidate(NicRef("web1", "net1"), None, "net0")),  # its alias is exact
        ("vnet0", NicCandidate(NicRef("evil", "vnet0"))),  # an alias alone is no name
        ("vnet0", NicCandidate(NicRef("evil", "net0"), None, None, "vnet0")),  # wanted, not there
        (A, NicCandidate(NicRef("evil", "net0"), None)),  # its guest has ended
    ],
)
def test_a_claim_of_another_vm_takes_no_name_away(name: str, claim: NicCandidate) -> None:
    assert found(name, [claim, *NICS, claim]) == "web1/net0"


async def test_every_verb_of_the_manager_takes_every_name(
    qemu: FakeQemu, links: LinkManager
) -> None:
    await links.add_vm("web1", "/run/web1.qmp")
    for name in ("web1/ua-net0", "web1", "52:54:00:00:00:01", "web1/52:54:00:00:00:01"):
        assert str((await links.nic(name)).ref) == "web1/ua-net0"
        assert str((await links.set_link(name, "up")).nic.ref) == "web1/ua-net0"
        assert str((await links.unplug(name)).nic.ref) == "web1/ua-net0"
        assert str((await links.set_device_name(name, "vnet5")).nic.ref) == "web1/ua-net0"
        assert str((await links.resync_link(name)).nic.ref) == "web1/ua-net0"
        with pytest.raises(NotFound, match="there is no network blue"):
            await links.plug(name, "blue")
    assert str(await links.resolve("vnet5")) == "web1/ua-net0"
    assert await links.resolve(NicRef("any", "thing")) == NicRef("any", "thing")


async def test_a_second_nic_makes_the_bare_vm_ambiguous_and_its_address_finds_it(
    qemu: FakeQemu, links: LinkManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.manager.inventory.SCAN_INTERVAL_S", 0.0)
    await links.add_vm("web1", "/run/web1.qmp")
    qemu.shown = HUB + HOT
    with pytest.raises(NotOnHub, match="web1/ua-hot"):
        await links.unplug("52:54:00:00:00:02")  # hot-plugged a moment ago
    with pytest.raises(AmbiguousNic, match="web1/ua-hot, web1/ua-net0"):
        await links.unplug("web1")


async def test_two_vms_with_one_address_are_told_apart_by_their_names(
    qemu: FakeQemu, links: LinkManager
) -> None:
    await links.add_vm("web1", "/run/web1.qmp")
    await links.add_vm("web2", "/run/web2.qmp")
    with pytest.raises(AmbiguousNic, match="web1/ua-net0, web2/ua-net0"):
        await links.unplug("52:54:00:00:00:01")
    assert str((await links.unplug("web2/52:54:00:00:00:01")).nic.ref) == "web2/ua-net0"


async def test_a_qemu_that_does_not_answer_holds_up_no_name_for_long(
    qemu: FakeQemu, links: LinkManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.manager.inventory.SCAN_INTERVAL_S", 0.0)
    monkeypatch.setattr("linkmgr.manager.inventory.NAMING_TIMEOUT_S", 0.1)
    await links.add_vm("web1", "/run/web1.qmp")
    qemu.peers[0].stop()
    async with asyncio.timeout(2):
        with pytest.raises(UnknownNic, match="no NIC of a running guest"):
            await links.unplug("52:54:00:00:00:ff")


async def test_a_network_in_the_place_of_the_nic_is_noticed(
    qemu: FakeQemu, links: LinkManager
) -> None:
    await links.add_vm("web1", "/run/web1.qmp")
    await links.create_network("blue", "bridge", bridge="lmnone")
    with pytest.raises(UnknownVm, match="To do: blue is a network: name the NIC first"):
        await links.plug("blue", "web1")


def test_many_names_are_compared_within_bounds() -> None:
    many = tuple(f"web{'x' * 50}{number:06}" for number in range(20 * COMPARED_MAX))
    with pytest.raises(UnknownVm) as raised:
        found("y" * 63, [], many)
    assert len(str(raised.value)) < 1000
