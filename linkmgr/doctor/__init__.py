"""What `linkmgr doctor` looks at: a coroutine for each area, which returns its results.

None changes the host. Nothing here is loaded by any other command. Imports `service` and below.
"""

from __future__ import annotations

from linkmgr.doctor.forwarding import forwarding
from linkmgr.doctor.guests import guest_files
from linkmgr.doctor.kernel_probe import kernel
from linkmgr.doctor.libvirt_hook import apparmor, hook
from linkmgr.doctor.managers import managers
from linkmgr.doctor.prepared import prepared
from linkmgr.doctor.programs import libvirt, ovs, qemu
from linkmgr.doctor.result import ProbeResult, Verdict
from linkmgr.doctor.service_state import configuration, libvirt_section, rights, service
from linkmgr.doctor.versions import host

__all__ = [
    "ProbeResult",
    "Verdict",
    "apparmor",
    "configuration",
    "forwarding",
    "guest_files",
    "hook",
    "host",
    "kernel",
    "libvirt",
    "libvirt_section",
    "managers",
    "ovs",
    "prepared",
    "qemu",
    "rights",
    "service",
]
