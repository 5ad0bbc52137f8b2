"""A QEMU monitor: commands with file descriptors, events, features.

Read `monitor` first; `connection` is where ``qemu.qmp`` ends, `network` and `features` turn two of
QEMU's answers into data.
"""

from linkmgr.qmp.events import MonitorEvent, MonitorEvents
from linkmgr.qmp.features import Features
from linkmgr.qmp.monitor import Monitor, QmpCommand
from linkmgr.qmp.network import NetTopology, parse_info_network

__all__ = [  # noqa: RUF022 - most important first
    "Monitor",
    "QmpCommand",
    "MonitorEvent",
    "MonitorEvents",
    "Features",
    "NetTopology",
    "parse_info_network",
]
