"""Whether a descriptor that was handed over is a tap or macvtap that a hub can use.

It is looked at before QEMU sees it, because QEMU takes nearly everything and the guest would be on
a dead cable. Nothing about the device is changed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from linkmgr.errors import BadFd
from linkmgr.host.devices.tap import IFF_TAP, IFF_VNET_HDR
from linkmgr.host.fds import receive
from linkmgr.host.fds.tap_netns import query_tap

# linux/if_tun.h
IFF_MULTI_QUEUE, IFF_DETACH_QUEUE = 0x0100, 0x0400
_TUNGETIFF = 0x800454D2
_IFREQ = struct.Struct("=16sH22x")

_WANTED = "hand over an fd of /dev/net/tun after TUNSETIFF, or of a macvtap's /dev/tapN"
_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a directory",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a symbolic link",
}


@dataclass(frozen=True)
class TapFdInfo:
    """What a descriptor was found to be.

    :param device: name, in its own network namespace.
    :param mtu: bytes; ``None`` when it cannot be known.
    :param identity: equal for two descriptors of one device; ``None`` when it cannot be known.
    """

    device: str
    vnet_hdr: bool
    mtu: int | None = None
    identity: tuple[object, ...] | None = None


def inspect_tap_fd(fd: int, name: str) -> TapFdInfo:
    """Check a descriptor that was handed over. Blocks for about 1 ms.

    :param name: what it is called, for the error.
    :raise BadFd: when a NIC cannot use it; says what it is and what is wanted.
    """
    macvtap = _is_macvtap(fd, name)
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise BadFd(f"fd {name} cannot be both read and written", hint="open it with O_RDWR")
    device, flags = _interface(fd, name)
    if not flags & IFF_TAP:
        raise BadFd(
            f"fd {name} is the tun device {device}: it carries IP packets, not Ethernet frames",
            hint="open it with IFF_TAP",
        )
    if flags & IFF_DETACH_QUEUE:
        raise BadFd(
            f"fd {name} is a queue that is detached from {device}",
            hint="use a tap with one queue: open it without IFF_MULTI_QUEUE",
        )
    if flags & IFF_MULTI_QUEUE:
        raise BadFd(
            f"fd {name} is one queue of the multi-queue device {device}, and a hub has only one",
            hint="open it without IFF_MULTI_QUEUE",
        )
    vnet_hdr = bool(flags & IFF_VNET_HDR)
    if macvtap:
        number = os.fstat(fd).st_rdev
        return TapFdInfo(device, vnet_hdr, _macvtap_mtu(device, number), ("macvtap", number))
    info = query_tap(fd, device)
    if info is None:
        return TapFdInfo(device, vnet_hdr)
    # TUNGETIFF does not tell: its IFF_NO_PI is also IFF_NOFILTER, which is nearly always set.
    if info.packet_info:
        raise BadFd(
            f"the frames of {device}, fd {name}, carry a packet-information header",
            hint="open it with IFF_NO_PI",
        )
    return TapFdInfo(device, vnet_hdr, info.mtu, ("tap", *info.namespace, info.index))


def not_a_tap_error(mode: int, device: int, name: str) -> BadFd:
    """Make the error for what is neither a tap nor a macvtap.

    :param mode: its ``st_mode``.
    :param device: its ``st_rdev``.
    """
    if stat.S_ISCHR(mode):
        what = f"the character device {os.major(device)}:{os.minor(device)}"
    else:
        what = _KINDS.get(stat.S_IFMT(mode), "something without a file behind it")
    return BadFd(f"fd {name} is {what}, not a tap", hint=_WANTED)


def _is_macvtap(fd: int, name: str) -> bool:
    """Whether it is a macvtap, not a tap.

    :raise BadFd: when it is neither.
    """
    found = os.fstat(fd)
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    if not receive.is_tap(fd, found.st_mode, major, minor):
        raise not_a_tap_error(found.st_mode, found.st_rdev, name)
    return (major, minor) != receive.TUN


def _interface(fd: int, name: str) -> tuple[str, int]:
    """TUNGETIFF: the device's name and flags."""
    try:
        answer = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
    except OSError as error:
        if error.errno in {errno.EBADFD, errno.ENOLINK}:
            raise BadFd(
                f"fd {name} is attached to no device: it never was, or the device was deleted",
                hint="call TUNSETIFF first, and keep the device",
            ) from error
        raise BadFd(
            f"fd {name} does not say what it is attached to: {error.strerror}", hint=_WANTED
        ) from error
    device, flags = _IFREQ.unpack(answer)
    return os.fsdecode(device.rstrip(b"\0")), int(flags)


def _macvtap_mtu(device: str, number: int) -> int | None:
    """The MTU of a macvtap if it is in our namespace."""
    folder = Path("/sys/class/net") / device
    shown = f"{os.major(number)}:{os.minor(number)}"
    try:
        nodes = [each.read_text().strip() for each in folder.glob("macvtap/*/dev")]
        return int((folder / "mtu").read_text()) if shown in nodes else None
    except OSError:
        return None
