"""``qemu:commandline`` and ``qemu:override``: what libvirt hands to QEMU without looking at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from linkmgr.libvirt.domain_xml import QEMU, Document, Element, Lines, quoted

ARG, DEVICE = f"{{{QEMU}}}arg", f"{{{QEMU}}}device"
FRONTEND, PROPERTY = f"{{{QEMU}}}frontend", f"{{{QEMU}}}property"


def arguments(document: Document) -> list[str]:
    """All arguments for QEMU, in order."""
    return [arg.attributes.get("value", "") for arg in _args(document)]


def add_arguments(document: Document, values: Sequence[str]) -> Document:
    """Add arguments behind those that are there."""
    args = [f"arg value={quoted(value)}" for value in values]
    return _add(document, "commandline", [(arg, []) for arg in args])


def options(value: str, *, implied: str) -> dict[str, str]:
    """Read a value as QEMU does: ``KEY=VALUE`` between commas, a comma in a value being doubled.

    :param implied: the key of the first one, which may stand there without it.
    """
    found: dict[str, str] = {}
    for number, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, text = part.replace("\0", ",").partition("=")
        if not equals:
            key, text = (implied, key) if number == 0 else (key, "on")
        found[key] = text
    return found


def drop_arguments(
    document: Document, word: str, beginning: str, ours: Callable[[str], bool] = lambda _: False
) -> Document:
    """Remove each pair of `word` and a value that begins so, then the element if it is empty.

    What is left of a pair that was damaged goes too: such a value without its word, and a `word`
    that another option or nothing follows, which QEMU would refuse.

    :param ours: of which other values behind `word` the pair goes too.
    """
    args = _args(document)
    values = [arg.attributes.get("value", "") for arg in args]
    gone = set()
    for number, value in enumerate(values):
        behind = values[number + 1] if number + 1 < len(values) else "-"
        if value.startswith(beginning) or (value == word and behind.startswith((beginning, "-"))):
            gone.add(number)
        elif value == word and ours(behind):
            gone |= {number, number + 1}
    for number in sorted(gone, reverse=True):
        document = document.remove(args[number])
    return _tidy(document, "commandline")


def override(document: Document, alias: str, name: str) -> str | None:
    """The value that a property of a device is overridden with."""
    found = _property(document, alias, name)
    return found.attributes.get("value", "") if found else None


def overridden(document: Document) -> list[str]:
    """The aliases of the devices that something is overridden of."""
    element = document.root.find(f"{{{QEMU}}}override")
    found = element.children if element else []
    return [each.attributes.get("alias", "") for each in found if each.name == DEVICE]


def add_override(document: Document, alias: str, name: str, value: str) -> Document:
    """Override a text property of a device."""
    attributes = f"name={quoted(name)} type='string' value={quoted(value)}"
    made: _Tree = (f"property {attributes}", [])
    device = _device(document, alias)
    if device is None:
        frontend: _Tree = ("frontend", [made])
        return _add(document, "override", [(f"device alias={quoted(alias)}", [frontend])])
    frontend_there = device.find(FRONTEND)
    if frontend_there is None:
        return document.append(device, _written(device.prefix, [("frontend", [made])]))
    return document.append(frontend_there, _written(frontend_there.prefix, [made]))


def drop_override(document: Document, alias: str, name: str) -> Document:
    """Let a property be what libvirt makes it, and remove the elements that are empty then."""
    found = _property(document, alias, name)
    if found is None:
        return document
    document = document.remove(found)
    device = _device(document, alias)
    assert device is not None
    frontend = device.find(FRONTEND)
    if frontend is not None and not frontend.children:
        document = document.remove(frontend)
        device = _device(document, alias)
        assert device is not None
    if not device.children:
        document = document.remove(device)
    return _tidy(document, "override")


_Tree = tuple[str, "list[_Tree]"]


def _add(document: Document, name: str, trees: list[_Tree]) -> Document:
    element = document.root.find(f"{{{QEMU}}}{name}")
    if element is not None:
        return document.append(element, _written(element.prefix, trees))
    prefix, declared = document.prefixes.get(QEMU), ""
    if prefix is None:
        prefix, declared = "qemu:", f" xmlns:qemu={quoted(QEMU)}"
    lines = _written(prefix, [(f"{name}{declared}", trees)])
    return document.append(document.root, lines)


def _written(prefix: str, trees: list[_Tree], depth: int = 0) -> Lines:
    lines: list[tuple[int, str]] = []
    for tag, below in trees:
        if not below:
            lines.append((depth, f"<{prefix}{tag}/>"))
            continue
        lines.append((depth, f"<{prefix}{tag}>"))
        lines += _written(prefix, below, depth + 1)
        lines.append((depth, f"</{prefix}{tag.split()[0]}>"))
    return lines


def _args(document: Document) -> list[Element]:
    element = document.root.find(f"{{{QEMU}}}commandline")
    return [each for each in element.children if each.name == ARG] if element else []


def _device(document: Document, alias: str) -> Element | None:
    element = document.root.find(f"{{{QEMU}}}override")
    for each in element.children if element else []:
        if each.name == DEVICE and each.attributes.get("alias") == alias:
            return each
    return None


def _property(document: Document, alias: str, name: str) -> Element | None:
    device = _device(document, alias)
    frontend = device.find(FRONTEND) if device else None
    for each in frontend.children if frontend else []:
        if each.name == PROPERTY and each.attributes.get("name") == name:
            return each
    return None


def _tidy(document: Document, name: str) -> Document:
    element = document.root.find(f"{{{QEMU}}}{name}")
    if element and not document.source[element.inner : element.outer].strip():
        return document.remove(element)
    return document
