"""QEMU arguments that boot a NIC whose cable can change."""

from __future__ import annotations

import re
import zlib

from linkmgr.errors import BadName, BadOption
from linkmgr.model import check_name


def hub_number(alias: str) -> int:
    """The hub of a NIC: a number made from its alias, so that no two NICs ask for the same."""
    return zlib.crc32(alias.encode()) & 0x7FFFFFFF


def hub_args(
    alias: str,
    *,
    mac: str,
    model: str = "virtio-net-pci",
    hub: int | None = None,
    host_mtu: int | None = None,
    properties: str = "",
) -> list[str]:
    """The arguments of QEMU that boot a NIC on a hub: no cable, ready to be plugged.

    The hub gets a second port that is never used, the sink: without it the guest's first frame
    into the empty hub would wedge the NIC's transmit queue for good.

    QEMU has no argument for a NIC that boots with its link down. Start it with ``-S`` and send
    ``cont`` after `LinkManager.add_vm`, or the guest sees a carrier until then.

    :param alias: QEMU's device id of the NIC, such as ``net0``.
    :param mac: the NIC's address.
    :param model: any NIC model of QEMU.
    :param hub: number of the hub, 0 to 2**31 - 1; by default made from the alias.
    :param host_mtu: bytes, told to the guest; virtio only.
    :param properties: further properties of the device, as in ``romfile=,bus=pci.0``.
    :raise BadName: when the alias cannot be a device id of QEMU.
    :raise BadOption: when the address or the number cannot be one.
    """
    check_name("NIC", alias)
    if not alias[0].isalpha():
        raise BadName(f"{alias!r} cannot be a device id of QEMU", hint="begin it with a letter")
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac) or int(mac[:2], 16) & 1:
        raise BadOption(
            f"{ascii(mac)[:43]} cannot be the address of a NIC", hint="write 52:54:00:12:34:56"
        )
    number = hub_number(alias) if hub is None else hub
    if not 0 <= number < 2**31:
        raise BadOption(f"{number} cannot be the number of a hub", hint="use 0 to 2147483647")
    device = f"{model},id={alias},netdev=lm-hub-{alias},mac={mac}"
    if host_mtu is not None:
        device += f",host_mtu={host_mtu}"
    if properties:
        device += f",{properties}"
    return [
        "-netdev", f"hubport,id=lm-hub-{alias},hubid={number}",
        "-netdev", f"hubport,id=lm-sink-{alias},hubid={number}",
        "-device", device,
    ]  # fmt: skip
