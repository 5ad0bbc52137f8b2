"""Bridges, and the ports on them; see bridge(8) and the kernel's networking/bridge."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack

from linkmgr.host import sysfs
from linkmgr.host.devices.ipv6_off import disable_ipv6
from linkmgr.host.names import private_mac
from linkmgr.host.netlink.changes import (
    IFF_UP,
    NetlinkRequest,
    Rtnl,
    del_link,
    new_link,
    set_bridge_port,
    set_link,
)
from linkmgr.model import OwnerTag

_SYSFS = "/sys/class/net"
_SET = "3"  # NET_ADDR_SET of linux/netdevice.h
_NO_ADDRESS = "00:00:00:00:00:00"
#: Between seeing that a bridge has no address set, and setting one.
_bridge_mac_lock = threading.Lock()


def make_bridge(name: str, tag: OwnerTag, *, mtu: int) -> None:
    """Make a bridge that is tagged, silent and up. Blocks for about 3 ms.

    :raise KernelRefused: when the kernel does; nothing is left then.
    """
    data = {
        # With snooping the bridge itself joins "all snoopers" and reports that to every port. And
        # without a querier on the network snooping gains nothing.
        "IFLA_BR_MCAST_SNOOPING": 0,
        "IFLA_BR_STP_STATE": 0,
    }
    with Rtnl() as rtnl, ExitStack() as undo:
        # An address of its own: else it changes with every port that comes and goes.
        rtnl.change(new_link(name, "bridge", data, address=private_mac()))
        undo.callback(rtnl.try_all, [del_link(name)])
        # The MTU in a second request: only then does it not follow the ports' MTU.
        rtnl.change(set_link(f"set up {name}", name, mtu=mtu, ifalias=str(tag)))
        disable_ipv6(rtnl, name)
        rtnl.change(set_link(f"bring {name} up", name, on=IFF_UP))
        undo.pop_all()


def pin_bridge_mac(bridge: int, name: str) -> str | None:
    """Set the address that a bridge has, if it would take those of our taps; return it if so.

    A bridge whose address nobody set has the lowest of its ports: with none but taps of ours that
    is one of theirs, another after each swap, and guests look for this host where it was. A bridge
    with a port of anybody else is left to follow that. One whose last port went has no address at
    all, and gets one.

    :raise KernelRefused: when the kernel does.
    """
    of = f"{_SYSFS}/{name}"
    with _bridge_mac_lock:
        try:
            # The index tells a sysfs of another network namespace from ours.
            if int(sysfs.read(f"{of}/ifindex")) != bridge:
                return None
            if sysfs.read(f"{of}/addr_assign_type").strip() == _SET:
                return None
            ports = os.listdir(f"{of}/brif")  # noqa: PTH208 - see sysfs
            # Most names that we make up come last: with an uplink one look is enough.
            if not all(_is_ours(port) for port in sorted(ports, key=lambda p: p.startswith("lm"))):
                return None
            address = sysfs.read(f"{of}/address").strip()
        except (OSError, ValueError):  # the bridge goes just now, or sysfs is not ours
            return None
        if address == _NO_ADDRESS:
            address = private_mac()
        with Rtnl() as rtnl:
            rtnl.change(set_link(f"give {name} its address for good", bridge, address=address))
        return address


def _is_ours(port: str) -> bool:
    try:
        return OwnerTag.parse(sysfs.read(f"{_SYSFS}/{port}/ifalias").strip()) is not None
    except FileNotFoundError:  # it went meanwhile
        return True
    except ValueError:  # an alias that is not ASCII
        return False


def join_bridge(
    device: int,
    name: str,
    bridge: int | None,
    *,
    isolated: bool,
    hairpin: bool,
    learning: bool,
    bring_up: bool,
) -> None:
    """Put a device on the bridge with index `bridge` (``None``: it is there) and set its flags.

    A device that is down gets its flags before it comes up, so before the first frame. One that is
    up forwards with the default flags for some 10 us.

    :raise KernelRefused: when the kernel does; the device is not on the bridge then.
    """
    flags = {
        "IFLA_BRPORT_MODE": int(hairpin),
        "IFLA_BRPORT_LEARNING": int(learning),
        "IFLA_BRPORT_ISOLATED": int(isolated),
    }
    requests: list[NetlinkRequest] = []
    if bridge is not None:
        requests.append(set_link(f"put {name} on the bridge", device, master=bridge))
    requests.append(set_bridge_port(f"set the port flags of {name}", device, flags))
    with Rtnl() as rtnl:
        results = rtnl.try_all(requests)
        if bring_up and not any(results):
            results += rtnl.try_all([set_link(f"bring {name} up", device, on=IFF_UP)])
        refused = next((result for result in results if result is not None), None)
        if refused is not None:
            if bridge is not None and results[0] is None:
                rtnl.try_all([leave_bridge(device, name)])
            raise refused


def leave_bridge(device: int | str, name: str) -> NetlinkRequest:
    """Take a device off whatever bridge it is a port of."""
    return set_link(f"take {name} off its bridge", device, master=0)


def try_leave_bridge(device: int | str, name: str) -> None:
    """As `leave_bridge`, whatever the kernel says to it."""
    with Rtnl() as rtnl:
        rtnl.try_all([leave_bridge(device, name)])
