"""Why a parent carries no macvtap, where no such hardware is at hand."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import cast

from linkmgr.host.devices.macvlan_parent import address_refused_error, explain_macvtap_refusal
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.host.netlink.link import NetDevice
from linkmgr.host.netlink.reader import NetlinkReader
from linkmgr.model import DirectMode

MAC = "52:54:00:00:00:01"
VF = NetDevice(
    7, "enp3s0v1", None, "52:54:00:00:00:99", 1500, True, "up", True, None, None, None, None,
    False, False,
)  # fmt: skip


class OneDevice:
    """Shows the virtual function, and nothing on it."""

    async def device(self, *_: object) -> NetDevice:
        return VF

    async def list_devices(self) -> list[NetDevice]:
        return [VF]


async def test_a_virtual_function_that_does_not_take_the_address_is_told_as_such() -> None:
    refused = KernelRefused(errno.EADDRNOTAVAIL, "set up lm1")
    error = await explain_macvtap_refusal(
        cast("NetlinkReader", OneDevice()), refused, "lm1", VF.name, mode=DirectMode.PASSTHRU,
        mac=MAC, mtu=1500,
    )  # fmt: skip
    assert MAC in error.what
    assert "dmesg" not in (error.hint or "")


def test_the_hint_names_the_physical_function_and_the_number_that_it_has_there(
    tmp_path: Path,
) -> None:
    bus, net = tmp_path / "bus", tmp_path / "net"
    for number in range(3):
        (bus / f"vf{number}").mkdir(parents=True)
        (net / f"enp3s0v{number}").mkdir(parents=True)
        (net / f"enp3s0v{number}" / "device").symlink_to(bus / f"vf{number}")
        (bus / f"vf{number}" / "physfn").symlink_to(bus / "pf")
    (bus / "pf/net/enp3s0").mkdir(parents=True)
    for number in range(3):
        (bus / f"pf/virtfn{number}").symlink_to(bus / f"vf{number}")
    error = address_refused_error(VF, MAC, str(net))
    assert error.hint == f"run 'ip link set enp3s0 vf 1 mac {MAC}', and plug the NIC again"
    plain = address_refused_error(replace(VF, name="eth1"), MAC, str(net))
    assert "enp3s0" not in str(plain)
