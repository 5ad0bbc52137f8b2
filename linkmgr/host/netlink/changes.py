"""Routing netlink (rtnetlink(7)): changes as synchronous steps, in pyroute2's messages.

The kernel carries out a request inside ``send()``, so a change is atomic against cancellation only
if nothing is awaited between it and the note of how to undo it. And some changes sleep in the
kernel for 8 to 40 ms (a MAC of a macvtap that is up, any delete): these belong in a thread, the
others need not wait for the event loop to hear their answer. Reading: `linkmgr.host.netlink.dump`.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.host.netlink.link import DEVICE_GROUP

IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200  # linux/if.h

# linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
_RTM_NEWLINK, _RTM_DELLINK, _RTM_SETLINK, _RTM_NEWNEIGH, _RTM_DELNEIGH = 16, 17, 19, 28, 29
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_NLMSG_ERROR, _ACK_TLVS, _ATTR_MSG = 2, 0x200, 1
_AF_BRIDGE, _NTF_MASTER = 7, 0x04
_NUD_REACHABLE, _NUD_NOARP = 0x02, 0x40

_SIOCGIFFLAGS = 0x8913  # linux/sockios.h

_NLMSGHDR = struct.Struct("=IHHII")
_ERROR_AT = _NLMSGHDR.size
_TLVS_AT = _NLMSGHDR.size + 4 + _NLMSGHDR.size  # with CAP_ACK only the request's header comes back
_IFREQ = struct.Struct("=16sH22x")  # with its flags
_BATCH_MAX = 64  # requests in one send; each answer takes room in the socket's receive buffer

Attrs = Mapping[str, Any]


class NetlinkRequest:
    """One request that changes something.

    :param action: what it does, for the error: "create lm3f9a1c2e".
    """

    def __init__(self, action: str, kind: int, flags: int, message: Any) -> None:
        self.action = action
        self._message = message
        message["header"]["type"] = kind
        message["header"]["flags"] = _REQUEST | _ACK | flags

    def encoded(self, number: int) -> bytes:
        """Return the request with its sequence number."""
        self._message["header"]["sequence_number"] = number
        self._message.encode()
        return bytes(self._message.data)


def new_link(name: str, kind: str, data: Attrs | None = None, **attrs: object) -> NetlinkRequest:
    """Create a device, down, in our group. `attrs` are `ifinfmsg`'s without ``IFLA_``, `data` with.

    The kernel takes no alias here (rtnl_newlink in net/core/rtnetlink.c): see
    `linkmgr.host.untagged`.
    """
    message = _link(0, {"ifname": name, "group": DEVICE_GROUP, **attrs})
    message["attrs"].append(_info(kind, "IFLA_INFO_DATA", data))
    return NetlinkRequest(f"create {name}", _RTM_NEWLINK, _CREATE | _EXCL, message)


def set_link(
    action: str, device: int | str, *, on: int = 0, off: int = 0, **attrs: object
) -> NetlinkRequest:
    """Change attributes of a device and set its flags `on` and `off`."""
    return NetlinkRequest(action, _RTM_SETLINK, 0, _link(device, attrs, on, off))


def set_kind_data(action: str, device: int | str, kind: str, data: Attrs) -> NetlinkRequest:
    """Change what is particular to a kind of device, such as the mode of a macvtap."""
    message = _link(device, {})
    message["attrs"].append(_info(kind, "IFLA_INFO_DATA", data))
    return NetlinkRequest(action, _RTM_NEWLINK, 0, message)


def set_bridge_port(action: str, device: int | str, data: Attrs) -> NetlinkRequest:
    """Change how a port of a bridge behaves; it must be a port already."""
    message = _link(device, {})
    slave = ["IFLA_INFO_SLAVE_DATA", {"attrs": list(data.items())}]
    info = {"attrs": [["IFLA_INFO_SLAVE_KIND", "bridge"], slave]}
    message["attrs"].append(["IFLA_LINKINFO", info])
    return NetlinkRequest(action, _RTM_NEWLINK, 0, message)


class _PortState(NetlinkRequest):
    """Packed by hand: pyroute2 leaves out the flag that says that the attribute is a nest."""

    _LAYOUT = struct.Struct("=IHHII BxHiII HH HHBxxx")  # nlmsghdr, ifinfomsg, the nest, the state
    _PROTINFO, _STATE = 12, 1  # linux/if_link.h
    _NESTED = 0x8000

    def __init__(self, action: str, port: int, state: int) -> None:
        self.action = action
        self._port, self._state = port, state

    def encoded(self, number: int) -> bytes:
        size = self._LAYOUT.size
        return self._LAYOUT.pack(
            size, _RTM_SETLINK, _REQUEST | _ACK, number, 0,
            _AF_BRIDGE, 0, self._port, 0, 0,
            12, self._PROTINFO | self._NESTED,
            5, self._STATE, self._state,
        )  # fmt: skip


def set_port_state(port: int, name: str, state: int) -> NetlinkRequest:
    """Open or shut a port of a bridge; refused (EBUSY) where a spanning tree decides that.

    Not with `set_bridge_port`: after that the kernel tells everybody that the device has changed,
    and the bridge takes a shut port whose device is up for one to open.
    """
    return _PortState(f"set the state of port {name}", port, state)


def del_link(device: int | str) -> NetlinkRequest:
    """Remove a device."""
    return NetlinkRequest(f"remove {device}", _RTM_DELLINK, 0, _link(device, {}))


def add_fdb_entry(
    mac: str, port: int, *, static: bool, vlan: int | None = None, replace: bool = False
) -> NetlinkRequest:
    """Make a bridge deliver frames for `mac` to its port `port` (``bridge fdb add``).

    :param vlan: ``None`` for frames without a VLAN and for each VLAN of the port.
    :param replace: whether an entry that leads elsewhere is changed; else that is EEXIST.
    """
    state = _NUD_REACHABLE | (_NUD_NOARP if static else 0)
    flags = _CREATE | (_REPLACE if replace else _EXCL)
    return NetlinkRequest(f"forward {mac}", _RTM_NEWNEIGH, flags, _entry(mac, port, state, vlan))


def del_fdb_entry(mac: str, port: int, vlan: int | None = None) -> NetlinkRequest:
    """Make a bridge forget that `mac` is behind its port `port` (``bridge fdb del``).

    An entry that leads to another port stays: ENOENT.

    :param vlan: as in `add_fdb_entry`.
    """
    message = _entry(mac, port, _NUD_REACHABLE, vlan)
    return NetlinkRequest(f"forget {mac}", _RTM_DELNEIGH, 0, message)


def _entry(mac: str, port: int, state: int, vlan: int | None) -> Any:
    message = ndmsg()
    message["family"] = _AF_BRIDGE
    message["ifindex"] = port
    message["state"] = state
    message["flags"] = _NTF_MASTER
    message["attrs"] = [("NDA_LLADDR", mac)]
    if vlan is not None:
        message["attrs"].append(("NDA_VLAN", vlan))
    return message


def _link(device: int | str, attrs: Attrs, on: int = 0, off: int = 0) -> Any:
    message = ifinfmsg()
    message["index"] = device if isinstance(device, int) else 0
    message["flags"], message["change"] = on, on | off
    named = {} if isinstance(device, int) else {"ifname": device}
    message["attrs"] = [[f"IFLA_{key.upper()}", value] for key, value in {**named, **attrs}.items()]
    return message


def _info(kind: str, name: str, data: Attrs | None) -> list[Any]:
    attrs: list[Any] = [["IFLA_INFO_KIND", kind]]
    if data:
        attrs.append([name, {"attrs": list(data.items())}])
    return ["IFLA_LINKINFO", {"attrs": attrs}]


def index_of(name: str) -> int:
    """Return the index of a device. Takes a few microseconds.

    :raise KernelRefused: ENODEV when there is none.
    """
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise KernelRefused(errno.ENODEV, f"find {name}") from error


def is_up(name: str) -> bool:
    """Whether there is a device of that name, and it is up. Takes a few microseconds.

    Unlike a question over netlink it waits for no lock, such as that of a device that goes.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
        except OSError:
            return False
    _, flags = _IFREQ.unpack(answer)
    return bool(flags & IFF_UP)


class Rtnl:
    """A socket for changes, in the network namespace of the thread that opens it.

    Not for two threads at once. It never waits for an answer: the kernel has answered by the time
    that ``send()`` returns.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._number = 0
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def change(self, *requests: NetlinkRequest) -> None:
        """Carry out `requests` in order, back to back, with nothing between them.

        :raise KernelRefused: the first refusal. The kernel has tried the others all the same.
        """
        for refused in self.try_all(requests):
            if refused is not None:
                raise refused

    def try_all(self, requests: Sequence[NetlinkRequest]) -> list[KernelRefused | None]:
        """Carry out `requests` in order; return for each how it was refused, or ``None``."""
        results: list[KernelRefused | None] = []
        for start in range(0, len(requests), _BATCH_MAX):
            results += self._send_batch(requests[start : start + _BATCH_MAX])
        return results

    def _send_batch(self, requests: Sequence[NetlinkRequest]) -> list[KernelRefused | None]:
        numbers = range(self._number + 1, self._number + 1 + len(requests))
        self._number = numbers[-1] & 0x7FFFFFFF
        waiting = dict(zip(numbers, requests, strict=True))
        answers: dict[int, KernelRefused | None] = {}
        try:
            self._socket.send(b"".join(c.encoded(n) for n, c in waiting.items()))
            while len(answers) < len(waiting):
                for number, code, text in _parse_acks(self._socket.recv(65536)):
                    if number in waiting:
                        action = waiting[number].action
                        answers[number] = KernelRefused(code, action, text) if code else None
        except OSError as error:
            lost = KernelRefused(error.errno or 0, requests[0].action, f"netlink: {error.strerror}")
            raise lost from error
        return [answers[number] for number in numbers]


def _parse_acks(data: bytes) -> list[tuple[int, int, str | None]]:
    """Read acknowledgements: sequence number, error number or 0, the kernel's own words."""
    found = []
    while len(data) >= _NLMSGHDR.size:
        length, kind, flags, number, _ = _NLMSGHDR.unpack_from(data)
        message, data = data[:length], data[(length + 3) & ~3 :]
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", message, _ERROR_AT)
            found.append((number, -code, _kernel_message(message) if flags & _ACK_TLVS else None))
    return found


def _kernel_message(message: bytes) -> str | None:
    at = _TLVS_AT
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _ATTR_MSG:
            return message[at + 4 : at + length].rstrip(b"\0").decode(errors="replace")
        at += max(4, (length + 3) & ~3)
    return None
