"""The desired cables in a domain's own XML: ``<metadata>``, namespace ``urn:linkmgr:cables``.

docs/metadata.md has the schema. Text in, data out, and back; nothing here talks to libvirt. libvirt
gives the element without its namespace, and takes it so; in a domain's XML it has one. Both are
read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NoReturn, TypeVar

from linkmgr.errors import BadMetadata, BadName, CannotPrepare
from linkmgr.libvirt.xml.document import Document, Element, quoted
from linkmgr.libvirt.xml.interfaces import domain_name
from linkmgr.model import LinkState, NotifyMode, check_name

CABLES_NAMESPACE = "urn:linkmgr:cables"  #: namespace of the element
CABLES_PREFIX = "lm"  #: its prefix, where linkmgr writes it
MAX_CABLES = 256  #: of a domain, each of which is a task, a finding and an event; NICs are fewer
#: Bytes of the element: it is kept for each domain, and written down with each change of any.
MAX_CABLES_BYTES = 32 << 10
#: Networks of what somebody hands over: not there at the next start.
TRANSIENT_NETWORKS = frozenset({"fd"})

_TAG = {"cables", f"{{{CABLES_NAMESPACE}}}cables"}
_CABLE = {"cable", f"{{{CABLES_NAMESPACE}}}cable"}
_OPTION = {"option", f"{{{CABLES_NAMESPACE}}}option"}
_DOCS = "see docs/metadata.md"

E = TypeVar("E", LinkState, NotifyMode)


@dataclass(frozen=True)
class InlineNetwork:
    """A network that is described where it is used: a driver and its options, as written."""

    driver: str
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.driver}({options})"


@dataclass(frozen=True)
class DesiredCable:
    """The cable that a domain asks for on one NIC, and what its guest is to see.

    :param network: ``None``, and no `inline` either, means that it is unplugged.
    :param link: the carrier whenever it is plugged.
    """

    nic: str
    network: str | None = None
    port: str | None = None
    inline: InlineNetwork | None = None
    link: LinkState = LinkState.UP
    notify: NotifyMode = NotifyMode.AUTO

    @property
    def target(self) -> str | None:
        """``NETWORK`` or ``NETWORK:PORT``; ``None`` for an inline network and for no cable."""
        return f"{self.network}:{self.port}" if self.port else self.network

    @property
    def plugged(self) -> bool:
        """Whether it is to be on a cable at all."""
        return self.network is not None or self.inline is not None

    def __str__(self) -> str:
        where = self.target or (str(self.inline) if self.inline else None)
        return f"{f'plugged into {where}' if where else 'unplugged'}, link {self.link}"


@dataclass(frozen=True)
class DesiredCables:
    """The desired cable of each NIC of a domain. A NIC not named is unplugged, its link up."""

    by_nic: Mapping[str, DesiredCable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_nic", MappingProxyType(dict(self.by_nic)))

    def get(self, nic: str) -> DesiredCable:
        """What is asked for a NIC, also if it is not named."""
        return self.by_nic.get(nic, DesiredCable(nic))

    def with_cable(self, cable: DesiredCable) -> DesiredCables:
        """Ask for this cable, too. One that says the same as none is left out."""
        others = {nic: each for nic, each in self.by_nic.items() if nic != cable.nic}
        return DesiredCables(
            others if cable == DesiredCable(cable.nic) else {**others, cable.nic: cable}
        )

    def with_target(
        self, nic: str, target: str | None, notify: NotifyMode = NotifyMode.AUTO
    ) -> DesiredCables:
        """Ask for a network or port, ``None`` for no cable; the link stays.

        :raise BadMetadata: such a cable cannot be asked for.
        """
        network, _, port = (target or "").partition(":")
        if network in TRANSIENT_NETWORKS:
            raise BadMetadata(
                f"{target} is an fd that somebody handed over, and a domain's XML cannot ask for "
                "it: it is not there at the next start",
                hint="name a network",
            )
        here = self.get(nic)
        return self.with_cable(
            replace(here, network=network or None, port=port or None, inline=None, notify=notify)
        )

    def with_link(self, nic: str, link: LinkState) -> DesiredCables:
        """Ask for a link state; the cable stays."""
        return self.with_cable(replace(self.get(nic), link=link))


def parse(text: str | bytes | None, *, domain: str = "") -> DesiredCables:
    """Read a ``<cables>`` element, as `render` writes it or with its namespace.

    :param text: ``None`` asks for nothing.
    :param domain: whose it is, for the error.
    :raise BadMetadata: names the NIC and the attribute, and what it may be.
    """
    with _naming_domain(domain):
        return DesiredCables() if text is None else _read(_document(text).root)


def desired_cables_of_xml(domain_xml: str | bytes) -> DesiredCables:
    """Read what a domain's whole XML asks for.

    :raise BadMetadata: as `parse`, and names the domain.
    """
    return desired_cables_of(read_document(domain_xml))


def read_document(domain_xml: str | bytes, domain: str = "") -> Document:
    """Parse a domain's whole XML.

    :param domain: its name, for the error.
    :raise BadMetadata: it is not XML that is read.
    """
    with _naming_domain(domain):
        return _document(domain_xml)


def desired_cables_of(document: Document) -> DesiredCables:
    """As `desired_cables_of_xml`, for a document that is parsed already."""
    with _naming_domain(domain_name(document)):
        metadata = document.root.find("metadata")
        there = metadata.children if metadata else []
        # Of that namespace, whatever it is called: misspelt it would ask for no cables, silently.
        found = [each for each in there if each.name.startswith(f"{{{CABLES_NAMESPACE}}}")]
        if len(found) > 1:
            _refuse(
                None,
                f"there are {len(found)} elements of {CABLES_NAMESPACE}",
                "merge them into one <cables>",
            )
        return _read(found[0]) if found else DesiredCables()


def render(cables: DesiredCables, *, key: str | None = None) -> str:
    """Write a ``<cables>`` element.

    :param key: the prefix for a domain's XML; ``None`` is how libvirt takes and gives it.
    """
    p = f"{key}:" if key else ""
    declared = f" xmlns:{key}={quoted(CABLES_NAMESPACE)}" if key else ""
    lines = [f"<{p}cables{declared}>"]
    for cable in cables.by_nic.values():
        tag = f"  <{p}cable {_attributes(cable)}"
        options = cable.inline.options if cable.inline else {}
        if not options:
            lines.append(f"{tag}/>")
            continue
        lines.append(f"{tag}>")
        lines += [
            f"    <{p}option name={quoted(name)} value={quoted(value)}/>"
            for name, value in options.items()
        ]
        lines.append(f"  </{p}cable>")
    return "\n".join([*lines, f"</{p}cables>"])


def _attributes(cable: DesiredCable) -> str:
    said = {
        "nic": cable.nic,
        "network": cable.network,
        "port": cable.port,
        "driver": cable.inline.driver if cable.inline else None,
        "link": cable.link.value,
        "notify": None if cable.notify is NotifyMode.AUTO else cable.notify.value,
    }
    return " ".join(f"{name}={quoted(value)}" for name, value in said.items() if value is not None)


# --- reading --------------------------------------------------------------------------------------
@contextmanager
def _naming_domain(domain: str) -> Iterator[None]:
    """Say of which domain an error is."""
    try:
        yield
    except BadMetadata as error:
        if domain:
            error.nic = f"{domain}/{error.nic}" if error.nic else domain
        raise


def _document(text: str | bytes) -> Document:
    try:
        return Document(text.encode() if isinstance(text, str) else text)
    except CannotPrepare as error:
        raise BadMetadata(error.what, hint=error.hint) from None
    except UnicodeEncodeError:
        raise BadMetadata("the XML is not text", hint="save it as UTF-8") from None


def _read(element: Element) -> DesiredCables:
    if element.name not in _TAG:
        _refuse(None, f"<{_shown(element.name)}> is not <cables>", "begin with <cables>")
    if element.end - element.start > MAX_CABLES_BYTES:
        _refuse(None, f"<cables> is longer than {MAX_CABLES_BYTES} bytes", "ask for less")
    if len(element.children) > MAX_CABLES:
        _refuse(None, f"there are more than {MAX_CABLES} cables", "leave out what is unplugged")
    _check(None, element, {})
    found: dict[str, DesiredCable] = {}
    for child in element.children:
        if child.name not in _CABLE:
            _refuse(None, f"<cables> has a <{_shown(child.name)}>", "it takes only <cable>")
        cable = _cable(child)
        if cable.nic in found:
            _refuse(cable.nic, "it has two <cable>", "leave one of them")
        found[cable.nic] = cable
    return DesiredCables(found)


def _cable(element: Element) -> DesiredCable:
    given = element.attributes
    if "nic" not in given:
        _refuse(None, "a <cable> does not say for which NIC", "add nic='ALIAS'")
    nic = _name("NIC", None, "nic", given["nic"])
    known = dict.fromkeys(("nic", "network", "port", "driver", "link", "notify"))
    _check(nic, element, known)
    network = _name("network", nic, "network", given["network"]) if "network" in given else None
    port = _name("port", nic, "port", given["port"]) if "port" in given else None
    driver = _name("driver", nic, "driver", given["driver"]) if "driver" in given else None
    if network in TRANSIENT_NETWORKS:
        _refuse(
            nic,
            "network='fd' is what somebody hands over: it is not there at the next start",
            "name another network",
        )
    if port and not network:
        _refuse(nic, "port is the port of no network", "add network='NETWORK'")
    if network and driver:
        _refuse(
            nic, "network and driver are both there", "leave one: an inline network has a driver"
        )
    options = _options(nic, element)
    if options and not driver:
        _refuse(
            nic, "options belong to an inline network", "add driver='DRIVER', or remove <option>"
        )
    return DesiredCable(
        nic=nic,
        network=network,
        port=port,
        inline=InlineNetwork(driver, options) if driver else None,
        link=_choice(nic, "link", given.get("link", "up"), LinkState),
        notify=_choice(nic, "notify", given.get("notify", "auto"), NotifyMode),
    )


def _options(nic: str, element: Element) -> dict[str, str]:
    options: dict[str, str] = {}
    for child in element.children:
        if child.name not in _OPTION:
            _refuse(nic, f"<cable> has a <{_shown(child.name)}>", "it takes only <option>")
        _check(nic, child, {"name": None, "value": None})
        if child.children:
            _refuse(nic, "an <option> has elements in it", "write <option name='' value=''/>")
        missing = [name for name in ("name", "value") if name not in child.attributes]
        if missing:
            _refuse(nic, f"an <option> has no {missing[0]}", "write <option name='' value=''/>")
        name = child.attributes["name"]
        if name in options:
            _refuse(nic, f"the option {ascii(name)[:43]} is there twice", "leave one of them")
        options[name] = child.attributes["value"]
    return options


def _check(nic: str | None, element: Element, known: Mapping[str, object]) -> None:
    """Refuse what is not known: a word that is misspelt would otherwise mean nothing, silently."""
    tag = element.name.rpartition("}")[2]
    for name in element.attributes:
        if name not in known:
            near = difflib.get_close_matches(name[:64], known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}"
            _refuse(nic, f"<{tag}> has an attribute {_shown(name)} that nobody knows", hint)
    if text := element.text.strip():
        _refuse(nic, f"there is text in <{tag}>: {_shown(text)}", "remove it")


def _name(what: str, nic: str | None, attribute: str, value: str) -> str:
    try:
        return check_name(what, value)
    except BadName as error:
        _refuse(nic, f"{attribute}: {error.what}", error.hint or _DOCS)


def _choice(nic: str, attribute: str, value: str, kind: type[E]) -> E:
    try:
        return kind(value)
    except ValueError:
        _refuse(nic, f"{attribute} cannot be {_shown(value)}", f"write one of {', '.join(kind)}")


def _shown(text: str) -> str:
    return ascii(text)[:43]


def _refuse(nic: str | None, what: str, hint: str) -> NoReturn:
    error = BadMetadata(f"the cables in <metadata> cannot be read: {what}", hint=f"{hint}; {_DOCS}")
    if nic:
        error.about(nic)
    raise error
