"""What this kernel can do for linkmgr, by trying it: ``python -m linkmgr.doctor.kernel_trial``.

It moves into a network and a mount namespace that end with it, makes there what a network driver
would make, and prints what happened as JSON. The host is not touched, but for modules that the
kernel loads by itself. Two modules make devices on the host when they are loaded (ifb, bonding):
these are not tried unless they are loaded already.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from linkmgr.host.devices.macvtap import make_macvtap
from linkmgr.host.devices.tap import make_tap
from linkmgr.host.netlink.changes import Rtnl, index_of, new_link
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.model import DirectMode, OwnerTag

_NEWNS, _NEWNET = 0x00020000, 0x40000000  # linux/sched.h
_PRIVATE = 0x40000 | 0x4000  # MS_PRIVATE | MS_REC
_ETH_P_ALL = 3
_TAG = OwnerTag("doctor/net0", "00000000")
_MAC = "52:54:00:00:00:01"
_NETLINK_NETFILTER, _NFT_GETGEN = 12, (10 << 8) | 16  # linux/netfilter/nfnetlink.h, nf_tables.h
_NETLINK_GENERIC, _CTRL, _GETFAMILY, _FAMILY_NAME = 16, 16, 3, 2  # linux/genetlink.h


@dataclass(frozen=True)
class TrialResult:
    """One thing that was tried.

    :param works: ``None`` when it could not be tried.
    :param detail: the kernel's own words, or why it was not tried.
    """

    name: str
    works: bool | None
    detail: str = ""


def try_features() -> list[TrialResult]:
    """Try everything. Leaves this process in namespaces of its own for good.

    :raise OSError: without the right to make a namespace (CAP_SYS_ADMIN).
    """
    _enter_namespaces()
    with Rtnl() as rtnl:
        rtnl.change(new_link("doctor0", "veth", {"VETH_INFO_PEER": _peer("doctor1")}))
    return [
        *_try("tap", _tap),
        *_try("bridge", lambda: _link("bridge")),
        *_try("macvtap", _macvtap),
        *_try("veth", lambda: _link("veth", {"VETH_INFO_PEER": _peer("doctor3")})),
        *_try("vlan filtering", lambda: _link("bridge", {"IFLA_BR_VLAN_FILTERING": 1})),
        *_try("vlan", lambda: _link("vlan", {"IFLA_VLAN_ID": 5}, link=index_of("doctor0"))),
        *_try("vxlan", lambda: _link("vxlan", {"IFLA_VXLAN_ID": 5})),
        *_try("mirred", _mirred),
        *_try("nft", _nft),
        *_try_if_loaded("ifb"),
        *_try_if_loaded("bonding", "bond"),
        *_try("openvswitch", lambda: _family("ovs_datapath")),
    ]


def _enter_namespaces() -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    checked(libc.unshare(_NEWNET | _NEWNS))
    checked(libc.mount(b"none", b"/", None, _PRIVATE, None))
    # A sysfs shows the network namespace that it was mounted in, and a macvtap is found there.
    checked(libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None))


def _try(name: str, attempt: Callable[[], None]) -> list[TrialResult]:
    try:
        attempt()
    except KernelRefused as refused:
        return [TrialResult(name, False, refused.text)]
    except OSError as error:
        return [TrialResult(name, False, str(error))]
    return [TrialResult(name, True)]


def _try_if_loaded(module: str, kind: str | None = None) -> list[TrialResult]:
    if not Path("/sys/module", module).exists():
        found = _find_module(module)
        if found is not None:
            return [
                TrialResult(module, True, f"as a module that is not loaded, {found}; not tried")
            ]
    return _try(module, lambda: _link(kind or module))


def _find_module(name: str) -> str | None:
    """The file of a module that could be loaded; ``None`` for one that is built in or missing."""
    try:
        lines = Path("/lib/modules", platform.release(), "modules.dep").read_text().splitlines()
    except OSError:
        return None
    files = [line.partition(":")[0].rpartition("/")[2] for line in lines]
    return next((file for file in files if file.partition(".")[0] == name), None)


def _peer(name: str) -> dict[str, Any]:
    return {"attrs": [["IFLA_IFNAME", name]]}


def _link(kind: str, data: dict[str, Any] | None = None, **attrs: object) -> None:
    with Rtnl() as rtnl:
        rtnl.change(new_link(f"d{os.urandom(4).hex()}", kind, data, **attrs))


def _tap() -> None:
    make_tap("doctortap", _TAG, mtu=1500, vnet_hdr=False, up=True).close()


def _macvtap() -> None:
    parent = index_of("doctor0")
    make_macvtap(
        "doctormv", parent, _TAG, mode=DirectMode.BRIDGE, mac=_MAC, mtu=1500, up=False
    ).close()


def _mirred() -> None:
    """Redirect all that comes in on one device out of another one, as the anchor wiring does."""
    action = {
        "kind": "mirred",
        "direction": "egress",
        "action": "redirect",
        "ifindex": index_of("doctor1"),
    }
    with IPRoute() as route:
        try:
            route.tc("add", "ingress", index_of("doctor0"), 0xFFFF0000)
            route.tc(
                "add-filter", "u32", index_of("doctor0"), parent=0xFFFF0000, prio=1,
                protocol=_ETH_P_ALL, target=0x10001, keys=["0x0/0x0+0"], action=action,
            )  # fmt: skip
        except NetlinkError as error:
            raise KernelRefused(error.code, "redirect with tc") from error


def _nft() -> None:
    """Ask nf_tables for its generation: it answers if it is there."""
    payload = struct.pack("=BBH", 0, 0, 0)
    _ask(_NETLINK_NETFILTER, _NFT_GETGEN, payload, "ask nf_tables")


def _family(name: str) -> None:
    """Ask for a family of generic netlink."""
    text = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(text), _FAMILY_NAME) + text
    payload = struct.pack("=BBH", _GETFAMILY, 1, 0) + attribute + bytes(-len(attribute) % 4)
    _ask(_NETLINK_GENERIC, _CTRL, payload, f"find {name}")


def _ask(protocol: int, kind: int, payload: bytes, action: str) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as asked:
        asked.settimeout(2)
        asked.send(struct.pack("=IHHII", 16 + len(payload), kind, 1, 1, 0) + payload)
        answer = asked.recv(65536)
    if struct.unpack_from("=H", answer, 4)[0] == 2:  # NLMSG_ERROR
        code = -struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise KernelRefused(code, action)


def main() -> None:
    """Print what `try_features` finds, or that it cannot be tried."""
    try:
        found = [asdict(each) for each in try_features()]
    except (OSError, KernelRefused) as error:
        code = error.errno if isinstance(error, OSError) else error.code
        print(json.dumps({"error": str(error), "denied": code == errno.EPERM}))  # noqa: T201 - for doctor
    else:
        print(json.dumps({"tried": found}))  # noqa: T201 - for doctor


if __name__ == "__main__":
    main()
