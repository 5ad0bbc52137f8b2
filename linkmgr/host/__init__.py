"""The kernel of this host: devices, taps, macvtaps, bridge ports, and who owns which descriptor.

Read in this order: `host` (what drivers and wirings call), `devices` (how a tap, macvtap or bridge
comes to be), `bridge_ports` (how a device gets onto a network), `netlink` (how the kernel is asked,
and what a refusal means), `fds` (descriptors that are passed and kept). Nothing here knows QEMU or
a network driver. Imports `aio`, `text` and the words.
"""

from __future__ import annotations

from linkmgr.host.devices.tap import Tap
from linkmgr.host.fd import Fd
from linkmgr.host.fds.holders import fd_holders
from linkmgr.host.host import Host
from linkmgr.host.names import check_ifname, device_name, new_id, private_mac, tap_mac
from linkmgr.host.netlink.link import FdbEntry, NetDevice, PortState

__all__ = [
    "Fd",
    "FdbEntry",
    "Host",
    "NetDevice",
    "PortState",
    "Tap",
    "check_ifname",
    "device_name",
    "fd_holders",
    "new_id",
    "private_mac",
    "tap_mac",
]
