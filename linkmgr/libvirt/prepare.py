"""Rewrite a domain's XML so that its NICs boot on hubs, without a cable; and back.

The way is that of docs/libvirt.md: libvirt keeps the NIC (address, model, PCI slot, alias) and
makes a stray tap for it, which carries nothing; ``qemu:override`` wires the NIC to a hub instead,
and ``qemu:commandline`` makes the hub, its sink and a monitor that dials the service.

These functions work on text alone. They never talk to libvirt.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from linkmgr.errors import BadName, BadOption, CannotPrepare, LinkmgrError
from linkmgr.libvirt import qemu_xml
from linkmgr.libvirt.domain_xml import Document, Element, quoted
from linkmgr.libvirt.nics import DomainNic, chosen, new_alias, nics_of
from linkmgr.libvirt.records import add_record, drop_record, original, records_of
from linkmgr.libvirt.refusals import (
    check_aliases,
    check_clashes,
    check_domain,
    check_ids,
    check_nic,
)
from linkmgr.wirings.args import hub_args

MONITOR = Path("/run/linkmgr/qmp.sock")  #: on which the service waits for QEMUs to dial
MONITOR_ID = "lm-qmp"  #: the id of the chardev that dials

_PATH_MAX = 107  # bytes; sun_path of unix(7) without its final NUL
_MON = f"chardev={MONITOR_ID},mode=control"
_CHARDEV = f"socket,id={MONITOR_ID},path="
_BEHIND_PATH = ",server=off,reconnect=1"
#: The same, as a person writes it for a QEMU that has no reconnect= any more: deprecated since 9.2.
_BEHIND_PATH_MS = ",server=off,reconnect-ms=1000"

#: What of an interface is the cable's and goes with it, and how a person calls it.
_CABLE: Mapping[str, str] = {
    "source": "", "backend": "", "local": "", "guest": "", "tune": "", "coalesce": "",
    "virtualport": "virtual port", "vlan": "VLAN", "bandwidth": "bandwidth limits",
    "port": "port isolation", "ip": "addresses", "route": "routes", "script": "script",
    "downscript": "script for the end", "portForward": "port forwarding",
}  # fmt: skip

#: What `undo` takes from before. Everything else of the interface is as it is by then.
_OURS = frozenset({*_CABLE, "target", "link", "alias"})

#: Names of devices that libvirt does not keep, since it gives them by itself.
_AUTOMATIC_DEVICE = re.compile(r"(vnet|vif|macvtap|macvlan)\d*")
_OUR_DEVICE = re.compile(r"lmn[0-9a-f]{10}")


@dataclass(frozen=True)
class Rewritten:
    """What came of it.

    :param xml: the whole document; the same bytes as before when nothing was to be done.
    :param nics: the aliases of the NICs that were changed.
    :param notes: what a person should know, as sentences without a full stop.
    """

    xml: bytes
    nics: tuple[str, ...]
    notes: tuple[str, ...] = ()


def prepare(xml: bytes, *, nic: str | None = None, monitor: str | Path | None = None) -> Rewritten:
    """Make NICs boot on hubs. What is prepared already stays as it is, what is damaged is mended.

    :param nic: an alias or an address; ``None`` means all NICs of the domain.
    :param monitor: the socket that QEMU dials; by default the one that is there, if it can be one,
        else `MONITOR`.
    :raise CannotPrepare: the domain or the NIC cannot be prepared; says what to do.
    :raise UnknownNic: there is no such NIC.
    :raise BadOption: the socket's path cannot be one.
    """
    document = Document(xml)
    check_domain(document)
    dial = None if monitor is None else _dialled(Path(monitor))
    check_aliases(document)
    _check_renamed(document)
    done, notes = [], []
    for index in [each.index for each in chosen(document, nic)]:
        here = nics_of(document)[index]
        if here.alias in records_of(document):
            if _is_complete(document, here):
                continue
            document = _undo_nic(document, here.alias, here)
            here = nics_of(document)[index]
        alias, document, said = _prepare_nic(document, here)
        done.append(alias)
        notes += said
    return Rewritten(_with_monitor(document, dial).source, tuple(done), tuple(notes))


def undo(xml: bytes, *, nic: str | None = None) -> Rewritten:
    """Make NICs again what they were before they were prepared; others stay as they are.

    What was changed since, other than the cable, stays: PCI addresses, the model, the boot order.

    :param nic: an alias or an address; ``None`` means all NICs of the domain.
    :raise CannotPrepare: the XML cannot be read, or two NICs have one alias.
    :raise UnknownNic: there is no such NIC.
    """
    document = Document(xml)
    if document.root.name != "domain":
        check_domain(document)
    check_aliases(document)
    _check_renamed(document)
    there = {each.alias: each for each in chosen(document, nic)}
    aliases = [a for a in records_of(document) if nic is None or a in there]
    for alias in aliases:
        now = next((each for each in nics_of(document) if each.alias == alias), None)
        document = _undo_nic(document, alias, now)
    if aliases and not records_of(document):
        document = _without_monitor(document)
    return Rewritten(document.source, tuple(aliases))


# --- one NIC --------------------------------------------------------------------------------------
def _prepare_nic(document: Document, nic: DomainNic) -> tuple[str, Document, list[str]]:
    check_nic(nic)
    check_clashes(document, nic)
    alias = nic.user_alias or new_alias(document, nic, records_of(document))
    args = _hub(alias, nic)
    check_ids(document, nic, alias, args)
    before = document.text(nic.element)
    put_aside = [_CABLE[e.name] for e in nic.element.children if _CABLE.get(e.name)]
    document = _rewire(document, nic, alias)
    document = add_record(document, alias, before)
    document = qemu_xml.add_arguments(document, args)
    document = qemu_xml.add_override(document, alias, "netdev", args[1].split(",")[1][3:])
    notes = [
        f"{nic.domain}/{alias}: its {what} belonged to its cable and is put aside; the network or "
        "port that it is plugged into says what holds"
        for what in dict.fromkeys(put_aside)
    ]
    return alias, document, notes


def _rewire(document: Document, nic: DomainNic, alias: str) -> Document:
    """Make the interface one whose tap carries nothing, with its link down."""
    device = _device_name(nic, alias)

    def here() -> Element:
        return nics_of(document)[nic.index].element

    document = document.set_attribute(here(), "type", "ethernet")
    document = document.drop_attribute(here(), "trustGuestRxFilters")
    gone = set(_CABLE)
    if nic.element.get("target", "dev") != device:
        gone.add("target")
    if nic.alias != alias:
        gone.add("alias")
    for child in reversed(here().children):
        if child.name in gone:
            document = document.remove(child)
    if (link := here().find("link")) is not None:
        document = document.set_attribute(link, "state", "down")
    for name, attribute, value in (
        ("target", "dev", device),
        ("link", "state", "down"),
        ("alias", "name", alias),
    ):
        if here().find(name) is None:
            document = document.append(here(), [(0, f"<{name} {attribute}={quoted(value)}/>")])
    return document


def _undo_nic(document: Document, alias: str, nic: DomainNic | None) -> Document:
    """Take back everything that `_prepare_nic` did.

    :param nic: as it is now; ``None`` if it was removed from the domain.
    """
    document = qemu_xml.drop_override(document, alias, "netdev")
    for kind in ("hub", "sink"):
        beginning = f"hubport,id=lm-{kind}-{alias},"
        document = qemu_xml.drop_arguments(document, "-netdev", beginning)
    if nic is not None:
        before = original(document, records_of(document)[alias])
        element = nics_of(document)[nic.index].element
        document = document.replace(element, _merged(before, document, element, str(nic)))
    return drop_record(document, alias)


def _merged(before: bytes, document: Document, element: Element, nic: str) -> bytes:
    """The interface as it was, with what was changed since and is not the cable's."""
    try:
        made = Document(before)
    except LinkmgrError as error:
        raise CannotPrepare(
            f"what the NIC was is recorded in <metadata>, but cannot be read: {error.what}",
            hint="mend <linkmgr:prepared> there, or write the <interface> anew and remove it",
        ).about(nic) from error
    if made.root.name != "interface":
        raise CannotPrepare(
            f"what is recorded in <metadata> is no interface but a {ascii(made.root.name)[:43]}",
            hint="mend <linkmgr:prepared> there, or write the <interface> anew and remove it",
        ).about(nic)
    names = dict.fromkeys(e.name for e in (*made.root.children, *element.children))
    for name in [name for name in names if name not in _OURS]:
        old = [e for e in made.root.children if e.name == name]
        new = [e for e in element.children if e.name == name]
        if [e.meaning() for e in old] == [e.meaning() for e in new]:
            continue
        for each in reversed(old):
            made = made.remove(each)
        for each in new:
            made = made.append(made.root, [(0, document.text(each).decode())])
    return made.source


def _is_complete(document: Document, nic: DomainNic) -> bool:
    """Whether all that makes a NIC a prepared one is there."""
    args = _hub(nic.alias, nic)
    there = qemu_xml.arguments(document)
    pairs = list(pairwise(there))
    return (
        nic.kind == "ethernet"
        and nic.element.get("target", "dev") == _device_name(nic, nic.alias)
        and all(pairs.count(pair) == 1 for pair in zip(args[::2], args[1::2], strict=True))
        and qemu_xml.override(document, nic.alias, "netdev") == args[1].split(",")[1][3:]
    )


def _check_renamed(document: Document) -> None:
    """Refuse a prepared NIC whose alias was changed: nothing of it would work, nor be undone."""
    nics = nics_of(document)
    for alias, record in records_of(document).items():
        if alias in {nic.alias for nic in nics}:
            continue
        try:
            mac = Document(original(document, record)).root.get("mac", "address").lower()
        except CannotPrepare:
            continue
        for nic in nics:
            if mac and nic.mac == mac and nic.alias not in records_of(document):
                raise CannotPrepare(
                    f"the NIC with the address {mac} was prepared as {alias}, and is called "
                    f"{nic.alias or 'nothing'} now",
                    hint=f"give it back its <alias name='{alias}'/>",
                ).about(str(nic))


def _hub(alias: str, nic: DomainNic) -> list[str]:
    """The arguments for hub and sink: those of `hub_args`, so that the service knows them."""
    try:
        return hub_args(alias, mac="52:54:00:00:00:00")[:4]
    except BadName as error:
        raise CannotPrepare(error.what, hint=error.hint or "give the NIC another alias").about(
            str(nic)
        ) from error


def _device_name(nic: DomainNic, alias: str) -> str:
    """The name of the host's device: the domain's own, else one that no other domain has."""
    target = nic.element.find("target")
    own = target.attributes.get("dev", "") if target else ""
    managed = target is None or target.attributes.get("managed", "yes") == "yes"
    given = _AUTOMATIC_DEVICE.fullmatch(own) or _OUR_DEVICE.fullmatch(own)  # not by a person
    if own and managed and not given:
        return own
    # A copy of the domain under another name gets another one when it is prepared again. Not from
    # the uuid, which XML that is written by hand most often lacks.
    digest = hashlib.sha256(f"{nic.domain}/{alias}".encode()).hexdigest()
    return f"lmn{digest[:10]}"


# --- the monitor ----------------------------------------------------------------------------------
def _dialled(path: Path) -> str:
    text = str(path)
    if not path.is_absolute() or len(text.encode()) > _PATH_MAX or not text.isprintable():
        raise BadOption(
            f"{ascii(text)[:43]} cannot be the socket that QEMU dials",
            hint=f"give an absolute path of at most {_PATH_MAX} bytes",
        )
    return f"{_CHARDEV}{text.replace(',', ',,')}{_BEHIND_PATH}"


def _with_monitor(document: Document, dial: str | None) -> Document:
    pairs = list(pairwise(["", *qemu_xml.arguments(document)]))
    dials = [
        (word, value)
        for word, value in pairs
        if value.startswith(_CHARDEV) or (word == "-chardev" and _is_our_chardev(value))
    ]
    mons = [value for word, value in pairs if word == "-mon" and _is_our_mon(value)]
    wanted = dial or _dialled_now([value for _, value in dials])
    as_wanted = {wanted}
    if dial is None:
        as_wanted.add(wanted.removesuffix(_BEHIND_PATH) + _BEHIND_PATH_MS)
    if mons == [_MON] and dials in [[("-chardev", each)] for each in as_wanted]:
        return document
    document = _without_monitor(document)
    return qemu_xml.add_arguments(document, ["-chardev", wanted, "-mon", _MON])


def _dialled_now(there: Sequence[str]) -> str:
    """The chardev as it should be, with the path of one that is there."""
    for value in there:
        path = qemu_xml.options(value, implied="backend").get("path", "")
        with contextlib.suppress(BadOption):
            return _dialled(Path(path))
    return _dialled(MONITOR)


def _is_our_chardev(value: str) -> bool:
    return qemu_xml.options(value, implied="backend").get("id") == MONITOR_ID


def _is_our_mon(value: str) -> bool:
    return qemu_xml.options(value, implied="chardev").get("chardev") == MONITOR_ID


def _without_monitor(document: Document) -> Document:
    document = qemu_xml.drop_arguments(document, "-mon", _MON, _is_our_mon)
    return qemu_xml.drop_arguments(document, "-chardev", _CHARDEV, _is_our_chardev)
