"""The words of linkmgr as JSON, and back: for the state on disk, the API and ``--json``.

One form for all of them. Reading is strict about what it needs and says where it is missing, by
its path in the document; what it does not know it leaves alone, so that an older client can read
what a newer service writes. A client also takes values of an enum that it does not know as they
are, and leaves out of a list only the entry that it cannot read; see `Form`.
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
from linkmgr.untrusted import printable

log = logging.getLogger(__name__)

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class FormError(ValueError):
    """A document that is not of the form that it should have.

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


class Form:
    """A JSON object that is being read, and where it is in its document.

    :param lenient: what a client reads, whose service may be newer: a value of an enum that it does
        not know is taken as it is, and an entry of a list that it cannot read is left out.
    """

    def __init__(self, value: object, path: str = "", *, lenient: bool = False) -> None:
        if not isinstance(value, Mapping):
            raise FormError(path, f"should be an object, not {_name(value)}")
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
            raise FormError(self.at(key), f"should be a number, not {_name(value)}")
        return value

    def integer(self, key: str) -> int:
        """A member that is a whole number."""
        value = self.number(key)
        if not isinstance(value, int):
            raise FormError(self.at(key), "should be a whole number")
        return value

    def flag(self, key: str) -> bool:
        """A member that is true or false."""
        return self._typed(key, bool)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A member that is an object."""
        return dict(self._typed(key, Mapping))  # type: ignore[type-abstract]

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

    def child(self, key: str, read: Callable[[Form], T]) -> T:
        """A member that is an object, read by `read`."""
        return read(self._inner(self._value.get(key), self.at(key)))

    def child_or_none(self, key: str, read: Callable[[Form], T]) -> T | None:
        """A member that is an object or missing, read by `read`."""
        return self.child(key, read) if key in self else None

    def children(self, key: str, read: Callable[[Form], T]) -> dict[str, T]:
        """A member that is an object of objects."""
        each = self.mapping(key)
        return {
            name: read(self._inner(value, f"{self.at(key)}.{name}")) for name, value in each.items()
        }

    def items(self, key: str, read: Callable[[Form], T]) -> list[T]:
        """A member that is a list of objects."""
        found = []
        for number, value in enumerate(self._typed(key, list)):
            try:
                found.append(read(self._inner(value, f"{self.at(key)}[{number}]")))
            except FormError as error:
                if not self.lenient:
                    raise
                log.warning("an entry of %s cannot be read and is left out: %s", key, error)
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        """A member that is a list of texts or missing."""
        values = self._typed(key, list) if key in self else []
        if not all(isinstance(each, str) for each in values):
            raise FormError(self.at(key), "should be a list of texts")
        return tuple(values)

    def _inner(self, value: object, path: str) -> Form:
        return Form(value, path, lenient=self.lenient)

    def _typed(self, key: str, kind: type[T]) -> T:
        value = self._value.get(key)
        if not isinstance(value, kind):
            names = {str: "a text", bool: "true or false", list: "a list", Mapping: "an object"}
            wanted = names.get(kind, kind.__name__)
            raise FormError(self.at(key), f"should be {wanted}, not {_name(value)}")
        return value

    def _made(self, key: str, make: Callable[[str], T]) -> T:
        text = self.text(key)
        try:
            return make(text)
        except Exception as error:  # noqa: BLE001 - what it raises tells what is wrong
            raise FormError(self.at(key), str(error)) from None


def read_network(form: Form) -> Network:
    """Read a `Network`."""
    return _built(
        form,
        lambda: Network(
            form.text("name"),
            form.text("driver"),
            form.mapping("options"),
            form.choice("drift", Drift) if "drift" in form else Drift.REPAIR,
        ),
    )


def read_port(form: Form) -> Port:
    """Read a `Port`."""
    return _built(
        form,
        lambda: Port(
            form.child("network", read_network),
            form.text("name"),
            form.mapping("options"),
            implied=form.flag("implied"),
        ),
    )


def read_network_info(form: Form) -> NetworkInfo:
    """Read a `NetworkInfo`."""
    return NetworkInfo(
        network=form.child("network", read_network),
        ports=tuple(form.items("ports", read_port)),
        nics=tuple(NicRef.parse(each) for each in form.texts("nics")),
        missing=form.text_or_none("missing"),
    )


def read_endpoint(form: Form) -> Endpoint:
    """Read an endpoint of any kind."""
    match kind := form.choice("kind", EndpointKind):
        case EndpointKind.BRIDGE:
            return BridgeEndpoint(
                bridge=form.text("bridge"),
                mtu=form.integer("mtu"),
                isolated=form.flag("isolated"),
                hairpin=form.flag("hairpin"),
                learning=form.flag("learning"),
            )
        case EndpointKind.DIRECT:
            return DirectEndpoint(
                parent=form.text("parent"),
                mode=form.choice("mode", DirectMode),
                mtu=form.integer("mtu"),
                trust_guest=form.flag("trust_guest"),
            )
        case EndpointKind.FD:
            return FdEndpoint(
                name=form.text("name"),
                device=form.text_or_none("device"),
                vnet_hdr=form.flag("vnet_hdr") if "vnet_hdr" in form else None,
                mtu=form.integer("mtu") if "mtu" in form else None,
            )
    return cast("Endpoint", UnfamiliarEndpoint(kind))  # for the lenient


def read_connection(form: Form) -> Connection:
    """Read a `Connection`."""
    return Connection(
        nic=form.nic("nic"),
        port=form.child("port", read_port),
        endpoint=form.child("endpoint", read_endpoint),
        attachment=form.text("attachment"),
        device=form.text("device"),
        since=form.time("since"),
    )


def read_nic(form: Form) -> Nic:
    """Read a `Nic`."""
    return Nic(
        ref=form.nic("ref"),
        model=form.text("model"),
        mac=form.text("mac"),
        mtu=form.integer("mtu"),
        state=form.choice("state", NicState),
        link=form.choice_or_none("link", LinkState),
        wanted_link=form.choice("wanted_link", LinkState),
        wiring=form.text_or_none("wiring"),
        since=form.time("since"),
        connection=form.child_or_none("connection", read_connection),
    )


def read_outcome(form: Form) -> Outcome:
    """Read an `Outcome`."""
    return Outcome(
        nic=form.child("nic", read_nic),
        changed=form.flag("changed"),
        timings=form.mapping("timings"),
        notes=form.texts("notes"),
    )


def read_vm(form: Form) -> VmInfo:
    """Read a `VmInfo`."""
    names = form.raw("nics")
    return VmInfo(
        name=form.text("name"),
        qmp=form.text("qmp"),
        state=form.choice("state", VmState),
        since=form.time("since"),
        nics=_refs(names, form) if isinstance(names, list) else (),
        # An older service does not say either.
        transport=form.choice("transport", MonitorTransport)
        if "transport" in form
        else MonitorTransport.SOCKET,
        running=form.flag("running") if "running" in form else None,
    )


def _refs(names: list[object], form: Form) -> tuple[NicRef, ...]:
    found = []
    for each in names:
        try:
            found.append(NicRef.parse(str(each)))
        except BadName as error:
            if not form.lenient:
                raise FormError(form.at("nics"), str(error)) from None
            log.warning("a NIC of VM %s has no name: %s", form.text("name"), error)
    return tuple(found)


def read_domain(form: Form) -> DomainInfo:
    """Read a `DomainInfo`."""
    return DomainInfo(
        name=form.text("name"),
        uuid=form.text("uuid"),
        state=form.text("state"),
        transport=form.choice_or_none("transport", MonitorTransport),
        prepared=form.flag("prepared"),
        command=form.text_or_none("command"),
        nics=tuple(form.items("nics", _read_domain_nic)),
    )


def _read_domain_nic(form: Form) -> DomainNicInfo:
    return DomainNicInfo(
        alias=form.text("alias"),
        mac=form.text("mac"),
        model=form.text("model"),
        prepared=form.flag("prepared"),
        wiring=form.text_or_none("wiring"),
        state=form.choice_or_none("state", NicState),
        network=form.text_or_none("network"),
        link=form.choice_or_none("link", LinkState),
        device=form.text_or_none("device"),
        wanted=form.text_or_none("wanted"),
        restart=form.flag("restart") if "restart" in form else False,
    )


def read_finding(form: Form) -> Finding:
    """Read a `Finding`."""
    return Finding(form.text("code"), form.text("subject"), form.text("what"), form.text("hint"))


def read_orphan(form: Form) -> OrphanDevice:
    """Read a `OrphanDevice`."""
    return OrphanDevice(
        device=form.text("device"),
        owner=form.text("owner"),
        id=form.text("id"),
        seen=form.number("seen"),
        removed=form.flag("removed"),
        error=form.text_or_none("error"),
    )


def _unfamiliar(kind: type[E], text: str) -> E:
    """A value that only a newer linkmgr knows, as a member of the enum that it is missing in."""
    member = str.__new__(kind, printable(text, 40))
    member._name_ = member._value_ = str.__str__(member)
    return member


def _built(form: Form, build: Callable[[], T]) -> T:
    try:
        return build()
    except FormError:
        raise
    except Exception as error:  # noqa: BLE001 - a name that cannot be one, say
        raise FormError(form.path, str(error)) from None


def _name(value: object) -> str:
    if value is None:
        return "missing"
    return {str: "a text", bool: "true or false", dict: "an object", list: "a list"}.get(
        type(value), f"a {type(value).__name__}"
    )
