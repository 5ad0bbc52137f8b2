"""What this host can do, for a report; nothing is changed."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from linkmgr.host.names import device_name, new_id
from linkmgr.host.rtnl import Rtnl, new_link
from linkmgr.host.silence import IPV6
from linkmgr.host.tap import TUN
from linkmgr.host.threads import to_the_end


@dataclass(frozen=True)
class HostFacts:
    """What this host can do. ``None``: it cannot be told, most often without CAP_NET_ADMIN."""

    tun: bool
    macvtap: bool | None
    bridge: bool | None
    ipv6: bool


async def probe_host() -> HostFacts:
    """Ask the kernel. It may load its modules for the device types; no device is made."""
    return await to_the_end(_probe)


def _probe() -> HostFacts:
    return HostFacts(
        tun=Path(TUN).is_char_device(),
        macvtap=_knows("macvtap"),
        bridge=_knows("bridge"),
        ipv6=IPV6.is_dir(),
    )


def _knows(kind: str) -> bool | None:
    # No device can have a multicast address: a kernel that knows the kind says so.
    request = new_link(device_name("lm", new_id()), kind, address="01:00:00:00:00:00")
    with Rtnl() as rtnl:
        (refused,) = rtnl.attempt([request])
    code = refused.code if refused else 0
    return {errno.EADDRNOTAVAIL: True, errno.EOPNOTSUPP: False}.get(code)
