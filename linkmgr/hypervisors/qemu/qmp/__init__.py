"""A QEMU monitor: commands with file descriptors, events, features.

Read `monitor` first; `transport` is where ``qemu.qmp`` ends, `info_network` and `features` turn
two of QEMU's answers into data. `connector` connects, and `admission` says whether the peer may be
the VM's QEMU; `inbound` and `event_budget` bound what QEMU sends.
"""

from linkmgr.hypervisors.qemu.qmp.events import MonitorEvent, MonitorEvents
from linkmgr.hypervisors.qemu.qmp.features import Features
from linkmgr.hypervisors.qemu.qmp.info_network import NetTopology, parse_info_network
from linkmgr.hypervisors.qemu.qmp.monitor import Monitor, QmpCommand

__all__ = [  # noqa: RUF022 - most important first
    "Monitor",
    "QmpCommand",
    "MonitorEvent",
    "MonitorEvents",
    "Features",
    "NetTopology",
    "parse_info_network",
]
