"""What `linkmgr doctor` looks at. Each probe returns lines; none changes the host."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import importlib.util
import json
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

GROUP = "linkmgr"
OLDEST_QEMU = (4, 2)
CAP_NET_ADMIN = 12  # linux/capability.h
PATIENCE = 5.0  #: seconds for anything that is asked


class Verdict(StrEnum):
    """What a line says."""

    WORKS = "works"
    MISSING = "missing"  #: does not work
    UNKNOWN = "unknown"  #: could not be tried


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    :param needed: whether linkmgr is of no use here without it.
    :param what: what was found.
    :param todo: what to do about it; ``None`` when nothing has to be done.
    """

    area: str
    name: str
    verdict: Verdict
    what: str
    todo: str | None = None
    needed: bool = False


@dataclass(frozen=True)
class Ability:
    """One thing that the kernel may be able to do.

    :param option: of the kernel's configuration; its module can be loaded by name.
    """

    name: str
    needed: bool
    good_for: str
    option: str
    module: str


ABILITIES = {
    "tap": Ability("tap devices", True, "every plug into a bridge", "CONFIG_TUN", "tun"),
    "bridge": Ability("bridges", True, "networks of driver bridge", "CONFIG_BRIDGE", "bridge"),
    "macvtap": Ability("macvtap", True, "networks of driver direct", "CONFIG_MACVTAP", "macvtap"),
    "veth": Ability("veth pairs", False, "the anchor wiring", "CONFIG_VETH", "veth"),
    "vlan filtering": Ability(
        "VLANs on bridges", False, "ports with a VLAN", "CONFIG_BRIDGE_VLAN_FILTERING", "bridge"
    ),
    "vlan": Ability("VLAN devices", False, "parents with a VLAN", "CONFIG_VLAN_8021Q", "8021q"),
    "vxlan": Ability("VXLAN", False, "networks across hosts", "CONFIG_VXLAN", "vxlan"),
    "mirred": Ability(
        "redirects with tc", False, "the anchor wiring", "CONFIG_NET_ACT_MIRRED", "act_mirred"
    ),
    "nft": Ability("nftables", False, "allowed addresses", "CONFIG_NF_TABLES", "nf_tables"),
    "ifb": Ability("ifb", False, "limits on what arrives", "CONFIG_IFB", "ifb"),
    "bonding": Ability("bonding", False, "bonded parents", "CONFIG_BONDING", "bonding"),
}


# ---------------------------------------------------------------------- kernel


async def kernel() -> list[Line]:
    """Try what the kernel can do, in namespaces that end at once."""
    found = await _ask_kernel()
    if "tried" not in found:
        todo = "run it as root: 'sudo linkmgr doctor'" if found.get("denied") else None
        what = f"cannot be tried: {found['error']}"
        return [
            Line("kernel", each.name, Verdict.UNKNOWN, what, todo, each.needed)
            for each in ABILITIES.values()
        ] + kernel_files()
    tried = {each["name"]: each for each in found["tried"]}
    return [_ability(each, tried[name]) for name, each in ABILITIES.items()] + kernel_files()


async def _ask_kernel() -> dict[str, Any]:
    # Another process: the namespaces end with it, and pyroute2 is loaded only there.
    status, said = await _run([sys.executable, "-m", "linkmgr.host.capability"], PATIENCE * 4)
    try:
        found = json.loads(said.splitlines()[-1])
        assert isinstance(found, dict)
    except (ValueError, IndexError, AssertionError):
        return {"error": f"the trial ended with status {status}: {said.strip()[-300:]}"}
    return found


def _ability(each: Ability, tried: dict[str, Any]) -> Line:
    if tried["works"]:
        what = tried["detail"] or f"for {each.good_for}"
        return Line("kernel", each.name, Verdict.WORKS, what, needed=each.needed)
    return Line(
        "kernel", each.name, Verdict.MISSING,
        f"not for {each.good_for}: {tried['detail']}",
        f"load the module ('modprobe {each.module}'), or use a kernel with {each.option}",
        each.needed,
    )  # fmt: skip


def kernel_files() -> list[Line]:
    """Look at the kernel's device nodes."""
    tun, vhost, vfio = Path("/dev/net/tun"), Path("/dev/vhost-net"), Path("/dev/vfio/vfio")
    groups = Path("/sys/kernel/iommu_groups")
    units = groups.is_dir() and any(groups.iterdir())
    lines = [
        _node("kernel", "/dev/net/tun", tun, "taps", "'modprobe tun'", needed=True),
        _node("kernel", "vhost-net", vhost, "fast taps of the anchor wiring",
              "'modprobe vhost_net'; the hub wiring does without"),
    ]  # fmt: skip
    if vfio.exists() and not units:
        lines.append(
            Line(
                "kernel", "VFIO", Verdict.MISSING, "there is no IOMMU, so no function can be given"
                " to a guest", "switch the IOMMU on, in the firmware and with intel_iommu=on or "
                "amd_iommu=on on the kernel's command line",
            )  # fmt: skip
        )
    else:
        lines.append(_node("kernel", "VFIO", vfio, "PCI functions", "'modprobe vfio-pci'"))
    return lines


def _node(
    area: str, name: str, path: Path, good_for: str, how: str, *, needed: bool = False
) -> Line:
    try:
        there = stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        there = False
    if there:
        return Line(area, name, Verdict.WORKS, f"for {good_for}", needed=needed)
    what = f"there is no {path}, for {good_for}"
    return Line(area, name, Verdict.MISSING, what, f"load the module: {how}", needed)


# ---------------------------------------------------------------------- QEMU, libvirt, OVS


async def qemu() -> list[Line]:
    """Look for QEMU's programs and their versions."""
    names = {f"qemu-system-{machine}" for machine in ("x86_64", "aarch64", "ppc64", "s390x")}
    found = [path for name in sorted(names) if (path := shutil.which(name))]
    found += [path for path in ("/usr/libexec/qemu-kvm",) if os.access(path, os.X_OK)]
    lines = [await _one_qemu(path) for path in found]
    if not lines:
        return [
            Line(
                "QEMU", "program", Verdict.MISSING, "there is no qemu-system-* in PATH",
                "install it: 'apt install qemu-system-x86', or your system's package", needed=True,
            )  # fmt: skip
        ]
    # One that works is enough.
    return lines + [
        _node("QEMU", "/dev/kvm", Path("/dev/kvm"), "guests at full speed",
              "'modprobe kvm_intel' or 'modprobe kvm_amd'; guests run without, slowly")
    ]  # fmt: skip


async def _one_qemu(path: str) -> Line:
    status, said = await _run([path, "--version"])
    version = re.search(r"version (\d+)\.(\d+)(?:\.\d+)*", said)
    if status or version is None:
        what = f"{path} does not run: {said.strip()[:200] or f'status {status}'}"
        return Line("QEMU", Path(path).name, Verdict.MISSING, what, "install it again", needed=True)
    if (int(version[1]), int(version[2])) < OLDEST_QEMU:
        what = f"{version[0]}, too old: it cannot be told which NIC to announce"
        return Line(
            "QEMU", Path(path).name, Verdict.MISSING, what, "use QEMU 4.2 or newer", needed=True
        )
    return Line("QEMU", Path(path).name, Verdict.WORKS, version[0], needed=True)


async def libvirt() -> list[Line]:
    """Look for libvirt's daemon and its Python module."""
    sockets = [Path("/run/libvirt", name) for name in ("virtqemud-sock", "libvirt-sock")]
    at = next((each for each in sockets if each.exists()), None)
    daemon = shutil.which("libvirtd") or shutil.which("virtqemud")
    if daemon is None and at is None:
        what = "is not installed; only needed for libvirt's guests"
        return [Line("libvirt", "daemon", Verdict.MISSING, what, "install libvirt, if you want it")]
    lines = []
    if at is None:
        lines.append(
            Line(
                "libvirt", "daemon", Verdict.MISSING, f"{daemon} is there, but does not listen",
                "start it: 'systemctl start libvirtd.socket', or virtqemud.socket",
            )  # fmt: skip
        )
    else:
        version = (await _run([daemon, "--version"]))[1].strip() if daemon else ""
        lines.append(Line("libvirt", "daemon", Verdict.WORKS, f"{version or 'listens'}, {at}"))
    if importlib.util.find_spec("libvirt") is None:
        what, todo = "cannot be imported", "install libvirt-python for linkmgr's Python"
        lines.append(Line("libvirt", "Python module", Verdict.MISSING, what, todo))
    else:
        lines.append(Line("libvirt", "Python module", Verdict.WORKS, "can be imported"))
    return lines


async def ovs(kernel_lines: Sequence[dict[str, Any]] | None = None) -> list[Line]:
    raise NotImplementedError
