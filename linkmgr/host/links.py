"""What the kernel says about its network devices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

from linkmgr.host.rtnl import IFF_ALLMULTI, IFF_PROMISC, IFF_UP


class PortState(IntEnum):
    """State of a bridge port in the spanning tree (linux/if_bridge.h)."""

    DISABLED = 0
    LISTENING = 1
    LEARNING = 2
    FORWARDING = 3
    BLOCKING = 4


@dataclass(frozen=True, slots=True)
class Link:
    """A network device as it was when asked; see ip-link(8).

    :param kind: ``bridge``, ``veth``, ``macvtap``, ``tun``, ...; ``None`` for hardware.
    :param mac: lower case with colons; empty for a device without.
    :param mtu: bytes.
    :param up: whether it is administratively up (IFF_UP).
    :param operstate: as in RFC 2863, in lower case: ``up``, ``down``, ``lowerlayerdown``, ...
    :param carrier: whether the device has carrier.
    :param master: index of the bridge (or bond, team, ...) that it is a port of.
    :param parent: index of the device below a macvtap, the peer of a veth (IFLA_LINK); ``None``
        also when that one is in another network namespace.
    :param alias: free text; ours is a `linkmgr.model.Mark`.
    :param mode: macvtap and macvlan only.
    :param promisc: whether somebody asked for promiscuity (not: whether a bridge did).
    :param port_state: ports of a bridge only.
    """

    index: int
    name: str
    kind: str | None
    mac: str
    mtu: int
    up: bool
    operstate: str
    carrier: bool
    master: int | None
    parent: int | None
    alias: str | None
    mode: str | None
    promisc: bool
    allmulti: bool
    port_state: PortState | None = None

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """Read a message of pyroute2."""
        get = message.get_attr
        info = get("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info else None
        state = None
        if info and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge":
            state = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_STATE")
        mode = None
        if kind in {"macvtap", "macvlan"}:
            mode = message.get_nested(
                "IFLA_LINKINFO", "IFLA_INFO_DATA", f"IFLA_{kind.upper()}_MODE"
            )
        elsewhere = get("IFLA_LINK_NETNSID") is not None
        return cls(
            index=message["index"],
            name=get("IFLA_IFNAME"),
            kind=kind,
            mac=get("IFLA_ADDRESS") or "",
            mtu=get("IFLA_MTU") or 0,
            up=bool(message["flags"] & IFF_UP),
            operstate=str(get("IFLA_OPERSTATE") or "unknown").lower(),
            carrier=bool(get("IFLA_CARRIER")),
            master=get("IFLA_MASTER") or None,
            parent=None if elsewhere else get("IFLA_LINK") or None,
            alias=get("IFLA_IFALIAS") or None,
            mode=mode,
            promisc=bool(message["flags"] & IFF_PROMISC),
            allmulti=bool(message["flags"] & IFF_ALLMULTI),
            port_state=None if state is None else PortState(state),
        )
