"""QEMU arguments that boot a NIC whose cable can change."""

from __future__ import annotations

import re
import zlib

from linkmgr.errors import BadName, BadOption
from linkmgr.model import check_name

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    :raise BadOption: when QEMU would not take one of the others, or take it for something else.
    """
    check_name("NIC", alias)
    if not alias[0].isalpha():
        raise BadName(f"{alias!r} cannot be a device id of QEMU", hint="begin it with a letter")
    _check_mac(mac)
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise BadOption(f"{_shown(model)} cannot be a model of a NIC", hint="write virtio-net-pci")
    if not isinstance(properties, str):
        raise BadOption(
            f"{_shown(properties)} cannot be properties of a NIC", hint="write romfile=,bus=pci.0"
        )
    number = hub_number(alias) if hub is None else hub
    if not _is_number(number, 0, 2**31 - 1):
        raise BadOption(f"{_shown(number)} cannot be the number of a hub",
                        hint="use 0 to 2147483647")  # fmt: skip
    if host_mtu is not None:
        _check_mtu(model, host_mtu)
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


def _check_mac(mac: object) -> None:
    hint = "write 52:54:00:12:34:56"
    good = isinstance(mac, str) and re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac)
    if not good or int(str(mac)[:2], 16) & 1:
        raise BadOption(f"{_shown(mac)} cannot be the address of a NIC", hint=hint)
    if mac == "00:00:00:00:00:00":
        raise BadOption(
            f"with {mac} QEMU would give the NIC an address of its own, the same in every guest",
            hint=hint,
        )


def _check_mtu(model: str, host_mtu: object) -> None:
    if not _is_number(host_mtu, 68, 65535):
        raise BadOption(f"{_shown(host_mtu)} cannot be the MTU of a NIC", hint="use 68 to 65535")
    if not model.startswith("virtio-net"):
        raise BadOption(
            f"{model} has no host_mtu, only virtio has",
            hint="use the model virtio-net-pci, or leave host_mtu out",
        )


def _is_number(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _shown(value: object) -> str:
    return ascii(value)[:43]
