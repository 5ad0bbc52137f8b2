"""The import graph of linkmgr by rooms: its folders and root modules, on floors.

A floor is a layer of the first contract of type ``layers`` in pyproject.toml.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import grimp


@dataclass(frozen=True)
class Arrow:
    """The imports from one room to another.

    :param modules: how many modules of the first room import from the second.
    """

    source: str
    target: str
    modules: int


@dataclass(frozen=True)
class House:
    """The rooms of a package, the arrows between them, and the modules inside.

    :param floors: the rooms of each layer, the top layer first; a layer without a room is left out.
    :param outside: the rooms that stand in no layer.
    :param imports: between modules, also within a room.
    """

    floors: tuple[tuple[str, ...], ...]
    outside: tuple[str, ...]
    arrows: tuple[Arrow, ...]
    modules: int
    imports: int

    @property
    def rooms(self) -> tuple[str, ...]:
        """All rooms, from top to bottom."""
        return (*(room for floor in self.floors for room in floor), *self.outside)

    def is_wrong(self, arrow: Arrow) -> bool:
        """Whether an arrow does not go down, or leads to a room outside any layer."""
        depth = {room: n for n, floor in enumerate(self.floors) for room in floor}
        if arrow.target not in depth:
            return True
        return depth.get(arrow.source, -1) >= depth[arrow.target]


def layers(pyproject: Path) -> list[list[str]]:
    """The modules of each layer, top layer first."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    contract = next(each for each in contracts if each["type"] == "layers")
    prefix = "".join(f"{each}." for each in contract.get("containers", [])[:1])
    # "a | b" and "a : b" are two modules of one layer, "(a)" is one that may be missing.
    return [[prefix + name for name in re.findall(r"[\w.]+", line)] for line in contract["layers"]]


def house(package: str, pyproject: Path) -> House:
    """Read the imports of a package that Python finds, without importing it."""
    graph = grimp.build_graph(package, cache_dir=None)
    plan = layers(pyproject)
    named = {name for floor in plan for name in floor}

    def room(module: str) -> str:
        parts = module.split(".")
        prefixes = [".".join(parts[:n]) for n in range(len(parts), 1, -1)]
        return next((each for each in prefixes if each in named), ".".join(parts[:2]))

    imports = 0
    between: dict[tuple[str, str], set[str]] = defaultdict(set)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            imports += 1
            if room(module) != room(imported):
                between[room(module), room(imported)].add(module)
    found = {room(module) for module in graph.modules}
    floors = [tuple(name for name in floor if name in found) for floor in plan]
    return House(
        floors=tuple(floor for floor in floors if floor),
        outside=tuple(sorted(found - named)),
        arrows=tuple(Arrow(*ends, len(importing)) for ends, importing in sorted(between.items())),
        modules=len(graph.modules),
        imports=imports,
    )
