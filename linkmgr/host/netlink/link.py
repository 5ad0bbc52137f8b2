"""What the kernel says about its network devices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from linkmgr.model import OwnerTag

DEVICE_GROUP = 0x6C6D  #: of all devices that linkmgr makes by rtnetlink; "lm" in ASCII
CABLE_KINDS = frozenset({"tun", "macvtap"})  #: the kinds of device that a cable can have


class PortState(IntEnum):
    """State of a bridge port in the spanning tree (linux/if_bridge.h)."""

    DISABLED = 0
    LISTENING = 1
    LEARNING = 2
    FORWARDING = 3
    BLOCKING = 4


@dataclass(frozen=True, slots=True)
class NetDevice:
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
    :param alias: free text; see `owner_tag`.
    :param mode: macvtap and macvlan only.
    :param promisc: whether somebody asked for promiscuity (not: whether a bridge did).
    :param port_state: ports of a bridge only.
    :param group: number of the group that it is in; 0 unless somebody has set it.
    :param snooping: whether it is a bridge that listens to IGMP and MLD.
    :param spanning_tree: whether it is a bridge that has one, and so decides itself when it
        forwards.
    :param vlan_filtering: whether it is a bridge that forwards by VLAN.
    :param port_options: the options of a bridge port that are on, by their names in bridge(8);
        ``None`` for a device that is none, or that carries no tag of ours.
    :param altnames: other names by which the kernel finds it.
    :param ipv6_disabled: whether it says nothing of its own with IPv6; only of those with our tag.
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
    spanning_tree: bool = False
    vlan_filtering: bool = False
    snooping: bool = False
    group: int = 0
    port_options: frozenset[str] | None = None
    ipv6_disabled: bool = True
    altnames: tuple[str, ...] = ()

    @property
    def owner_tag(self) -> OwnerTag | None:
        """The tag in the alias; ``None`` on a device that linkmgr did not make."""
        return OwnerTag.parse(self.alias, of_cable=self.kind in CABLE_KINDS)


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A bridge's forwarding entry as it was when asked; see bridge(8).

    :param port: index of the port, or of the bridge itself for an address of its own.
    :param vlan: ``None`` for frames without one.
    :param static: whether it neither ages nor moves by itself.
    :param local: whether frames for it go up into this host.
    """

    mac: str
    port: int
    vlan: int | None
    static: bool
    local: bool
