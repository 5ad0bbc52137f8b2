"""Routing netlink (rtnetlink(7)): reading, as synchronous steps for a thread.

Not through pyroute2's `AsyncIPRoute`. It takes 0.3 to 1 ms for each device, in the event loop: with
the taps of 200 guests nobody would be answered for a fifth of a second, after every change of any
device. And it keeps for ever what comes when nobody waits for it any more, such as the
acknowledgement of each question about one device (pyroute2 0.9.7, ``CoreMessageQueue``). This takes
15 us for each device and waits, if anything does, for the kernel in a thread.

Each question has a socket of its own, so that nothing is left for the next one to stumble over. It
looks at the network namespace of the thread that asks.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from linkmgr.host.names import IFNAME_MAX
from linkmgr.host.netlink.attributes import Attrs, attr, attrs_of, each_attr
from linkmgr.host.netlink.changes import IFF_ALLMULTI, IFF_PROMISC, IFF_UP
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.host.netlink.link import FdbEntry, NetDevice, PortState

_NLMSGHDR = struct.Struct("=IHHII")
_IFINFOMSG = struct.Struct("=BxHiII")
_NDMSG = struct.Struct("=BxxxiHBB")
_INT = struct.Struct("=i")

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x301, 0x10
_ERROR, _DONE, _RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWNEIGH, _RTM_GETNEIGH = 2, 3, 16, 18, 28, 30
_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _OPERSTATE = 1, 3, 4, 5, 10, 16
_LINKINFO, _IFALIAS, _GROUP, _EXT_MASK, _CARRIER, _LINK_NETNSID = 18, 20, 27, 29, 33, 37
_PROP_LIST, _ALT_IFNAME = 52, 53
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_MACVLAN_MODE, _BRPORT_STATE = 1, 1
_BR_STP_STATE, _BR_VLAN_FILTERING, _BR_MCAST_SNOOPING = 5, 7, 23
#: IFLA_BRPORT_* by the names of bridge(8).
_PORT_OPTIONS = {"hairpin": 4, "learning": 8, "flood": 9, "mcast_flood": 27, "bcast_flood": 30,
                 "isolated": 33, "locked": 39}  # fmt: skip
_AF_SPEC, _AF_INET6, _INET6_CONF, _INET6_ADDR_GEN_MODE = 26, 10, 2, 8
_DISABLE_IPV6_AT = 26 * 4  # in IFLA_INET6_CONF; linux/ipv6.h
_ADDR_GEN_NONE = 1  # linux/if_link.h
_TCMSG = struct.Struct("=BxxxiIII")
_RTM_NEWQDISC, _RTM_GETQDISC, _TCA_KIND = 36, 38, 1
_ACK = 0x4  # else there is no answer at all where there is nothing to tell
_ECHO = 0x8  # without it the kernel answers those alone who listen for changes
_TC_ROOT, _TC_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1  # linux/pkt_sched.h; the latter also finds clsact
#: The device has none, or a default one that the kernel does not show, or is gone.
_NO_QDISC = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP})
_AF_BRIDGE, _NDA_LLADDR, _NDA_VLAN, _NDA_MASTER = 7, 2, 5, 9
_NTF_MASTER = 0x04
_NUD_NOARP = 0x40  # of a bridge: static
_NUD_PERMANENT = 0x80  # of a bridge: local, frames go up into this host
_NTF_SELF = 0x02  # of the device, not of the bridge
#: RTEXT_FILTER_SKIP_STATS: they cost most of an answer.
_WITHOUT_STATS = struct.pack("=HHI", 8, _EXT_MASK, 8)
_MODES = {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"}
#: Of RFC 2863, by number.
_OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")

D = TypeVar("D", str, int, str | int)

_Message = tuple[int, int, memoryview]  # type, flags, what follows the header


def find_device(name_or_index: str | int) -> NetDevice | None:
    """Read one device; ``None`` when there is none.

    :raise KernelRefused: when the kernel does not answer.
    """
    return find_devices([name_or_index]).get(name_or_index)


def find_devices(names_or_indices: Iterable[D]) -> dict[D, NetDevice]:
    """Read some devices, without those that are not there. Takes some 25 us for each.

    Each is read whole, however many others come and go.

    :raise KernelRefused: when the kernel does not answer.
    """
    found = {}
    with _opened("read network devices") as sock:
        for key in names_or_indices:
            if isinstance(key, int):
                body = _ifinfomsg(index=key)
            else:
                # The kernel takes an altname for either, but a long one only so.
                attribute = _IFNAME if len(key.encode()) <= IFNAME_MAX else _ALT_IFNAME
                body = _ifinfomsg() + attr(attribute, key.encode() + b"\0")
            try:
                for kind, _, message in _ask(
                    sock, _RTM_GETLINK, _REQUEST, body + _WITHOUT_STATS, f"read {key}"
                ):
                    if kind == _RTM_NEWLINK:
                        found[key] = parse_device(message)
            except KernelRefused as refused:
                if refused.code not in {errno.ENODEV, errno.ENXIO}:
                    raise
    return found


def list_devices() -> tuple[list[NetDevice], bool]:
    """Read all devices, and whether none came or went meanwhile: else one may be missing.

    :raise KernelRefused: when the kernel does not answer.
    """
    found, consistent = [], True
    body = _ifinfomsg() + _WITHOUT_STATS
    for kind, flags, message in _ask_once(_RTM_GETLINK, _DUMP, body, "list the network devices"):
        consistent = consistent and not flags & _INTERRUPTED
        if kind == _RTM_NEWLINK:
            found.append(parse_device(message))
    return found, consistent


def list_fdb_entries(bridge: int, port: int = 0) -> tuple[list[FdbEntry], bool]:
    """Read a bridge's forwarding entries.

    :param port: index of one of its ports, 0 for all entries.
    :return: the entries, and whether none came or went meanwhile: else one may be missing.
    :raise KernelRefused: when the kernel does not answer.
    """
    # The kernel selects by port only if it is asked in the words of before 4.12 (rtnl_fdb_dump
    # in net/core/rtnetlink.c), or with strict checking.
    body = _ifinfomsg(family=_AF_BRIDGE, index=port) + attr(_MASTER, struct.pack("=I", bridge))
    found, consistent = [], True
    for kind, flags, message in _ask_once(_RTM_GETNEIGH, _DUMP, body, "read a bridge's addresses"):
        consistent = consistent and not flags & _INTERRUPTED
        entry = _parse_fdb_entry(message) if kind == _RTM_NEWNEIGH else None
        if entry is not None and port in {0, entry.port}:
            found.append(entry)
    return found, consistent


def list_qdiscs(index: int) -> list[str]:
    """Read the kinds of traffic control (tc(8)) that somebody has set on a device.

    What the kernel gives to each device has no handle.

    :raise KernelRefused: when the kernel does not answer.
    """
    found, action = [], "read traffic control"
    for parent in (_TC_ROOT, _TC_INGRESS):
        body = _TCMSG.pack(0, index, 0, parent, 0)
        try:
            for kind, _, message in _ask_once(_RTM_GETQDISC, _REQUEST | _ECHO | _ACK, body, action):
                _, _, handle, _, _ = _TCMSG.unpack_from(message)
                if kind == _RTM_NEWQDISC and handle:
                    found.append(_text(attrs_of(message[_TCMSG.size :]).get(_TCA_KIND)))
        except KernelRefused as refused:
            if refused.code not in _NO_QDISC:
                raise
    return found


def find_fdb_entry(bridge: int, mac: str) -> FdbEntry | None:
    """Read a bridge's entry for an address without a VLAN (``bridge fdb get``).

    :raise KernelRefused: when the kernel does not answer.
    """
    body = _NDMSG.pack(_AF_BRIDGE, 0, 0, _NTF_MASTER, 0)
    body += attr(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
    body += attr(_NDA_MASTER, struct.pack("=I", bridge))
    try:
        for kind, _, message in _ask_once(_RTM_GETNEIGH, _REQUEST, body, f"look up {mac}"):
            if kind == _RTM_NEWNEIGH:
                return _parse_fdb_entry(message)
    except KernelRefused as refused:
        if refused.code != errno.ENOENT:
            raise
    return None


def _parse_fdb_entry(message: memoryview) -> FdbEntry | None:
    _, index, state, flags, _ = _NDMSG.unpack_from(message)
    attrs = attrs_of(message[_NDMSG.size :])
    address = attrs.get(_NDA_LLADDR)
    if not address or flags & _NTF_SELF:
        return None
    return FdbEntry(
        mac=address.hex(":"),
        port=index,
        vlan=_number(attrs.get(_NDA_VLAN)) or None,
        static=bool(state & (_NUD_NOARP | _NUD_PERMANENT)),
        local=bool(state & _NUD_PERMANENT),
    )


def parse_device(message: memoryview) -> NetDevice:
    """Read what follows the header of a message about a device."""
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(message)
    attrs = attrs_of(message[_IFINFOMSG.size :])
    info = attrs_of(attrs.get(_LINKINFO))
    kind = _text(info.get(_INFO_KIND)) or None
    state = mode = options = None
    alias = _text(attrs.get(_IFALIAS)) or None
    ours = alias is not None and alias.startswith("linkmgr:")  # reading the rest takes 3 us
    if _text(info.get(_INFO_SLAVE_KIND)) == "bridge":
        port = attrs_of(info.get(_INFO_SLAVE_DATA))
        state = port.get(_BRPORT_STATE)
        if ours:
            options = frozenset(name for name, at in _PORT_OPTIONS.items() if _number(port.get(at)))
    if kind in {"macvtap", "macvlan"}:
        mode = _MODES.get(_number(attrs_of(info.get(_INFO_DATA)).get(_MACVLAN_MODE)))
    bridging = attrs_of(info.get(_INFO_DATA)) if kind == "bridge" else {}
    operstate = _number(attrs.get(_OPERSTATE))
    elsewhere = _LINK_NETNSID in attrs
    return NetDevice(
        index=index,
        name=_text(attrs.get(_IFNAME)),
        kind=kind,
        mac=attrs[_ADDRESS].hex(":") if _ADDRESS in attrs else "",
        mtu=_number(attrs.get(_MTU)),
        up=bool(flags & IFF_UP),
        operstate=_OPERSTATES[operstate] if operstate < len(_OPERSTATES) else "unknown",
        carrier=bool(_number(attrs.get(_CARRIER))),
        master=_number(attrs.get(_MASTER)) or None,
        parent=None if elsewhere else _number(attrs.get(_LINK)) or None,
        alias=alias,
        mode=mode,
        promisc=bool(flags & IFF_PROMISC),
        allmulti=bool(flags & IFF_ALLMULTI),
        port_state=None if state is None else PortState(_number(state)),
        spanning_tree=_number(bridging.get(_BR_STP_STATE)) != 0,
        vlan_filtering=_number(bridging.get(_BR_VLAN_FILTERING)) != 0,
        snooping=_number(bridging.get(_BR_MCAST_SNOOPING)) != 0,
        group=_number(attrs.get(_GROUP)),
        port_options=options,
        ipv6_disabled=not ours or _is_ipv6_disabled(attrs),
        altnames=_altnames(attrs[_PROP_LIST]) if _PROP_LIST in attrs else (),
    )


def _altnames(view: memoryview) -> tuple[str, ...]:
    return tuple(_text(value) for kind, value in each_attr(view) if kind == _ALT_IFNAME)


def _is_ipv6_disabled(attrs: Attrs) -> bool:
    """Whether a device has no IPv6, or has it switched off and makes no addresses."""
    ipv6 = attrs_of(attrs_of(attrs.get(_AF_SPEC)).get(_AF_INET6))
    conf = ipv6.get(_INET6_CONF)
    if conf is None or len(conf) < _DISABLE_IPV6_AT + 4:
        return True
    off = _number(conf[_DISABLE_IPV6_AT : _DISABLE_IPV6_AT + 4])
    return bool(off) and _number(ipv6.get(_INET6_ADDR_GEN_MODE)) == _ADDR_GEN_NONE


@contextmanager
def _opened(action: str) -> Iterator[socket.socket]:
    """A socket for questions.

    :raise KernelRefused: there is none, or it fails.
    """
    how = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    try:
        with socket.socket(socket.AF_NETLINK, how, socket.NETLINK_ROUTE) as sock:
            yield sock
    except OSError as error:
        raise KernelRefused(error.errno or 0, action, f"netlink: {error.strerror}") from error


def _ask_once(kind: int, flags: int, body: bytes, action: str) -> Iterator[_Message]:
    """Ask once; see `_ask`."""
    with _opened(action) as sock:
        yield from _ask(sock, kind, flags, body, action)


def _ask(
    sock: socket.socket, kind: int, flags: int, body: bytes, action: str
) -> Iterator[_Message]:
    """Ask, and yield what comes, up to the end; for a question about one thing, its answer.

    All of it is taken before any of it is yielded: while its reader thinks about one part of a
    list, something may come or go, and the rest of it is not whole any more.

    :raise KernelRefused: when the kernel refuses.
    """
    sock.send(_NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, flags, 1, 0) + body)
    messages: list[_Message] = []
    while True:
        # It never waits: the kernel writes the next part while this one is taken.
        messages += _messages(sock.recv(1 << 17))
        if flags != _DUMP or (messages and messages[-1][0] in {_ERROR, _DONE}):
            break
    for each in messages:
        if each[0] in {_ERROR, _DONE}:
            code = -_INT.unpack_from(each[2])[0]
            if code:
                raise KernelRefused(code, action, os.strerror(code))
            return
        yield each


def _ifinfomsg(family: int = 0, index: int = 0) -> bytes:
    return _IFINFOMSG.pack(family, 0, index, 0, 0)


def _messages(data: bytes) -> Iterator[_Message]:
    """Take apart what one read returned: type, flags, what follows the header."""
    view = memoryview(data)
    while len(view) >= _NLMSGHDR.size:
        length, kind, flags, _, _ = _NLMSGHDR.unpack_from(view)
        yield kind, flags, view[_NLMSGHDR.size : length]
        view = view[max(_NLMSGHDR.size, (length + 3) & ~3) :]


def _number(value: memoryview | None) -> int:
    return 0 if value is None else int.from_bytes(value, sys.byteorder)


def _text(value: memoryview | None) -> str:
    return "" if value is None else bytes(value).rstrip(b"\0").decode(errors="replace")
