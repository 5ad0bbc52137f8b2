"""Rewrite a domain's XML so that its NICs boot on hubs, without a cable; and back.

The way is that of docs/libvirt.md: libvirt keeps the NIC (address, model, PCI slot, alias) and
makes a stray tap for it, which carries nothing; ``qemu:override`` wires the NIC to a hub instead,
``qemu:commandline`` makes the hub and its sink, and a monitor dials the service
(`linkmgr.libvirt.xml.monitor`).

These functions work on text alone. They never talk to libvirt. All NICs are rewritten in one go,
since reading a document anew takes as long as the document is: the time grows with the number of
NICs, not with its square.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from linkmgr.errors import BadName, CannotPrepare
from linkmgr.libvirt.prepare.interface import (
    CABLE_ELEMENTS,
    device_name,
    hub_interface,
    restored_interface,
)
from linkmgr.libvirt.prepare.preconditions import (
    UsedIds,
    check_aliases,
    check_clashes,
    check_domain,
    check_nic,
    check_once,
)
from linkmgr.libvirt.prepare.undo_checks import check_original, restored_note
from linkmgr.libvirt.xml import monitor as monitor_xml
from linkmgr.libvirt.xml import qemu_namespace
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.interfaces import (
    DomainNic,
    aliases_of,
    domain_name,
    new_alias,
    nics_of,
    select_nics,
)
from linkmgr.libvirt.xml.prepared_element import (
    add_originals,
    original_interface,
    prepared_nics_of,
    removals,
)
from linkmgr.text.untrusted import printable
from linkmgr.wirings.hub.qemu_args import hub_args


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


def prepare(
    xml: bytes,
    *,
    nic: str | None = None,
    monitor: str | Path | None = None,
    models: Collection[str] | None = None,
) -> Rewritten:
    """Make NICs boot on hubs. What is prepared already stays as it is, what is damaged is mended.

    A monitor as it was once written (`monitor_xml.MonitorForm.COMMANDLINE`) is written anew.

    :param nic: an alias or an address; ``None`` means all NICs of the domain.
    :param monitor: the socket that QEMU dials; by default the one that is there, if it can be one,
        else `monitor_xml.MONITOR_SOCKET`.
    :param models: of the security drivers of the domain's host; ``None`` if that is not known.
    :raise CannotPrepare: the domain or the NIC cannot be prepared; says what to do.
    :raise UnknownNic: there is no such NIC.
    :raise BadOption: the socket's path cannot be one.
    """
    document = Document(xml)
    check_domain(document)
    _check_names(document)
    return _prepared(document, [each.index for each in select_nics(document, nic)], monitor, models)


def refresh(
    xml: bytes, *, monitor: str | Path | None = None, models: Collection[str] | None = None
) -> Rewritten:
    """Prepare anew what was prepared before, by an older linkmgr say, and nothing else.

    Parameters and errors are those of `prepare`. A domain that is not prepared has no monitor then.
    """
    document = Document(xml)
    prepared = prepared_nics_of(document)
    there = [each.index for each in nics_of(document) if each.alias in prepared]
    if not there:  # a monitor that was left behind is of no use, and may be of harm
        if monitor_xml.has_remains(document):
            document = monitor_xml.remove(document)
        return Rewritten(document.source, ())
    check_domain(document)
    _check_names(document)
    return _prepared(document, there, monitor, models)


def undo(xml: bytes, *, nic: str | None = None, trust_metadata: bool = False) -> Rewritten:
    """Make NICs again what they were before they were prepared; others stay as they are.

    What was changed since, other than the cable, stays: PCI addresses, the model, the boot order.

    :param nic: an alias or an address; ``None`` means all NICs of the domain.
    :param trust_metadata: whether scripts and files that an original interface in ``<metadata>``
        names are written too: libvirt runs and opens them as root.
    :raise CannotPrepare: the XML cannot be read, two NICs have one alias, or an original says
        what no NIC was, or needs `trust_metadata`.
    :raise UnknownNic: there is no such NIC.
    """
    document = Document(xml)
    if document.root.name != "domain":
        check_domain(document)
    _check_names(document)
    there = {each.alias: each for each in select_nics(document, nic)}
    prepared = prepared_nics_of(document)
    aliases = [a for a in prepared if nic is None or a in there]
    notes = []
    for alias in [each for each in aliases if each in there]:
        original = check_original(
            original_interface(document, prepared[alias]),
            there[alias],
            trust_metadata=trust_metadata,
        )
        notes.append(restored_note(there[alias], original))
    if aliases:
        monitor_xml.check_own_chardev(document, prepared=True)
    document = _undone(document, aliases, monitor=prepared.keys() == set(aliases))
    return Rewritten(document.source, tuple(aliases), tuple(notes))


# --- all NICs at once -----------------------------------------------------------------------------
def _prepared(
    document: Document,
    indices: Sequence[int],
    monitor: str | Path | None,
    models: Collection[str] | None,
) -> Rewritten:
    before, prepared = _Wiring(document), prepared_nics_of(document)
    monitor_xml.check_own_chardev(document, prepared=bool(prepared))
    nics = nics_of(document)
    done = {i for i in indices if nics[i].alias in prepared and before.is_complete(nics[i])}
    document = _undone(
        document, [nics[i].alias for i in indices if nics[i].alias in prepared and i not in done]
    )
    nics, used_ids = nics_of(document), UsedIds(document)
    used = aliases_of(document) | prepared_nics_of(document).keys()
    edits, interfaces, arguments, overrides, notes = [], dict[str, bytes](), list[str](), {}, []
    for nic in [nics[index] for index in indices if index not in done]:
        check_nic(nic)
        check_clashes(document, nic)
        alias = nic.user_alias or new_alias(nic, used)
        used.add(alias)
        args = _hub(alias, nic)
        used_ids.reserve(nic, alias, args)
        arguments += args
        overrides[alias, "netdev"] = _hub_port(args)
        interfaces[alias] = document.text(nic.element)
        edits.append(document.replacement(nic.element, hub_interface(document, nic, alias)))
        notes += _put_aside(nic, alias)
    document = add_originals(document.edited(*edits), interfaces)
    document = qemu_namespace.add_arguments(document, arguments)
    document = qemu_namespace.add_overrides(document, overrides)
    path = None if monitor is None else Path(monitor)
    if monitor_xml.find_monitor(document).form is monitor_xml.MonitorForm.OPEN:
        notes.append(
            f"{domain_name(document)}: its channel 'linkmgr' had no qemu:override, so the guest "
            "could have spoken to the service as its QEMU; it has one again"
        )
    document = monitor_xml.write(document, path, models)
    if leak := monitor_xml.find_leak(document):
        raise CannotPrepare(
            f"the guest could speak to the service as its QEMU, through {leak.what}", hint=leak.hint
        ).about(domain_name(document))
    return Rewritten(document.source, tuple(interfaces), tuple(notes))


def _undone(document: Document, aliases: Sequence[str], *, monitor: bool = False) -> Document:
    """Take back everything that was done to NICs, also to those that were removed since.

    All in one go: in between the document would be longer than before and after, maybe too long.

    :param monitor: whether the monitor goes, too.
    """
    if not aliases:
        return document
    ids = {f"id=lm-{kind}-{alias}" for kind in ("hub", "sink") for alias in aliases}

    def is_hubs(value: str) -> bool:
        return value.startswith("hubport,id=lm-") and value.split(",", 2)[1] in ids

    pairs = [qemu_namespace.ArgumentRemoval("-netdev", is_hubs)]
    wired = [(alias, "netdev") for alias in aliases]
    edits = removals(document, aliases)
    if monitor:
        pairs += monitor_xml.ARGUMENT_REMOVALS
        wired.append(monitor_xml.OVERRIDE)
        edits += monitor_xml.removals(document)
    edits += qemu_namespace.removals(document, pairs, wired)
    prepared = prepared_nics_of(document)
    for nic in nics_of(document):
        if nic.alias in aliases:
            before = original_interface(document, prepared[nic.alias])
            edits.append(
                document.replacement(nic.element, restored_interface(document, nic, before))
            )
    return document.edited(*edits)


class _Wiring:
    """What qemu:commandline and qemu:override say, to be looked up for each NIC."""

    def __init__(self, document: Document) -> None:
        self._pairs = Counter(pairwise(qemu_namespace.arguments(document)))
        self._overrides = qemu_namespace.overrides(document)

    def is_complete(self, nic: DomainNic) -> bool:
        """Whether all that makes a NIC a prepared one is there."""
        args = _hub(nic.alias, nic)
        return (
            nic.kind == "ethernet"
            and nic.element.get("target", "dev") == device_name(nic, nic.alias)
            and all(self._pairs[pair] == 1 for pair in zip(args[::2], args[1::2], strict=True))
            and self._overrides.get((nic.alias, "netdev")) == _hub_port(args)
        )


def _hub(alias: str, nic: DomainNic) -> list[str]:
    """The arguments for hub and sink: those of `hub_args`, so that the service knows them."""
    try:
        return hub_args(alias, mac="52:54:00:00:00:00")[:4]
    except BadName as error:
        raise CannotPrepare(error.what, hint=error.hint or "give the NIC another alias").about(
            str(nic)
        ) from error


def _hub_port(args: Sequence[str]) -> str:
    """The id of the hub port that the NIC is wired to."""
    return args[1].split(",")[1].removeprefix("id=")


def _put_aside(nic: DomainNic, alias: str) -> list[str]:
    said = dict.fromkeys(
        CABLE_ELEMENTS[e.name] for e in nic.element.children if CABLE_ELEMENTS.get(e.name)
    )
    return [
        f"{nic.domain}/{alias}: its {what} belonged to its cable and is put aside; the network or "
        "port that it is plugged into says what holds"
        for what in said
    ]


def _check_names(document: Document) -> None:
    """Refuse what is called as something else is, or not as it was."""
    check_once(document)
    check_aliases(document)
    monitor_xml.check_channel_free(document)
    _check_renamed(document)


def _check_renamed(document: Document) -> None:
    """Refuse a prepared NIC whose alias was changed: nothing of it would work, nor be undone."""
    nics, prepared = nics_of(document), prepared_nics_of(document)
    there = {nic.alias for nic in nics}
    strange = {nic.mac: nic for nic in reversed(nics) if nic.mac and nic.alias not in prepared}
    for alias in [each for each in prepared if each not in there]:
        try:
            mac = (
                Document(original_interface(document, prepared[alias]))
                .root.get("mac", "address")
                .lower()
            )
        except CannotPrepare:
            continue
        if nic := strange.get(mac):
            raise CannotPrepare(
                f"the NIC with the address {mac} was prepared as {printable(alias)}, and is called "
                f"{printable(nic.alias) or 'nothing'} now",
                hint=f"give it back its <alias name='{printable(alias)}'/>",
            ).about(str(nic))
