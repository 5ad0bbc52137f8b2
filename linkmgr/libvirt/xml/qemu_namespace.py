"""``qemu:commandline`` and ``qemu:override``: what libvirt hands to QEMU without looking at it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from linkmgr.libvirt.xml.document import QEMU, Document, Edit, Element, Lines, quoted

ARG, DEVICE = f"{{{QEMU}}}arg", f"{{{QEMU}}}device"
_COMMANDLINE, _OVERRIDE = f"{{{QEMU}}}commandline", f"{{{QEMU}}}override"
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


@dataclass(frozen=True)
class ArgumentRemoval:
    """Removal of pairs of arguments: a word, and such a value.

    What is left of a pair that was damaged goes too: such a value without its word, and a word that
    another option or nothing follows, which QEMU would refuse.

    :param surely: which values go, wherever they stand.
    :param ours: of which other values behind the word the pair goes.
    """

    word: str
    surely: Callable[[str], bool]
    ours: Callable[[str], bool] = lambda _: False

    def left_of(self, args: Sequence[Element]) -> list[Element]:
        """What stays of arguments."""
        values = [arg.attributes.get("value", "") for arg in args]
        gone = set()
        for number, value in enumerate(values):
            behind = values[number + 1] if number + 1 < len(values) else "-"
            follows = behind.startswith("-") or self.surely(behind)
            if self.surely(value) or (value == self.word and follows):
                gone.add(number)
            elif value == self.word and self.ours(behind):
                gone |= {number, number + 1}
        return [arg for number, arg in enumerate(args) if number not in gone]


def removals(
    document: Document, pairs: Iterable[ArgumentRemoval], overrides: Collection[tuple[str, str]]
) -> list[Edit]:
    """Remove arguments, each kind from what the one before has left, and overrides.

    What is empty then goes too.

    :param overrides: each by the device's alias and the property's name.
    """
    args = left = _args(document)
    for each in pairs:
        left = each.left_of(left)
    gone = set(args).difference(left)
    wanted = set(overrides)
    for key, found in _properties(document).items():
        gone.update(found if key in wanted else ())
    aliases = {alias for alias, _ in wanted}
    for alias, device in _devices(document):
        if alias in aliases:
            _take_emptied([each for each in device.children if each.name == FRONTEND], gone)
            _take_emptied([device], gone)
    there = [each for each in document.root.children if each.name in (_COMMANDLINE, _OVERRIDE)]
    return [edit for each in there for edit in document.pruning(each, gone)]


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
    """All that is overridden: the value of each alias and property, which is the last one."""
    return {
        key: found[-1].attributes.get("value", "") for key, found in _properties(document).items()
    }


def overridden(document: Document) -> list[str]:
    """The aliases of the devices that something is overridden of."""
    return [alias for alias, _ in _devices(document)]


def add_overrides(document: Document, values: Mapping[tuple[str, str], str]) -> Document:
    """Override text properties of devices, each by its alias and its name."""
    devices, edits, trees = dict(reversed(_devices(document))), [], list[_Tree]()
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
    """Each ``<arg>``; libvirt reads several ``<commandline>`` as one, and ``<override>`` too."""
    return [each for each in _children(document, _COMMANDLINE) if each.name == ARG]


def _children(document: Document, name: str) -> list[Element]:
    there = [each for each in document.root.children if each.name == name]
    return [child for each in there for child in each.children]


def _devices(document: Document) -> list[tuple[str, Element]]:
    """Each ``<device>``, with its alias."""
    found = [each for each in _children(document, _OVERRIDE) if each.name == DEVICE]
    return [(each.attributes.get("alias", ""), each) for each in found]


def _properties(document: Document) -> dict[tuple[str, str], list[Element]]:
    """Each ``<property>`` of an alias and name, in the order in which libvirt obeys them."""
    found: dict[tuple[str, str], list[Element]] = {}
    for alias, device in _devices(document):
        for frontend in [each for each in device.children if each.name == FRONTEND]:
            for each in [each for each in frontend.children if each.name == PROPERTY]:
                found.setdefault((alias, each.attributes.get("name", "")), []).append(each)
    return found


def _take_emptied(elements: Iterable[Element], gone: set[Element]) -> None:
    """Have those go, too, of which all children do."""
    gone.update(each for each in elements if gone.issuperset(each.children))
