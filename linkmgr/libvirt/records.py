"""What a NIC was before it was prepared, kept in the domain's ``<metadata>``.

The element has a namespace of its own, for libvirt keeps one element of each namespace, and
``virsh metadata --set`` replaces that one. The interface is kept as text, so that it comes back as
it was written; libvirt carries text through, whatever it does to the rest.
"""

from __future__ import annotations

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


def add_record(document: Document, alias: str, interface: bytes) -> Document:
    """Record what a NIC is before it is changed."""
    element = _element(document)
    if element is not None:
        name = f"{element.prefix}nic"
        return document.append(element, [(0, _record(name, alias, interface))])
    lines = [
        (0, f"<linkmgr:prepared xmlns:linkmgr={quoted(PREPARED)}>"),
        (1, _record("linkmgr:nic", alias, interface)),
        (0, "</linkmgr:prepared>"),
    ]
    metadata = document.root.find("metadata")
    if metadata is not None:
        return document.append(metadata, lines)
    lines = [(0, "<metadata>"), *((depth + 1, text) for depth, text in lines), (0, "</metadata>")]
    head = [child for child in document.root.children if child.name in _HEAD]
    return document.insert_after(head[-1], lines)


def drop_record(document: Document, alias: str) -> Document:
    """Forget what a NIC was, and the element around it when it was the last."""
    document = document.remove(records_of(document)[alias])
    if records_of(document):
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
