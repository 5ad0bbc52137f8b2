"""Other people's programs: QEMU, libvirt, Open vSwitch."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from linkmgr.doctor import versions
from linkmgr.doctor.result import ProbeResult, Verdict, run_program
from linkmgr.errors import LibvirtUnreachable
from linkmgr.libvirt.client.libvirt_python import load_libvirt_python

SYSTEM_URI = "qemu:///system"  #: the libvirt of a service whose configuration names none
_MACHINES = ("x86_64", "aarch64", "ppc64", "riscv64", "s390x")
_KVM = Path("/usr/libexec/qemu-kvm")  # where RHEL and its kin have it


async def qemu() -> list[ProbeResult]:
    """Look for QEMU's programs; one of them that is new enough is needed."""
    found = [path for each in _MACHINES if (path := shutil.which(f"qemu-system-{each}"))]
    found += [str(_KVM)] if os.access(_KVM, os.X_OK) else []
    results = [await _one_qemu(path) for path in found]
    if any(result.verdict is Verdict.WORKS for result in results):
        return results
    none = ProbeResult(
        "QEMU",
        "program",
        Verdict.MISSING,
        f"no usable QEMU in PATH (of {len(results)})" if results else "no qemu-system-* in PATH",
        "install QEMU 4.2 or newer: 'apt install qemu-system-x86'",
        needed=True,
    )
    return [*results, none]


async def _one_qemu(path: str) -> ProbeResult:
    status, said = await run_program([path, "--version"])
    version = re.search(r"version (\d+)\.(\d+)\S*", said)
    name = Path(path).name
    if status or version is None:
        what = f"{path} does not run: {' '.join(said.split())[:200] or f'status {status}'}"
        return ProbeResult("QEMU", name, Verdict.MISSING, what, "install it again")
    found = (int(version[1]), int(version[2]))
    if versions.is_too_old("QEMU", found):
        what = f"{version[0]} is too old: it cannot announce one NIC alone"
        return ProbeResult("QEMU", name, Verdict.MISSING, what, "use QEMU 4.2 or newer")
    return ProbeResult(
        "QEMU", name, Verdict.WORKS, f"{version[0]}: {versions.tested('QEMU', found)}"
    )


async def libvirt(folder: Path = Path("/run/libvirt"), uri: str = SYSTEM_URI) -> list[ProbeResult]:
    """Look for libvirt's daemon and its Python module.

    :param uri: of the service's libvirt; empty if it does without.
    """
    if not uri:
        what = 'not used: the configuration says uri = "" in [libvirt]'
        return [ProbeResult("libvirt", "daemon", Verdict.WORKS, what)]
    if uri != SYSTEM_URI:
        return [await _libvirt_at(uri), _libvirt_python()]
    sockets = (folder / "virtqemud-sock", folder / "libvirt-sock")
    at = next((each for each in sockets if each.exists()), None)
    daemon = shutil.which("virtqemud") or shutil.which("libvirtd")
    if at is None and daemon is None:
        what = "not installed; only libvirt's guests need it"
        todo = "'apt install libvirt-daemon-system', if you use libvirt"
        return [ProbeResult("libvirt", "daemon", Verdict.MISSING, what, todo, used=False)]
    if at is None:
        what = f"{daemon} does not listen in {folder}"
        todo = "'systemctl start libvirtd.socket', or virtqemud.socket"
        first = ProbeResult("libvirt", "daemon", Verdict.MISSING, what, todo)
    else:
        said = (await run_program([daemon, "--version"]))[1].strip() if daemon else "listens"
        first = _of_version(said, str(at))
    return [first, _libvirt_python()]


async def _libvirt_at(uri: str) -> ProbeResult:
    """Ask a libvirt of which only the URI is known; one that does not run is not started for it."""
    program = shutil.which("virsh")
    if program is None:
        what = f"{uri} was not asked: there is no virsh"
        return ProbeResult(
            "libvirt", "daemon", Verdict.UNKNOWN, what, "'apt install libvirt-clients'"
        )
    argv = [program, "--quiet", "--connect", uri, "version", "--daemon"]
    status, said = await run_program(argv, {"LC_ALL": "C", "LIBVIRT_AUTOSTART": "0"})
    version = re.search(r"daemon: (\S+)", said)
    if status or version is None:
        words = " ".join(said.replace("error:", "").split())[:200]
        what = f"{uri} does not answer: {words or f'virsh ended with status {status}'}"
        todo = "start that libvirtd or virtqemud, or mend uri in [libvirt] of the configuration"
        return ProbeResult("libvirt", "daemon", Verdict.MISSING, what, todo)
    return _of_version(f"libvirt {version[1]}", uri)


def _of_version(said: str, where: str) -> ProbeResult:
    """A libvirt that answers: whether its version will do.

    :param said: its own words, with the version in them unless it is not known.
    """
    found = re.search(r"libvirt\)? (\d[\d.]*)", said)
    version = versions.read(found[1]) if found else None
    if version is None:
        return ProbeResult("libvirt", "daemon", Verdict.WORKS, f"{said}, {where}")
    if versions.is_too_old("libvirt", version):
        what = f"{said}, {where}: too old: it cannot put a NIC on a hub (qemu:override)"
        todo = "use libvirt 8.2 or newer; guests without libvirt need none"
        return ProbeResult("libvirt", "daemon", Verdict.MISSING, what, todo)
    what = f"{said}, {where}: {versions.tested('libvirt', version)}"
    return ProbeResult("libvirt", "daemon", Verdict.WORKS, what)


def _libvirt_python() -> ProbeResult:
    try:
        version = load_libvirt_python().libvirt.getVersion()
    except LibvirtUnreachable as error:
        return ProbeResult("libvirt", "Python module", Verdict.MISSING, error.what, error.hint)
    number = f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}"
    return ProbeResult("libvirt", "Python module", Verdict.WORKS, f"with libvirt {number}")


async def ovs(socket: Path = Path("/run/openvswitch/db.sock")) -> list[ProbeResult]:
    """Look for Open vSwitch's database and daemon."""
    program = shutil.which("ovs-vsctl")
    if program is None:
        what = "not installed; only networks on Open vSwitch need it"
        todo = "'apt install openvswitch-switch', if you use it"
        return [ProbeResult("OVS", "ovs-vsctl", Verdict.MISSING, what, todo, used=False)]
    version = re.search(r"\d+\.\d+\S*", (await run_program([program, "--version"]))[1])
    found = ProbeResult("OVS", "ovs-vsctl", Verdict.WORKS, version[0] if version else program)
    if not socket.exists():
        what, todo = f"there is no {socket}", "'systemctl start openvswitch-switch'"
        return [found, ProbeResult("OVS", "database", Verdict.MISSING, what, todo)]
    status, said = await run_program([program, "--timeout=5", "show"])
    if status:
        what = f"does not answer: {' '.join(said.split())[:200]}"
        todo = "'systemctl status openvswitch-switch'; as root"
        return [found, ProbeResult("OVS", "database", Verdict.MISSING, what, todo)]
    return [found, ProbeResult("OVS", "database", Verdict.WORKS, "answers")]
