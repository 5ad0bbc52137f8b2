"""The glossary lists every public class, and no class that does not exist.

Public is a class without a leading underscore that ``linkmgr.__all__`` names, or that a module in
another room than its own imports; a room is a folder of the package, or the words beside them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import linkmgr

PACKAGE = Path(linkmgr.__file__).parent
GLOSSARY = Path(__file__).parents[2] / "docs/words.md"

MODULES = {
    ".".join(("linkmgr", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): (path.relative_to(PACKAGE).parts[:-1][:1], ast.parse(path.read_text()))
    for path in PACKAGE.rglob("*.py")
}
CLASSES = {
    (module, node.name)
    for module, (_, tree) in MODULES.items()
    for node in tree.body
    if isinstance(node, ast.ClassDef)
}


def imported(module: str) -> Iterator[tuple[str, str]]:
    """What a module imports by name: from which module, and the name."""
    for node in ast.walk(MODULES[module][1]):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, each.name) for each in node.names)


def definition(module: str, name: str) -> tuple[str, str] | None:
    """Where a class is defined that a module has; a package may have it from one of its modules."""
    if (module, name) in CLASSES or module not in MODULES:
        return (module, name) if module in MODULES else None
    origins = [each for each, what in imported(module) if what == name and each != module]
    return definition(origins[0], name) if origins else None


def public_classes() -> set[str]:
    found = {name for name in linkmgr.__all__ if isinstance(getattr(linkmgr, name), type)}
    for module, (room, _) in MODULES.items():
        for origin, name in imported(module):
            home = definition(origin, name)
            if home and not name.startswith("_") and MODULES[home[0]][0] != room:
                found.add(name)
    return found


def listed() -> list[str]:
    _, classes = GLOSSARY.read_text().split("\n## Classes\n")
    return re.findall(r"^\| `(\w+)` \| .", classes, re.MULTILINE)


def test_every_public_class_is_in_the_glossary_once() -> None:
    assert public_classes() - set(listed()) == set()
    assert len(listed()) == len(set(listed()))


def test_every_class_in_the_glossary_exists() -> None:
    assert set(listed()) - {name for _, name in CLASSES} == set()
