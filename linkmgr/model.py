"""The words of linkmgr as data: NIC, network, port, offer, endpoint, connection.

Pure data, frozen, no I/O. The meaning of each word is in the glossary (docs/words.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Self, TypeVar

from linkmgr.errors import BadName, BadOption
from linkmgr.text.suggest import did_you_mean
from linkmgr.text.untrusted import quoted

E = TypeVar("E", bound=StrEnum)

DEFAULT_MTU = 1500  #: bytes; what a NIC takes when its ``host_mtu`` is not set
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_name(what: str, name: str) -> str:
    """Return `name` if it can name a VM, NIC, network or port: 1-63 of ``A-Za-z0-9._-``.

    :param what: the kind of thing, for the error.
    :raise BadName: otherwise. The error shows a shortened, escaped form of the name.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    shown = quoted(name)
    raise BadName(
        f"{shown} cannot be the name of {'an' if what == 'fd' else 'a'} {what}",
        hint="use 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit",
    )


def parse_choice(kind: type[E], value: str, what: str) -> E:
    """Read one of an enum's values.

    :param what: that is chosen, for the error.
    :raise BadOption: it is none of them; says which there are.
    """
    try:
        return kind(value)
    except ValueError:
        *most, last = kind
        close = did_you_mean(str(value), list(kind))
        raise BadOption(
            f"{ascii(value)[:43]} is not a {what}",
            hint=f"{f'{close} Else ' if close else ''}give {', '.join(most)} or {last}",
        ) from None


def written(options: Mapping[str, object]) -> str:
    """Options as they are written on the command line: ``bridge=br0 create=true``."""
    shown = {True: "true", False: "false"}
    return " ".join(
        f"{key}={shown[value] if isinstance(value, bool) else value}"
        for key, value in options.items()
    )


@dataclass(frozen=True, order=True)
class NicRef:
    """Which NIC: a VM and the alias (QEMU's device id) of the NIC in it, written ``VM/ALIAS``."""

    vm: str
    alias: str

    @classmethod
    def parse(cls, text: str | NicRef) -> NicRef:
        """Read ``VM/ALIAS``.

        :raise BadName: when the text is not of that form.
        """
        if isinstance(text, NicRef):
            return text
        vm, slash, alias = text.partition("/") if isinstance(text, str) else ("", "", "")
        if not slash:
            shown = quoted(text)
            raise BadName(f"{shown} does not name a NIC", hint="write VM/ALIAS, such as web1/net0")
        return cls(check_name("VM", vm), check_name("NIC", alias))

    def __str__(self) -> str:
        return f"{self.vm}/{self.alias}"


class LinkState(StrEnum):
    """What the guest sees as carrier."""

    UP = "up"
    DOWN = "down"


class NicState(StrEnum):
    """Where a NIC's cable is."""

    UNPLUGGED = "unplugged"
    PLUGGED = "plugged"
    FOREIGN = "foreign"  #: on a cable that linkmgr did not plug
    UNMANAGED = "unmanaged"  #: wired so that its cable cannot change
    UNKNOWN = "unknown"  #: QEMU does not answer
    GONE = "gone"  #: the guest has ended


class NotifyMode(StrEnum):
    """The way in which the guest and the network are notified of a new cable."""

    AUTO = "auto"  #: within a network announce; else flap, and the network learns the NIC's address
    FLAP = "flap"  #: carrier down and up: the guest renews its lease and neighbours
    ANNOUNCE = "announce"  #: RARP/GARP with the NIC's address: the network relearns
    SILENT = "silent"


class EndpointKind(StrEnum):
    """The kinds of endpoint that a wiring can take and a driver can supply."""

    BRIDGE = "bridge"
    DIRECT = "direct"
    FD = "fd"


class DirectMode(StrEnum):
    """macvtap modes, as in ip-link(8)."""

    BRIDGE = "bridge"
    VEPA = "vepa"
    PRIVATE = "private"
    PASSTHRU = "passthru"


class Drift(StrEnum):
    """What is done when a cable is not any more what it should be."""

    REPAIR = "repair"  #: plug it again
    REPORT = "report"  #: say so, and leave it


Options = Mapping[str, object]


@dataclass(frozen=True)
class Network:
    """A named layer-2 domain and the driver that can reach it.

    :param drift: what is done when a cable into it is found broken.
    """

    name: str
    driver: str
    options: Options = field(default_factory=dict)
    drift: Drift = Drift.REPAIR

    def __post_init__(self) -> None:
        check_name("network", self.name)
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Port:
    """A socket on a network, with options of its own.

    :param implied: made by plugging into a network and named after the NIC; gone when unplugged.
    """

    network: Network
    name: str
    options: Options = field(default_factory=dict)
    implied: bool = False

    def __post_init__(self) -> None:
        if not self.implied:
            check_name("port", self.name)
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __str__(self) -> str:
        return self.network.name if self.implied else f"{self.network.name}:{self.name}"


@dataclass(frozen=True)
class NetworkInfo:
    """A network with all that is known of it now.

    :param nics: that are plugged into it.
    :param missing: what a plug into it would fail for; ``None`` for nothing.
    """

    network: Network
    ports: tuple[Port, ...] = ()
    nics: tuple[NicRef, ...] = ()
    missing: str | None = None


@dataclass(frozen=True)
class Offer:
    """What the hypervisor side can take for one NIC.

    :param kinds: endpoint kinds in order of preference.
    :param mac: the NIC's configured address, lower case with colons.
    :param mtu: largest payload in bytes that the NIC can take.
    :param queues: queue pairs that the wiring can connect.
    """

    nic: NicRef
    kinds: tuple[EndpointKind, ...]
    mac: str
    mtu: int = DEFAULT_MTU
    queues: int = 1
    vnet_hdr: bool = False
    vhost: bool = False


@dataclass(frozen=True)
class BridgeEndpoint:
    """A Linux bridge of this host, and how the port on it behaves (see bridge(8)).

    :param mtu: bytes, what the network carries.
    """

    bridge: str
    mtu: int = DEFAULT_MTU
    isolated: bool = False
    hairpin: bool = False
    learning: bool = True
    kind: EndpointKind = field(default=EndpointKind.BRIDGE, init=False)

    def __str__(self) -> str:
        return f"bridge {self.bridge}"


@dataclass(frozen=True)
class DirectEndpoint:
    """A device of this host to sit on directly, by macvtap or macvlan.

    :param mtu: bytes, what the network carries.
    :param trust_guest: whether the guest may change the address that it receives on.
    """

    parent: str
    mode: DirectMode = DirectMode.BRIDGE
    mtu: int = DEFAULT_MTU
    trust_guest: bool = False
    kind: EndpointKind = field(default=EndpointKind.DIRECT, init=False)

    def __str__(self) -> str:
        return f"direct on {self.parent} mode {self.mode}"


@dataclass(frozen=True)
class FdEndpoint:
    """A tap or macvtap that a caller opened and handed over. It is theirs, maybe elsewhere.

    :param name: under which it was left, with the uid: ``UID.NAME``.
    :param device: its name when it was left, in its own network namespace.
    :param vnet_hdr: whether its frames carry a virtio-net header.
    :param mtu: bytes, what it carries. All three are ``None`` when they are not known.
    """

    name: str
    device: str | None = None
    vnet_hdr: bool | None = None
    mtu: int | None = None
    kind: EndpointKind = field(default=EndpointKind.FD, init=False)

    def __str__(self) -> str:
        return f"fd {self.name}" + (f", device {self.device}" if self.device else "")


Endpoint = BridgeEndpoint | DirectEndpoint | FdEndpoint


@dataclass(frozen=True)
class Connection:
    """A NIC, the port it is plugged into, and the host device between them.

    :param attachment: the attachment's id, also in the host device's tag.
    :param device: name of the tap or macvtap on this host.
    """

    nic: NicRef
    port: Port
    endpoint: Endpoint
    attachment: str
    device: str
    since: datetime

    @property
    def network(self) -> str:
        """Name of the network."""
        return self.port.network.name


@dataclass(frozen=True)
class Nic:
    """A NIC of a running guest as linkmgr sees it now.

    :param link: what the guest sees; ``None`` while unknown.
    :param wanted_link: what it sees whenever the NIC is plugged.
    :param wiring: ``hub``, or ``None`` for a NIC whose cable cannot change.
    :param since: when `state` began.
    """

    ref: NicRef
    model: str
    mac: str
    mtu: int
    state: NicState
    link: LinkState | None
    wanted_link: LinkState
    wiring: str | None
    since: datetime
    connection: Connection | None = None

    def describe(self) -> str:
        """What state it is in, as the end of the sentence "NIC is ..."."""
        if self.state is NicState.PLUGGED:
            where = self.connection.port if self.connection else "?"
            return f"plugged into {where}, link {self.link}"
        if self.state is NicState.UNKNOWN:
            since = self.since.isoformat(timespec="seconds")
            return f"in an unknown state since {since}, because QEMU does not answer"
        plain = {
            NicState.UNPLUGGED: "unplugged",
            NicState.FOREIGN: "on a cable that linkmgr did not plug",
            NicState.UNMANAGED: "wired so that its cable cannot change",
            NicState.GONE: "gone with its guest",
        }
        return plain.get(self.state, str(self.state))  # a newer service may know others


class VmState(StrEnum):
    """Whether a VM's QEMU can be spoken to."""

    ANSWERS = "answers"
    UNKNOWN = "unknown"  #: it runs, but does not answer
    GONE = "gone"  #: it has ended


class MonitorTransport(StrEnum):
    """The transport of a VM's monitor: how QMP is spoken with its QEMU."""

    SOCKET = "socket"  #: QEMU listens on a socket of its own
    INBOUND = "inbound"  #: QEMU connects to the socket on which linkmgr listens
    LIBVIRT = "libvirt"  #: through libvirt's own connection


@dataclass(frozen=True)
class VmInfo:
    """A VM as linkmgr sees it now.

    :param qmp: address of its monitor: a path, ``inbound:UUID`` or ``libvirt:UUID``.
    :param since: when `state` began.
    :param running: whether its processors run; ``None`` while that is not known.
    """

    name: str
    qmp: str
    state: VmState
    since: datetime
    nics: tuple[NicRef, ...] = ()
    transport: MonitorTransport = MonitorTransport.SOCKET
    running: bool | None = None


class Affects(StrEnum):
    """What of a libvirt guest a verb changes, in virsh's words."""

    LIVE = "live"  #: the guest that runs, until its next start
    CONFIG = "config"  #: what holds from its next start on
    PERSISTENT = "persistent"  #: both; of a guest that does not run, its next start


@dataclass(frozen=True)
class Outcome:
    """What a verb did.

    :param nic: the NIC afterwards.
    :param changed: false when it was so already.
    :param timings: milliseconds per step, in the order in which they were taken.
    :param notes: what a person should know, as sentences without a full stop.
    """

    nic: Nic
    changed: bool
    timings: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DomainNicInfo:
    """A NIC of a libvirt domain, whether the domain runs or not.

    :param prepared: whether it boots so that its cable can change.
    :param wiring: as `Nic.wiring`; ``None`` too while it does not run.
    :param state: as `Nic.state`; ``None`` for one that linkmgr does not take care of.
    :param network: what it is plugged into: a port of linkmgr, else libvirt's own source.
    :param device: of the host; ``None`` while there is none.
    :param wanted: what the domain's XML asks for; ``None`` when it asks for nothing.
    :param restart: whether it boots so from the next start on, but did not when it was started.
    """

    alias: str
    mac: str
    model: str
    prepared: bool
    wiring: str | None = None
    state: NicState | None = None
    network: str | None = None
    link: LinkState | None = None
    device: str | None = None
    wanted: str | None = None
    restart: bool = False


@dataclass(frozen=True)
class DomainInfo:
    """A guest of libvirt on this host.

    :param state: in virsh's words: ``running``, ``shut off``.
    :param transport: how its QEMU is spoken to; ``None`` when it is not.
    :param prepared: whether all its NICs are.
    :param command: what would prepare it, or prepare it anew where an older linkmgr has done it;
        ``None`` if nothing need be done, or can be. Where it has been done since it was started,
        its NICs say `restart`.
    """

    name: str
    uuid: str
    state: str
    transport: MonitorTransport | None
    prepared: bool
    command: str | None
    nics: tuple[DomainNicInfo, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    :param code: stable, for programs.
    :param subject: the NIC as ``VM/ALIAS``.
    """

    code: str
    subject: str
    what: str
    hint: str


@dataclass(frozen=True)
class OrphanDevice:
    """A device with our tag that nothing recorded.

    :param owner: from its tag: a NIC, or ``network:NAME``.
    :param id: from its tag.
    :param seen: seconds since it was first seen to be an orphan.
    :param removed: whether this run removed it.
    :param error: why it was left alone; ``None`` for one that a dry run would have removed.
    """

    device: str
    owner: str
    id: str
    seen: float
    removed: bool
    error: str | None = None

    @property
    def owner_tag(self) -> OwnerTag:
        """The tag of the device."""
        return OwnerTag(self.owner, self.id)


_NETWORK_PREFIX = "network:"  # of owners; no name has a colon
_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class OwnerTag:
    """The interface alias of a device that linkmgr made: ``linkmgr:KIND:NAME:ID``.

    KIND is ``nic`` for a cable, whose NAME is ``VM/ALIAS``, and ``network`` for what a driver made.

    :param owner: a NIC as ``VM/ALIAS``, or ``network:NAME``. No text can be both.
    :param id: of the attachment or the device, eight hexadecimal digits.
    """

    owner: str
    id: str

    def __str__(self) -> str:
        kind = "" if self.network else "nic:"
        return f"linkmgr:{kind}{self.owner}:{self.id}"

    @classmethod
    def of_network(cls, name: str, ident: str) -> Self:
        """The tag of a device that a driver made for a network."""
        return cls(_NETWORK_PREFIX + name, ident)

    @property
    def network(self) -> str | None:
        """Name of the network that owns the device; ``None`` if a NIC does."""
        name = self.owner.removeprefix(_NETWORK_PREFIX)
        return name if name != self.owner else None

    @property
    def vm(self) -> str | None:
        """Name of the VM whose NIC owns the device; ``None`` if a network does."""
        return None if self.network else self.owner.partition("/")[0]

    @classmethod
    def parse(cls, text: str | None, *, of_cable: bool = True) -> Self | None:
        """Read an interface alias; ``None`` if it is not one of ours.

        :param of_cable: whether the device is of a kind that cables have. It decides about aliases
            without a KIND, as they were written before there was one: ``network/NAME`` is a network
            or a NIC of a VM called network.
        """
        head, *parts = (text or "").split(":")
        if head != "linkmgr" or len(parts) not in {2, 3} or not _ID.fullmatch(parts[-1]):
            return None
        *kind, name, ident = parts
        vm, slash, alias = name.partition("/")
        if kind == ["network"] and _NAME.fullmatch(name):
            return cls.of_network(name, ident)
        if not kind and vm == "network" and _NAME.fullmatch(alias) and not of_cable:
            return cls.of_network(alias, ident)
        is_nic = slash and _NAME.fullmatch(vm) and _NAME.fullmatch(alias)
        return cls(name, ident) if kind in ([], ["nic"]) and is_nic else None
