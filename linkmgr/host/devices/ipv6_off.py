"""Devices that say nothing by themselves.

A device that comes up takes an IPv6 link-local address and announces it (MLD reports, duplicate
address detection): with the guest's own address, on the guest's network. So IPv6 is off on our
devices, before they come up. IPv4 says nothing without an address.
"""

from __future__ import annotations

import errno

from linkmgr.host import sysfs
from linkmgr.host.netlink.changes import Rtnl, set_link
from linkmgr.host.netlink.errors import KernelRefused

_ADDRGENMODE_NONE = 1  # linux/if_link.h, IN6_ADDR_GEN_MODE_NONE
IPV6 = "/proc/sys/net/ipv6/conf"  # of the network namespace of whoever looks


def disable_ipv6(rtnl: Rtnl, name: str) -> None:
    """Switch IPv6 off on a device that is still down. Blocks for well under 1 ms.

    Set the MTU before: below 1280 bytes the device has no IPv6 that could be switched off.

    :raise KernelRefused: when it cannot be done; a kernel without IPv6 is silent already.
    """
    action = f"switch IPv6 off on {name}"
    af_spec = {
        "attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", _ADDRGENMODE_NONE]]}]]
    }
    try:
        rtnl.change(set_link(action, name, af_spec=af_spec))
    except KernelRefused as refused:
        if refused.code not in {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
            raise
    path = f"{IPV6}/{name}/disable_ipv6"
    try:
        if sysfs.read(path).strip() != "1":  # in a container it may be, and not ours to write
            sysfs.write(path, "1")
    except FileNotFoundError:
        return  # no IPv6 in this kernel, or none on this device
    except OSError as error:
        # EROFS also when it is a right that is missing: neither is one of the network namespace.
        code = errno.EROFS if error.errno in {errno.EACCES, errno.EPERM} else error.errno or 0
        raise KernelRefused(code, action, f"{path}: {error.strerror}") from error
