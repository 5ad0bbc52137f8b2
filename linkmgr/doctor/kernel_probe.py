"""What the kernel can do, tried in namespaces that end at once."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linkmgr.doctor.result import ProbeResult, Verdict, run_program

TRIAL_COMMAND = [sys.executable, "-m", "linkmgr.doctor.kernel_trial"]


@dataclass(frozen=True)
class KernelFeature:
    """A feature that the kernel may have.

    :param option: of the kernel's configuration.
    """

    name: str
    good_for: str
    option: str
    module: str
    needed: bool = False


KERNEL_FEATURES = {
    "tap": KernelFeature("taps", "networks of driver bridge", "CONFIG_TUN", "tun", needed=True),
    "bridge": KernelFeature(
        "bridges", "networks of driver bridge", "CONFIG_BRIDGE", "bridge", needed=True
    ),
    "macvtap": KernelFeature(
        "macvtaps", "networks of driver direct", "CONFIG_MACVTAP", "macvtap", needed=True
    ),
    "veth": KernelFeature("veth pairs", "cables between namespaces", "CONFIG_VETH", "veth"),
    "vlan filtering": KernelFeature(
        "VLANs on bridges", "ports with a VLAN", "CONFIG_BRIDGE_VLAN_FILTERING", "8021q"
    ),
    "vlan": KernelFeature("VLAN devices", "parents with a VLAN", "CONFIG_VLAN_8021Q", "8021q"),
    "vxlan": KernelFeature("VXLAN", "networks across hosts", "CONFIG_VXLAN", "vxlan"),
    "mirred": KernelFeature(
        "tc redirects", "cables moved in the kernel", "CONFIG_NET_ACT_MIRRED", "act_mirred"
    ),
    "nft": KernelFeature("nftables", "allowed addresses", "CONFIG_NF_TABLES", "nf_tables"),
    "ifb": KernelFeature("ifb", "limits on what arrives", "CONFIG_IFB", "ifb"),
    "bonding": KernelFeature("bonding", "bonded parents", "CONFIG_BONDING", "bonding"),
}


async def kernel() -> list[ProbeResult]:
    """Try everything; without root the devices only are looked at."""
    found = await _trial()
    if "tried" not in found:
        todo = "run it as root: 'sudo linkmgr doctor'" if found.get("denied") else None
        results = [
            ProbeResult("kernel", each.name, Verdict.UNKNOWN, f"not tried: {found['error']}", todo)
            for each in KERNEL_FEATURES.values()
        ]
        return [*results, *nodes()]
    tried = {each["name"]: each for each in found["tried"]}
    results = [_feature(each, tried[name]) for name, each in KERNEL_FEATURES.items()]
    return [*results, *nodes(), _ovs_datapath(tried["openvswitch"])]


async def _trial() -> dict[str, Any]:
    # Another process: the namespaces end with it, and pyroute2 is loaded only there.
    status, said = await run_program(TRIAL_COMMAND)
    try:
        found = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        found = None
    if not isinstance(found, dict) or not {"tried", "error"} & set(found):
        return {"error": f"the trial ended with status {status}: {said.strip()[-300:]}"}
    return found


def _feature(each: KernelFeature, tried: dict[str, Any]) -> ProbeResult:
    if tried["works"]:
        what = tried["detail"] or f"for {each.good_for}"
        return ProbeResult("kernel", each.name, Verdict.WORKS, what, needed=each.needed)
    return ProbeResult(
        "kernel",
        each.name,
        Verdict.MISSING,
        f"no {each.good_for}: {tried['detail']}",
        f"'modprobe {each.module}', or a kernel with {each.option}",
        needed=each.needed,
        used=each.needed,
    )


def _ovs_datapath(tried: dict[str, Any]) -> ProbeResult:
    if tried["works"]:
        return ProbeResult(
            "OVS", "kernel datapath", Verdict.WORKS, "for bridges of datapath type system"
        )
    return ProbeResult(
        "OVS",
        "kernel datapath",
        Verdict.MISSING,
        "bridges of datapath type netdev (userspace) only",
        "'modprobe openvswitch', if you use Open vSwitch",
        used=False,
    )


def nodes(dev: Path = Path("/dev"), sys_: Path = Path("/sys")) -> list[ProbeResult]:
    """Look at the kernel's device nodes."""
    vfio = _node("VFIO", dev / "vfio/vfio", "PCI functions for guests", "'modprobe vfio-pci'")
    groups = sys_ / "kernel/iommu_groups"
    if vfio.verdict is Verdict.WORKS and not (groups.is_dir() and any(groups.iterdir())):
        vfio = ProbeResult(
            "kernel",
            "VFIO",
            Verdict.MISSING,
            "there is no IOMMU, so no PCI function can be given to a guest",
            "switch it on in the firmware, and with intel_iommu=on for the kernel",
            used=False,
        )
    return [
        _node("/dev/net/tun", dev / "net/tun", "taps", "'modprobe tun'", needed=True),
        _node("/dev/kvm", dev / "kvm", "guests at full speed", "'modprobe kvm_intel' or kvm_amd"),
        _node("vhost-net", dev / "vhost-net", "taps at full speed", "'modprobe vhost_net'"),
        vfio,
    ]


def _node(name: str, path: Path, good_for: str, how: str, *, needed: bool = False) -> ProbeResult:
    try:
        there = stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        there = False
    if not there:
        what = f"there is no {path}, for {good_for}"
        return ProbeResult("kernel", name, Verdict.MISSING, what, how, needed, used=needed)
    if not os.access(path, os.R_OK | os.W_OK):
        what = f"{path} is there, but this user may not open it"
        return ProbeResult("kernel", name, Verdict.UNKNOWN, what, "run it as root", needed)
    return ProbeResult("kernel", name, Verdict.WORKS, f"for {good_for}", needed=needed)
