"""What stands where libvirt's own backend of a NIC was."""

from __future__ import annotations

from typing import Any, cast

import pytest

from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp.info_network import parse_info_network
from linkmgr.wirings.hub.placeholder import ensure_placeholders

NIC = "index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01"
HUB = f"hub 7\n \\ lm-sink\n \\ lm-hub: ua-net0: {NIC}\n"
TAP = "hostua-net0: index=0,type=tap,ifname=lmtap0,script=no,downscript=no"


class FakeQemu:
    """A QEMU that shows one `info network` after another, and writes down what it was asked."""

    name = "VM web1"

    def __init__(self, *shown: str) -> None:
        self.shown = list(shown)
        self.asked: list[tuple[str, Any]] = []

    async def query_network(self) -> object:
        return parse_info_network(self.shown.pop(0) if len(self.shown) > 1 else self.shown[0])

    async def execute(self, name: str, arguments: object) -> None:
        self.asked.append((name, arguments))

    def dup_fd(self, number: int) -> None:
        raise AssertionError("there is no number")


ADD = {"type": "hubport", "id": "hostua-net0", "hubid": 1001}


@pytest.mark.parametrize(
    ("shown", "asked"),
    [
        # Nothing goes through libvirt's tap.
        (HUB + TAP, [("netdev_del", {"id": "hostua-net0"}), ("netdev_add", ADD)]),
        # It was cut off in the middle.
        (HUB, [("netdev_add", ADD)]),
        # Hubs that are taken.
        (HUB + "hub 1001\n \\ x\nhub 1002\n \\ y\n", [("netdev_add", ADD | {"hubid": 1003})]),
        # The placeholder is there.
        (HUB + "hub 1001\n \\ hostua-net0\n", []),
        # The override was not in force: the NIC is on libvirt's backend, and would lose it.
        (f"ua-net0: {NIC}\n \\ {TAP}", []),
        # Somebody has put it on a hub, or under another NIC.
        (HUB + f"hub 8\n \\ p: {TAP}\n", []),
        (HUB + f"other: {NIC}\n \\ {TAP}", []),
        # No such NIC, or one without a hub.
        ("", []),
        (f"ua-net0: {NIC}\n{TAP}", []),
    ],
)
async def test_only_a_backend_that_hangs_loose_is_replaced(
    shown: str, asked: list[tuple[str, Any]]
) -> None:
    peer = FakeQemu(shown)
    placed = await ensure_placeholders(cast("QemuProcess", peer), ["ua-net0"])
    assert peer.asked == asked
    assert placed == (["ua-net0"] if asked else [])


async def test_each_stub_gets_a_hub_of_its_own() -> None:
    other = HUB.replace("hub 7", "hub 9").replace("lm-", "lmx-").replace("ua-net0", "ua-net1")
    first = HUB + other
    second = HUB + other + "hub 1001\n \\ hostua-net0\n"
    peer = FakeQemu(first, second)
    assert await ensure_placeholders(cast("QemuProcess", peer), ["ua-net0", "ua-net1"]) == [
        "ua-net0",
        "ua-net1",
    ]
    assert [arguments["hubid"] for _, arguments in peer.asked] == [1001, 1002]
