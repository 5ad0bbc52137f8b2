"""``qemu:commandline`` and ``qemu:override``: what libvirt hands to QEMU without looking at it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

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
    document: Document,
    word: str,
    surely: Callable[[str], bool],
    ours: Callable[[str], bool] = lambda _: False,
) -> Document:
    """Remove each pair of `word` and such a value, then the element if it is empty.

    What is left of a pair that was damaged goes too: such a value without its word, and a `word`
    that another option or nothing follows, which QEMU would refuse.

    :param surely: which values go, wherever they stand.
    :param ours: of which other values behind `word` the pair goes.
    """
    args = _args(document)
    values = [arg.attributes.get("value", "") for arg in args]
    gone = set()
    for number, value in enumerate(values):
        behind = values[number + 1] if number + 1 < len(values) else "-"
        if surely(value) or (value == word and (behind.startswith("-") or surely(behind))):
            gone.add(number)
        elif value == word and ours(behind):
            gone |= {number, number + 1}
    document = document.edited(*(document.removal(args[number]) for number in sorted(gone)))
    return _tidy(document, "commandline")


def change_arguments(document: Document, change: Callable[[str], str]) -> Document:
    """Write arguments anew where `change` makes another one of them."""
    edits = []
    for arg in _args(document):
        value = arg.attributes.get("value", "")
        if (new := change(value)) != value:
            text = f"<{arg.prefix}arg value={quoted(new)}/>"
            edits.append(document.replacement(arg, text.encode()))
    return document.edited(*edits)


def override(document: Document, alias: str, name: str) -> str | None:
    """The value that a property of a device is overridden with."""
    return overrides(document).get((alias, name))


def overrides(document: Document) -> dict[tuple[str, str], str]:
    """All that is overridden: the value of each alias and property."""
    found: dict[tuple[str, str], str] = {}
    for (alias, name), each in _properties(document).items():
        found[alias, name] = each.attributes.get("value", "")
    return found


def overridden(document: Document) -> list[str]:
    """The aliases of the devices that something is overridden of."""
    element = document.root.find(f"{{{QEMU}}}override")
    found = element.children if element else []
    return [each.attributes.get("alias", "") for each in found if each.name == DEVICE]


def add_overrides(document: Document, values: Mapping[tuple[str, str], str]) -> Document:
    """Override text properties of devices, each by its alias and its name."""
    devices, edits, trees = _devices(document), [], list[_Tree]()
    for (alias, name), value in values.items():
        made: _Tree = (f"property name={quoted(name)} type='string' value={quoted(value)}", [])
        device = devices.get(alias)
        frontend = device.find(FRONTEND) if device else None
        if device is None:
            trees.append((f"device alias={quoted(alias)}", [("frontend", [made])]))
        elif frontend is None:
            lines = _written(device.prefix, [("frontend", [made])])
            edits.append(document.addition(device, lines))
        else:
            edits.append(document.addition(frontend, _written(frontend.prefix, [made])))
    document = document.edited(*edits)
    return _add(document, "override", trees) if trees else document


def drop_overrides(document: Document, which: Collection[tuple[str, str]]) -> Document:
    """Let properties be what libvirt makes them, and remove the elements that are empty then.

    :param which: each by the device's alias and its name.
    """
    found = _properties(document)
    gone = [found[each] for each in which if each in found]
    if not gone:
        return document
    aliases = {alias for alias, _ in which}
    document = document.edited(*(document.removal(each) for each in gone))
    devices = [each for alias, each in _devices(document).items() if alias in aliases]
    frontends = [there for each in devices if (there := each.find(FRONTEND))]
    empty = [document.removal(each) for each in frontends if not each.children]
    document = document.edited(*empty)
    devices = [each for alias, each in _devices(document).items() if alias in aliases]
    empty = [document.removal(each) for each in devices if not each.children]
    return _tidy(document.edited(*empty), "override")


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


def _devices(document: Document) -> dict[str, Element]:
    """The first ``<device>`` of each alias."""
    element = document.root.find(f"{{{QEMU}}}override")
    found: dict[str, Element] = {}
    for each in element.children if element else []:
        if each.name == DEVICE:
            found.setdefault(each.attributes.get("alias", ""), each)
    return found


def _properties(document: Document) -> dict[tuple[str, str], Element]:
    """The first ``<property>`` of each alias and name."""
    found: dict[tuple[str, str], Element] = {}
    for alias, device in _devices(document).items():
        frontend = device.find(FRONTEND)
        for each in frontend.children if frontend else []:
            if each.name == PROPERTY:
                found.setdefault((alias, each.attributes.get("name", "")), each)
    return found


def _tidy(document: Document, name: str) -> Document:
    element = document.root.find(f"{{{QEMU}}}{name}")
    if element and not document.source[element.inner : element.outer].strip():
        return document.remove(element)
    return document
