"""What a NIC was before it was prepared, kept in the domain's ``<metadata>``.

The element has a namespace of its own, for libvirt keeps one element of each namespace, and
``virsh metadata --set`` replaces that one. The interface is kept as text, so that it comes back as
it was written; libvirt carries text through, whatever it does to the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from linkmgr.libvirt.domain_xml import Document, Element, cdata, quoted

PREPARED = "urn:linkmgr:prepared"  #: namespace of the records

_HEAD = ("name", "uuid", "hwuuid", "genid", "title", "description")


def records_of(document: Document) -> dict[str, Element]:
    """What is recorded: the record of each alias."""
    element = _element(document)
    found = element.children if element else []
    return {e.attributes.get("alias", ""): e for e in found if e.name == f"{{{PREPARED}}}nic"}


def original(document: Document, record: Element) -> bytes:
    """The interface as it was, in the document's own kind of line ends."""
    return record.text.encode().replace(b"\n", document.newline)


def add_records(document: Document, interfaces: Mapping[str, bytes]) -> Document:
    """Record what NICs are before they are changed, each by its alias."""
    if not interfaces:
        return document
    element = _element(document)
    prefix = "linkmgr:" if element is None else element.prefix
    made = [_record(f"{prefix}nic", alias, text) for alias, text in interfaces.items()]
    if element is not None:
        return document.append(element, [(0, each) for each in made])
    lines = [
        (0, f"<linkmgr:prepared xmlns:linkmgr={quoted(PREPARED)}>"),
        *((1, each) for each in made),
        (0, "</linkmgr:prepared>"),
    ]
    metadata = document.root.find("metadata")
    if metadata is not None:
        return document.append(metadata, lines)
    lines = [(0, "<metadata>"), *((depth + 1, text) for depth, text in lines), (0, "</metadata>")]
    head = [child for child in document.root.children if child.name in _HEAD]
    return document.insert_after(head[-1], lines)


def drop_records(document: Document, aliases: Collection[str]) -> Document:
    """Forget what NICs were, and the element around it when they were all."""
    there = records_of(document)
    document = document.edited(*(document.removal(there[alias]) for alias in aliases))
    if not aliases or records_of(document):
        return document
    element = _element(document)
    assert element is not None
    document = document.remove(element)
    metadata = document.root.find("metadata")
    if metadata and not document.source[metadata.inner : metadata.outer].strip():
        document = document.remove(metadata)
    return document


def _element(document: Document) -> Element | None:
    metadata = document.root.find("metadata")
    return metadata.find(f"{{{PREPARED}}}prepared") if metadata else None


def _record(name: str, alias: str, interface: bytes) -> str:
    return f"<{name} alias={quoted(alias)}>{cdata(interface.decode())}</{name}>"
