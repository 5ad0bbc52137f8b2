"""Devices that a crash of linkmgr left between their creation and their tag.

The kernel takes no interface alias in the message that makes a device. So the tag comes one
message later, and a kill -9 may come between the two. The group (ip-link(8)) is taken in the first.
Being in it proves nothing by itself, for an operator may use any number: a device that is removed
also has the shape in which linkmgr makes it, and is down and unused. Taps need none of this: they
are gone with the process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from linkmgr.host.names import CABLE_NAME
from linkmgr.host.netlink.link import DEVICE_GROUP, NetDevice


def untagged(devices: Iterable[NetDevice], bridges: Collection[str]) -> list[NetDevice]:
    """Find the devices that linkmgr made and did not tag.

    :param devices: all devices of this host.
    :param bridges: names of the bridges that linkmgr may have been about to make.
    """
    devices = list(devices)
    used = {index for device in devices for index in (device.master, device.parent) if index}
    return [
        device for device in devices if _is_untagged(device, bridges) and device.index not in used
    ]


def _is_untagged(device: NetDevice, bridges: Collection[str]) -> bool:
    if device.group != DEVICE_GROUP or device.alias or device.up or device.master:
        return False
    match device.kind:
        case "macvtap":
            return CABLE_NAME.fullmatch(device.name) is not None
        case "bridge":
            return device.name in bridges and not device.snooping
        case _:
            return False
