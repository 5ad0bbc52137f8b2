"""The kernel of this host: devices, taps, macvtaps, bridge ports, and who owns which descriptor.

Read in this order: `host` (what drivers and wirings call), `tap` and `macvtap` (how a device comes
to be), `bridge` (how it gets onto a network), `rtnl` and `trouble` (how the kernel is asked, and
what a refusal means). Nothing here knows QEMU or a network driver.
"""

from __future__ import annotations

from linkmgr.host.fds import Fd
from linkmgr.host.holders import fd_holders
from linkmgr.host.host import Host
from linkmgr.host.links import FdbEntry, NetDevice, PortState
from linkmgr.host.names import check_ifname, device_name, new_id, private_mac, tap_mac
from linkmgr.host.tap import Tap

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
