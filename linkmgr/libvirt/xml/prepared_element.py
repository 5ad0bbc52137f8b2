"""The ``<prepared>`` element: the original interface of each prepared NIC, in ``<metadata>``.

The element has a namespace of its own, for libvirt keeps one element of each namespace, and
``virsh metadata --set`` replaces that one. The interface is kept as text, so that it comes back as
it was written; libvirt carries text through, whatever it does to the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from linkmgr.libvirt.xml.document import Document, Edit, Element, cdata, character_data, quoted

PREPARED_NAMESPACE = "urn:linkmgr:prepared"  #: namespace of the element

_LINES = "lines"  # of an interface whose lines end in different ways

_HEAD = ("name", "uuid", "hwuuid", "genid", "title", "description")


def prepared_nics_of(document: Document) -> dict[str, Element]:
    """The ``<nic>`` of each prepared NIC, by its alias."""
    return {each.attributes.get("alias", ""): each for each in _prepared_nics(document)}


def prepared_aliases(document: Document) -> list[str]:
    """The aliases of the prepared NICs, each as often as it is there."""
    return [each.attributes.get("alias", "") for each in _prepared_nics(document)]


def original_interface(document: Document, element: Element) -> bytes:
    """The original interface, in the document's own kind of line ends."""
    text = element.text.encode()
    return text if _LINES in element.attributes else text.replace(b"\n", document.newline)


def add_originals(document: Document, interfaces: Mapping[str, bytes]) -> Document:
    """Keep the interfaces of NICs as they are before they are changed, each by its alias."""
    if not interfaces:
        return document
    element = _prepared_element(document)
    prefix = "linkmgr:" if element is None else element.prefix
    newline = document.newline
    made = [
        _original_element(f"{prefix}nic", alias, text, newline)
        for alias, text in interfaces.items()
    ]
    if element is not None:
        return document.append(element, [(0, each) for each in made])
    lines = [
        (0, f"<linkmgr:prepared xmlns:linkmgr={quoted(PREPARED_NAMESPACE)}>"),
        *((1, each) for each in made),
        (0, "</linkmgr:prepared>"),
    ]
    metadata = document.root.find("metadata")
    if metadata is not None:
        return document.append(metadata, lines)
    lines = [(0, "<metadata>"), *((depth + 1, text) for depth, text in lines), (0, "</metadata>")]
    head = [child for child in document.root.children if child.name in _HEAD]
    return document.insert_after(head[-1], lines)


def removals(document: Document, aliases: Collection[str]) -> list[Edit]:
    """Remove the originals of NICs, and the elements around them that are empty then."""
    there = prepared_nics_of(document)
    gone = {there[alias] for alias in aliases}
    metadata, element = document.root.find("metadata"), _prepared_element(document)
    if gone and metadata and element and gone.issuperset(there.values()):
        gone = {element}
    return document.pruning(metadata, gone) if gone and metadata else []


def _prepared_nics(document: Document) -> list[Element]:
    element = _prepared_element(document)
    return (
        [e for e in element.children if e.name == f"{{{PREPARED_NAMESPACE}}}nic"] if element else []
    )


def _prepared_element(document: Document) -> Element | None:
    metadata = document.root.find("metadata")
    return metadata.find(f"{{{PREPARED_NAMESPACE}}}prepared") if metadata else None


def _original_element(name: str, alias: str, interface: bytes, newline: bytes) -> str:
    as_read = interface.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # as XML wants it
    if as_read.replace(b"\n", newline) == interface:
        return f"<{name} alias={quoted(alias)}>{cdata(interface.decode())}</{name}>"
    text = character_data(interface.decode())
    return f"<{name} alias={quoted(alias)} {_LINES}='as written'>{text}</{name}>"
