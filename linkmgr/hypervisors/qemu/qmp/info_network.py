r"""What is plugged into what, read from QEMU's ``info network``.

Hub ports are in no QMP command, up to QEMU 11; this text is the only place that tells. The reader
is strict, for what it does not understand decides whether a guest's cable is moved.

The text, from QEMU's ``net/net.c`` and ``net/hub.c``, lines in the order of the parser::

    hub 1
     \ lm-port-1: lm-tap-1: index=0,type=tap,fd=11     a hub port and its peer
     \ lm-sink0                                        a hub port without
    net1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:02
     \ hostnet1: index=0,type=tap,fd=6                 the peer of the NIC above
    net1: index=1,type=nic,                            a further queue of the same NIC
     \ hostnet1: index=1,type=tap,fd=7
    lm-tap-2: index=0,type=tap,fd=12                   a backend without a peer
    filters:                                           of the client above, in any of these places
      - f0: type=filter-dump,file=/run/f0

A NIC whose hub port was deleted is in none of these lines.

A QEMU that was taken over writes what it likes, so the work is bounded by the number of lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from linkmgr.errors import MonitorError
from linkmgr.hypervisors.qemu.qmp.events import MAX_ID_CHARS
from linkmgr.text.untrusted import printable

#: Lines of an answer, 30 ms of the event loop at the very most: four times those of a guest with 28
#: NICs, as many as a PCI bus takes, and 16 queues each.
MAX_INFO_LINES = 4096
#: NICs of a guest, each of which is asked about one by one when the guest is added.
MAX_NICS = 256
#: The highest number of a hub: QEMU keeps it in an ``int32``.
MAX_HUB_NUMBER = 2**31 - 1

_CLIENT = re.compile(
    rf"(?P<id>[^\s:]{{1,{MAX_ID_CHARS}}}): "
    r"index=(?P<index>[0-9]{1,5}),type=(?P<type>[\w-]{1,64}),(?P<info>.*)"
)
_HUB = re.compile(r"hub (?P<number>-?[0-9]+)")
_PORT = re.compile(r" \\ (?P<id>[^\s:]+)(?:: (?P<peer>.+))?")
_PEER = re.compile(r" \\ (?P<peer>.+)")
_FILTER = re.compile(r"filters:|  - .*")
_NIC = re.compile(
    r"model=(?P<model>[^,]{0,64}),macaddr=(?P<mac>[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5})"
)


@dataclass(frozen=True)
class HubPort:
    """One port of a hub, and what is plugged into it.

    :param id: of the hub port.
    :param peer: id of the NIC or backend, ``None`` for a port that nothing is plugged into.
    :param peer_kind: ``nic``, ``tap``, ``stream``, ...; ``None`` like `peer`.
    """

    id: str
    peer: str | None = None
    peer_kind: str | None = None


@dataclass(frozen=True)
class Hub:
    """A hub of QEMU and its ports, the newest first as QEMU tells them."""

    number: int
    ports: tuple[HubPort, ...] = ()

    @cached_property
    def nics(self) -> tuple[HubPort, ...]:
        """Ports that a NIC is plugged into."""
        return tuple(port for port in self.ports if port.peer_kind == "nic")

    @cached_property
    def backends(self) -> tuple[HubPort, ...]:
        """Ports that anything else is plugged into: cables to the outside."""
        return tuple(port for port in self.ports if port.peer_kind not in (None, "nic"))

    @cached_property
    def free(self) -> tuple[HubPort, ...]:
        """Ports that nothing is plugged into: sinks."""
        return tuple(port for port in self.ports if port.peer is None)


@dataclass(frozen=True)
class NetClient:
    """A NIC, a backend or a hub port.

    :param type: ``nic``, ``hubport``, ``tap``, ``user``, ...
    :param model: of a NIC: the device type.
    :param mac: of a NIC: the address that the *guest* uses now, lower case with colons.
    :param info: the rest of QEMU's line, free text.
    :param peer: id of what it is plugged into.
    :param queues: queue pairs.
    """

    id: str
    type: str
    model: str | None = None
    mac: str | None = None
    info: str = ""
    peer: str | None = None
    queues: int = 1


@dataclass(frozen=True)
class NetTopology:
    """QEMU's net clients, and what is plugged into what.

    :param nics: by id. QEMU's ids of NICs and of netdevs are two namespaces, so one id may be in
        `nics` and in `netdevs`.
    :param netdevs: backends and hub ports by id, the names that ``netdev_add`` cannot take.
    """

    hubs: Mapping[int, Hub] = field(default_factory=dict)
    nics: Mapping[str, NetClient] = field(default_factory=dict)
    netdevs: Mapping[str, NetClient] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("hubs", "nics", "netdevs"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def clients(self) -> Mapping[str, NetClient]:
        """NICs, backends and hub ports by id; the NIC where a netdev has the same id."""
        return MappingProxyType({**self.netdevs, **self.nics})

    def hub_of(self, nic: str) -> tuple[int, str] | None:
        """Return the hub's number and the id of the port that a NIC is plugged into, if it is."""
        return self._places.get(nic)

    @cached_property
    def _places(self) -> Mapping[str, tuple[int, str]]:
        return {
            str(port.peer): (hub.number, port.id)
            for hub in reversed([*self.hubs.values()])
            for port in reversed(hub.nics)
        }


class _Reader:
    def __init__(self) -> None:
        self.hubs: dict[int, list[HubPort]] = {}
        self.nics: dict[str, NetClient] = {}
        self.netdevs: dict[str, NetClient] = {}
        self.hub: list[HubPort] | None = None  # whose ports the lines are
        self.behind_hubs = False  # they come first, and the first other client is their end
        self.nic: str | None = None  # whose peer the next line may be

    def line(self, text: str) -> bool:
        """Take in one line; False if it cannot be one."""
        if _FILTER.fullmatch(text):
            return bool(self.nics or self.netdevs)
        if match := _HUB.fullmatch(text):
            self.nic = None
            return self._begin_hub(match["number"])
        if self.hub is not None and (match := _PORT.fullmatch(text)):
            return self._port(self.hub, match["id"], match["peer"])
        if self.nic is not None and (match := _PEER.fullmatch(text)):
            nic, self.nic = self.nic, None
            backend = self._client(match["peer"], peer=nic)
            if backend is None or backend.type == "nic":
                return False
            self.nics[nic] = replace(self.nics[nic], peer=backend.id)
            return True
        client = self._client(text, peer=None)
        self.hub = None
        self.nic = client.id if client and client.type == "nic" else None
        self.behind_hubs = self.behind_hubs or (client is not None and client.type != "hubport")
        return client is not None

    def _begin_hub(self, digits: str) -> bool:
        self.hub = []
        if len(digits) > len(str(MAX_HUB_NUMBER)) or not 0 <= int(digits) <= MAX_HUB_NUMBER:
            return not self.behind_hubs  # what is on it is on no hub that anybody can name
        started = int(digits) in self.hubs or self.behind_hubs
        self.hubs[int(digits)] = self.hub
        return not started

    def _port(self, hub: list[HubPort], name: str, peer_text: str | None) -> bool:
        if name in self.netdevs:
            return False
        peer = None
        if peer_text is not None:
            peer = self._client(peer_text, peer=name)
            if peer is None:
                return False
        plugged = (peer.id, peer.type) if peer else (None, None)
        hub.append(HubPort(name, *plugged))
        self.netdevs[name] = NetClient(name, "hubport", peer=plugged[0])
        return True

    def _client(self, text: str, peer: str | None) -> NetClient | None:
        match = _CLIENT.fullmatch(text)
        if match is None:
            return None
        index, kind, name = int(match["index"]), match["type"], match["id"]
        known = self.nics if kind == "nic" else self.netdevs
        if index > 0:  # a further queue of what was told before
            first = known.get(name)
            if first is None or first.type != kind or first.queues != index:
                return None
            client = replace(first, queues=index + 1)
        elif name in known:
            return None
        else:
            client = NetClient(name, kind, info=match["info"], peer=peer)
            if kind == "nic" and (nic := _NIC.fullmatch(match["info"])):
                client = replace(client, model=printable(nic["model"]), mac=nic["mac"].lower())
        known[name] = client
        return client


def parse_info_network(text: object) -> NetTopology:
    """Read the answer of ``info network``.

    :raise MonitorError: a line that cannot be part of it, which is shown; or too many.
    """
    if not isinstance(text, str):
        raise MonitorError(
            f"QEMU answered 'info network' with {printable(text, 120)}",
            hint="look which program answers on its monitor",
        )
    reader = _Reader()
    lines = text.replace("\r\n", "\n").split("\n", MAX_INFO_LINES)
    for number, line in enumerate(lines[:MAX_INFO_LINES], 1):
        if line and not reader.line(line):
            raise MonitorError(
                f"line {number} of QEMU's 'info network' cannot be understood: "
                f"{printable(line, 120)!r}",
                hint="report it together with QEMU's version; nothing was changed",
            )
    if len(lines) > MAX_INFO_LINES or len(reader.nics) > MAX_NICS:
        raise MonitorError(
            f"QEMU's 'info network' has more than {MAX_INFO_LINES} lines or {MAX_NICS} NICs",
            hint="look whether this is QEMU; linkmgr leaves such a guest alone",
        )
    hubs = {number: Hub(number, tuple(ports)) for number, ports in reader.hubs.items()}
    return NetTopology(hubs, reader.nics, reader.netdevs)
