"""What `linkmgr doctor` looks at: a coroutine for each area, which returns its results.

None changes the host. Nothing here is loaded by any other command.
"""

from __future__ import annotations

from linkmgr.cli.probes.abilities import kernel
from linkmgr.cli.probes.forwarding import forwarding
from linkmgr.cli.probes.guests import guest_files
from linkmgr.cli.probes.hooks import apparmor, hook
from linkmgr.cli.probes.line import ProbeResult, Verdict
from linkmgr.cli.probes.managers import managers
from linkmgr.cli.probes.prepared import prepared
from linkmgr.cli.probes.programs import libvirt, ovs, qemu
from linkmgr.cli.probes.standing import configuration, libvirt_section, rights, service
from linkmgr.cli.probes.versions import host

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
