"""JSON of the model, both ways: for the state on disk, the API and ``--json``.

One form for all of them. Reading is strict about what it needs and says where it is missing, by
its path in the document; what it does not know it leaves alone, so that an older client can read
what a newer service writes. A client also takes values of an enum that it does not know as they
are, and leaves out of a list only the entry that it cannot read; see `JsonReader`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar, cast

from linkmgr.errors import BadName
from linkmgr.model import (
    BridgeEndpoint,
    Connection,
    DirectEndpoint,
    DirectMode,
    DomainInfo,
    DomainNicInfo,
    Drift,
    Endpoint,
    EndpointKind,
    FdEndpoint,
    Finding,
    LinkState,
    MonitorTransport,
    Network,
    NetworkInfo,
    Nic,
    NicRef,
    NicState,
    OrphanDevice,
    Outcome,
    Port,
    VmInfo,
    VmState,
)
from linkmgr.text.untrusted import printable

log = logging.getLogger(__name__)

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class DecodeError(ValueError):
    """A JSON document that cannot be decoded.

    :param path: where, such as ``nics.net0.cable.id``.
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path or 'the document'}: {what}")
        self.path = path


def to_json(value: object) -> Any:
    """Return `value` as what `json.dumps` takes.

    A NIC becomes ``VM/ALIAS``, a time ISO 8601, a record an object with its fields.
    """
    if isinstance(value, NicRef):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
    return value.value if isinstance(value, StrEnum) else value


@dataclass(frozen=True)
class UnfamiliarEndpoint:
    """An endpoint of a kind that only a newer service knows."""

    kind: EndpointKind

    def __str__(self) -> str:
        return f"{self.kind}, of a newer linkmgr"


class JsonReader:
    """A reader of a JSON object that knows its path in the document.

    :param lenient: what a client reads, whose service may be newer: a value of an enum that it does
        not know is taken as it is, and an entry of a list that it cannot read is left out.
    """

    def __init__(self, value: object, path: str = "", *, lenient: bool = False) -> None:
        if not isinstance(value, Mapping):
            raise DecodeError(path, f"should be an object, not {_name(value)}")
        self.path = path
        self.lenient = lenient
        self._value = value

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def at(self, key: str) -> str:
        """The path of a member."""
        return f"{self.path}.{key}" if self.path else key

    def raw(self, key: str) -> object:
        """A member as it is, ``None`` when it is missing."""
        return self._value.get(key)

    def text(self, key: str) -> str:
        """A member that is a text."""
        return self._typed(key, str)

    def text_or_none(self, key: str) -> str | None:
        """A member that is a text or missing."""
        return self.text(key) if key in self else None

    def number(self, key: str) -> float:
        """A member that is a number."""
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DecodeError(self.at(key), f"should be a number, not {_name(value)}")
        return value

    def integer(self, key: str) -> int:
        """A member that is a whole number."""
        value = self.number(key)
        if not isinstance(value, int):
            raise DecodeError(self.at(key), "should be a whole number")
        return value

    def flag(self, key: str) -> bool:
        """A member that is true or false."""
        return self._typed(key, bool)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A member that is an object."""
        return dict(self._typed(key, Mapping))  # type: ignore[type-abstract]  # for isinstance

    def time(self, key: str) -> datetime:
        """A member that is a time with its zone."""
        return self._made(key, datetime.fromisoformat)

    def nic(self, key: str) -> NicRef:
        """A member that is ``VM/ALIAS``."""
        return self._made(key, NicRef.parse)

    def choice(self, key: str, kind: type[E]) -> E:
        """A member that is one of an enum's values."""
        if self.lenient and (text := self.text(key)) not in set(kind):
            return _unfamiliar(kind, text)
        return self._made(key, kind)

    def choice_or_none(self, key: str, kind: type[E]) -> E | None:
        """A member that is one of an enum's values or missing."""
        return self.choice(key, kind) if key in self else None

    def child(self, key: str, read: Callable[[JsonReader], T]) -> T:
        """A member that is an object, read by `read`."""
        return read(self._inner(self._value.get(key), self.at(key)))

    def child_or_none(self, key: str, read: Callable[[JsonReader], T]) -> T | None:
        """A member that is an object or missing, read by `read`."""
        return self.child(key, read) if key in self else None

    def children(self, key: str, read: Callable[[JsonReader], T]) -> dict[str, T]:
        """A member that is an object of objects."""
        each = self.mapping(key)
        return {
            name: read(self._inner(value, f"{self.at(key)}.{name}")) for name, value in each.items()
        }

    def items(self, key: str, read: Callable[[JsonReader], T]) -> list[T]:
        """A member that is a list of objects."""
        found = []
        for number, value in enumerate(self._typed(key, list)):
            try:
                found.append(read(self._inner(value, f"{self.at(key)}[{number}]")))
            except DecodeError as error:
                if not self.lenient:
                    raise
                log.warning("an entry of %s cannot be read and is left out: %s", key, error)
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        """A member that is a list of texts or missing."""
        values = self._typed(key, list) if key in self else []
        if not all(isinstance(each, str) for each in values):
            raise DecodeError(self.at(key), "should be a list of texts")
        return tuple(values)

    def _inner(self, value: object, path: str) -> JsonReader:
        return JsonReader(value, path, lenient=self.lenient)

    def _typed(self, key: str, kind: type[T]) -> T:
        value = self._value.get(key)
        if not isinstance(value, kind):
            names = {str: "a text", bool: "true or false", list: "a list", Mapping: "an object"}
            wanted = names.get(kind, kind.__name__)
            raise DecodeError(self.at(key), f"should be {wanted}, not {_name(value)}")
        return value

    def _made(self, key: str, make: Callable[[str], T]) -> T:
        text = self.text(key)
        try:
            return make(text)
        except Exception as error:  # noqa: BLE001 - what it raises tells what is wrong
            raise DecodeError(self.at(key), str(error)) from None


def read_network(reader: JsonReader) -> Network:
    """Read a `Network`."""
    return _built(
        reader,
        lambda: Network(
            reader.text("name"),
            reader.text("driver"),
            reader.mapping("options"),
            reader.choice("drift", Drift) if "drift" in reader else Drift.REPAIR,
        ),
    )


def read_port(reader: JsonReader) -> Port:
    """Read a `Port`."""
    return _built(
        reader,
        lambda: Port(
            reader.child("network", read_network),
            reader.text("name"),
            reader.mapping("options"),
            implied=reader.flag("implied"),
        ),
    )


def read_network_info(reader: JsonReader) -> NetworkInfo:
    """Read a `NetworkInfo`."""
    return NetworkInfo(
        network=reader.child("network", read_network),
        ports=tuple(reader.items("ports", read_port)),
        nics=tuple(NicRef.parse(each) for each in reader.texts("nics")),
        missing=reader.text_or_none("missing"),
    )


def read_endpoint(reader: JsonReader) -> Endpoint:
    """Read an endpoint of any kind."""
    match kind := reader.choice("kind", EndpointKind):
        case EndpointKind.BRIDGE:
            return BridgeEndpoint(
                bridge=reader.text("bridge"),
                mtu=reader.integer("mtu"),
                isolated=reader.flag("isolated"),
                hairpin=reader.flag("hairpin"),
                learning=reader.flag("learning"),
            )
        case EndpointKind.DIRECT:
            return DirectEndpoint(
                parent=reader.text("parent"),
                mode=reader.choice("mode", DirectMode),
                mtu=reader.integer("mtu"),
                trust_guest=reader.flag("trust_guest"),
            )
        case EndpointKind.FD:
            return FdEndpoint(
                name=reader.text("name"),
                device=reader.text_or_none("device"),
                vnet_hdr=reader.flag("vnet_hdr") if "vnet_hdr" in reader else None,
                mtu=reader.integer("mtu") if "mtu" in reader else None,
            )
    return cast("Endpoint", UnfamiliarEndpoint(kind))  # for the lenient


def read_connection(reader: JsonReader) -> Connection:
    """Read a `Connection`."""
    return Connection(
        nic=reader.nic("nic"),
        port=reader.child("port", read_port),
        endpoint=reader.child("endpoint", read_endpoint),
        attachment=reader.text("attachment"),
        device=reader.text("device"),
        since=reader.time("since"),
    )


def read_nic(reader: JsonReader) -> Nic:
    """Read a `Nic`."""
    return Nic(
        ref=reader.nic("ref"),
        model=reader.text("model"),
        mac=reader.text("mac"),
        mtu=reader.integer("mtu"),
        state=reader.choice("state", NicState),
        link=reader.choice_or_none("link", LinkState),
        wanted_link=reader.choice("wanted_link", LinkState),
        wiring=reader.text_or_none("wiring"),
        since=reader.time("since"),
        connection=reader.child_or_none("connection", read_connection),
    )


def read_outcome(reader: JsonReader) -> Outcome:
    """Read an `Outcome`."""
    return Outcome(
        nic=reader.child("nic", read_nic),
        changed=reader.flag("changed"),
        timings=reader.mapping("timings"),
        notes=reader.texts("notes"),
    )


def read_vm(reader: JsonReader) -> VmInfo:
    """Read a `VmInfo`."""
    names = reader.raw("nics")
    return VmInfo(
        name=reader.text("name"),
        qmp=reader.text("qmp"),
        state=reader.choice("state", VmState),
        since=reader.time("since"),
        nics=_refs(names, reader) if isinstance(names, list) else (),
        # An older service does not say either.
        transport=reader.choice("transport", MonitorTransport)
        if "transport" in reader
        else MonitorTransport.SOCKET,
        running=reader.flag("running") if "running" in reader else None,
    )


def _refs(names: list[object], reader: JsonReader) -> tuple[NicRef, ...]:
    found = []
    for each in names:
        try:
            found.append(NicRef.parse(str(each)))
        except BadName as error:
            if not reader.lenient:
                raise DecodeError(reader.at("nics"), str(error)) from None
            log.warning("a NIC of VM %s has no name: %s", reader.text("name"), error)
    return tuple(found)


def read_domain(reader: JsonReader) -> DomainInfo:
    """Read a `DomainInfo`."""
    return DomainInfo(
        name=reader.text("name"),
        uuid=reader.text("uuid"),
        state=reader.text("state"),
        transport=reader.choice_or_none("transport", MonitorTransport),
        prepared=reader.flag("prepared"),
        command=reader.text_or_none("command"),
        nics=tuple(reader.items("nics", _read_domain_nic)),
    )


def _read_domain_nic(reader: JsonReader) -> DomainNicInfo:
    return DomainNicInfo(
        alias=reader.text("alias"),
        mac=reader.text("mac"),
        model=reader.text("model"),
        prepared=reader.flag("prepared"),
        wiring=reader.text_or_none("wiring"),
        state=reader.choice_or_none("state", NicState),
        network=reader.text_or_none("network"),
        link=reader.choice_or_none("link", LinkState),
        device=reader.text_or_none("device"),
        wanted=reader.text_or_none("wanted"),
        restart=reader.flag("restart") if "restart" in reader else False,
    )


def read_finding(reader: JsonReader) -> Finding:
    """Read a `Finding`."""
    return Finding(
        reader.text("code"), reader.text("subject"), reader.text("what"), reader.text("hint")
    )


def read_orphan(reader: JsonReader) -> OrphanDevice:
    """Read an `OrphanDevice`."""
    return OrphanDevice(
        device=reader.text("device"),
        owner=reader.text("owner"),
        id=reader.text("id"),
        seen=reader.number("seen"),
        removed=reader.flag("removed"),
        error=reader.text_or_none("error"),
    )


def _unfamiliar(kind: type[E], text: str) -> E:
    """A value that only a newer linkmgr knows, as a member of the enum that it is missing in."""
    member = str.__new__(kind, printable(text, 40))
    member._name_ = member._value_ = str.__str__(member)
    return member


def _built(reader: JsonReader, build: Callable[[], T]) -> T:
    try:
        return build()
    except DecodeError:
        raise
    except Exception as error:  # noqa: BLE001 - a name that cannot be one, say
        raise DecodeError(reader.path, str(error)) from None


def _name(value: object) -> str:
    if value is None:
        return "missing"
    return {str: "a text", bool: "true or false", dict: "an object", list: "a list"}.get(
        type(value), f"a {type(value).__name__}"
    )
