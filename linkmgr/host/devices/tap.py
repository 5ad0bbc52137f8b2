"""Taps: a descriptor on one side, a network device on the other (kernel: networking/tuntap)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass

from linkmgr.host.devices.ipv6_off import disable_ipv6
from linkmgr.host.fd import Fd
from linkmgr.host.names import tap_mac
from linkmgr.host.netlink.changes import IFF_UP, Rtnl, set_link
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.host.netlink.link import DEVICE_GROUP, NetDevice
from linkmgr.model import OwnerTag

TUN = "/dev/net/tun"

# linux/if_tun.h
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_TUNSETIFF = 0x400454CA
_IFREQ = struct.Struct("=16sH22x")


@dataclass(frozen=True)
class Tap:
    """A tap or macvtap that was just made.

    :param device: as it was then.
    :param fd: owned by whoever holds this object. A tap goes when its last descriptor is closed; a
        macvtap stays until it is deleted.
    """

    device: NetDevice
    fd: Fd


def set_interface(fd: int, name: str, flags: int, action: str) -> None:
    """TUNSETIFF.

    :raise KernelRefused: when the kernel does.
    """
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))
    except OSError as error:
        raise KernelRefused(error.errno or 0, action, error.strerror) from error


def make_tap(name: str, tag: OwnerTag, *, mtu: int, vnet_hdr: bool, up: bool) -> Fd:
    """Make a tap that is silent, tagged and not persistent. Blocks for about 1 ms.

    Without vnet_hdr it also suits a QEMU hub, which carries no virtio-net header.

    :raise KernelRefused: when the kernel does; nothing is left then. EEXIST when the name is taken.
    """
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if vnet_hdr else 0)
    with ExitStack() as undo:
        # Closing the descriptor removes the device: it is the whole undo.
        fd = undo.enter_context(Fd(_open(name)))
        try:
            # Without IFF_TUN_EXCL this would attach to a persistent tap of that name.
            set_interface(fd.number, name, flags | IFF_TUN_EXCL, f"create {name}")
        except KernelRefused as refused:
            if refused.code == errno.EBUSY:
                raise KernelRefused(errno.EEXIST, refused.action) from refused
            raise
        with Rtnl() as rtnl:
            rtnl.change(
                set_link(
                    f"set up {name}",
                    name,
                    address=tap_mac(),
                    mtu=mtu,
                    ifalias=str(tag),
                    group=DEVICE_GROUP,
                )
            )  # fmt: skip
            disable_ipv6(rtnl, name)
            if up:
                rtnl.change(set_link(f"bring {name} up", name, on=IFF_UP))
        undo.pop_all()
        return fd


def _open(name: str) -> int:
    try:
        return os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        missing = error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}
        code = errno.EOPNOTSUPP if missing else error.errno or 0
        raise KernelRefused(code, f"create {name}", f"{TUN}: {error.strerror}") from error
