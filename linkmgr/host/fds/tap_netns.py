"""Reading a tap that may be in another network namespace, from nothing but its descriptor.

The descriptor leads to the namespace (TUNGETDEVNETNS, Linux 5.2), the namespace to a number that
rtnetlink knows it by (ip-netns(8), "nsid"), and the number to the device. It takes CAP_NET_ADMIN
and, unlike setns(2), no CAP_SYS_ADMIN. The number stays until that namespace is gone; it costs
nothing and shows in ``ip netns list-id``.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from linkmgr.host.fd import Fd
from linkmgr.host.netlink.attributes import attr

_TUNGETDEVNETNS = 0x54E3  # linux/if_tun.h
_REQUEST, _ACK = 0x1, 0x4  # linux/netlink.h
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWNSID, _RTM_GETNSID = 16, 18, 88, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3  # linux/net_namespace.h
_IFLA_IFNAME, _IFLA_TARGET_NETNSID = 3, 46
_NLMSGHDR = struct.Struct("=IHHII")
_NSID_AT = _NLMSGHDR.size + 4 + 4  # after rtgenmsg and the attribute's own header


@dataclass(frozen=True)
class TapInfo:
    """What rtnetlink says of a tap.

    :param namespace: device and inode of its network namespace.
    :param mtu: bytes.
    :param packet_info: whether frames carry a packet-information header (opened without IFF_NO_PI).
    """

    namespace: tuple[int, int]
    index: int
    mtu: int
    packet_info: bool


def query_tap(fd: int, name: str) -> TapInfo | None:
    """Read the tap behind `fd` in its own namespace. Blocks for about 1 ms.

    :param name: from TUNGETIFF.
    :return: ``None`` when this kernel, or our privileges, do not tell.
    """
    try:
        with Fd(fcntl.ioctl(fd, _TUNGETDEVNETNS)) as namespace:
            there = os.fstat(namespace.number)
            here = Path("/proc/thread-self/ns/net").stat()
            place = (there.st_dev, there.st_ino)
            nsid = None if place == (here.st_dev, here.st_ino) else _nsid_of(namespace.number)
        device = _ask_device(name, nsid)
    except OSError:
        return None
    if device is None:
        return None
    return TapInfo(place, device["index"], device.get_attr("IFLA_MTU"), _has_packet_info(device))


def _has_packet_info(device: Any) -> bool:
    data = (device.get_attr("IFLA_LINKINFO") or device).get_attr("IFLA_INFO_DATA")
    return bool(data is not None and data.get_attr("IFLA_TUN_PI"))


def _nsid_of(namespace: int) -> int:
    """The nsid of a namespace; it gets one if it has none."""
    which = b"\0\0\0\0" + attr(_NETNSA_FD, struct.pack("=I", namespace))
    number = _parse_nsid(_ask(_RTM_GETNSID, 0, which))
    if number < 0:
        # Somebody may do it at the same time: a refusal says nothing, the number does.
        _ask(_RTM_NEWNSID, _ACK, which + attr(_NETNSA_NSID, struct.pack("=i", -1)))
        number = _parse_nsid(_ask(_RTM_GETNSID, 0, which))
    if number < 0:
        raise OSError("the kernel gives this namespace no number")
    return number


def _parse_nsid(answer: bytes) -> int:
    if _NLMSGHDR.unpack_from(answer)[1] != _RTM_NEWNSID:
        raise OSError("the kernel does not know this namespace")
    (number,) = struct.unpack_from("=i", answer, _NSID_AT)
    return int(number)


def _ask_device(name: str, nsid: int | None) -> Any:
    payload = bytes(16) + attr(_IFLA_IFNAME, os.fsencode(name) + b"\0")
    if nsid is not None:
        payload += attr(_IFLA_TARGET_NETNSID, struct.pack("=i", nsid))
    answer = _ask(_RTM_GETLINK, 0, payload)
    if _NLMSGHDR.unpack_from(answer)[1] != _RTM_NEWLINK:
        return None
    message = ifinfmsg(answer)
    message.decode()
    return message


def _ask(kind: int, flags: int, payload: bytes) -> bytes:
    """Send one request and return the answer, which is there when ``send()`` returns."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    ) as rtnl:
        rtnl.send(
            _NLMSGHDR.pack(_NLMSGHDR.size + len(payload), kind, _REQUEST | flags, 1, 0) + payload
        )
        return rtnl.recv(65536)
