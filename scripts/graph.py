#!/usr/bin/env python3
"""Draw the import graph of linkmgr as SVG, and print its figures and the lines of each folder.

    python -m scripts.graph [--svg FILE]

Rooms (folders of linkmgr/ and root modules) stand on floors (the layers of pyproject.toml); arrows
are imports. Without ``--svg`` nothing is drawn: only that needs scripts/graph-requirements.lock.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts import lines, rooms

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "linkmgr"
COUNTED = (PACKAGE, "tests", "bench", "hooks", "scripts")


def figures(house: rooms.House) -> str:
    """Say how many modules, rooms, floors and arrows a house has."""
    rows = {
        "modules": house.modules,
        "rooms": len(house.rooms),
        "floors": len(house.floors),
        "rooms outside any layer": len(house.outside),
        "arrows between rooms": len(house.arrows),
        "arrows not down": sum(house.is_wrong(each) for each in house.arrows),
        "arrows between modules": house.imports,
    }
    return "".join(f"{name:<26}{count:>7}\n" for name, count in rows.items())


def folders(root: Path, names: Sequence[str]) -> str:
    """Say how many lines each folder has, by kind."""
    table: list[tuple[str, ...]] = [("folder", "files", "lines", "code", "text", "blank")]
    for name in names:
        counted = lines.of_tree(root / name)
        if len(counted) > 1:
            for folder, each in counted.items():
                inner = folder.relative_to(root).as_posix()
                table.append(_row(f"  {inner}/*" if folder == root / name else f"  {inner}", each))
        table.append(_row(name, sum(counted.values(), lines.Lines())))
    return "".join(
        f"{first:<26}" + "".join(f"{cell:>7}" for cell in rest) + "\n" for first, *rest in table
    )


def _row(name: str, each: lines.Lines) -> tuple[str, ...]:
    return (name, *map(str, (each.files, each.all, each.code, each.text, each.blank)))


def main(words: Sequence[str]) -> int:
    """Print the figures and draw, as the command line says; return the exit status."""
    options = argparse.ArgumentParser(prog="graph")
    options.add_argument("--svg", type=Path, help="draw into this file")
    svg: Path | None = options.parse_args(words).svg
    house = rooms.house(PACKAGE, ROOT / "pyproject.toml")
    print(figures(house))
    print(folders(ROOT, COUNTED), end="")
    if svg:
        from scripts import picture  # noqa: PLC0415 - its library is installed for this alone

        picture.draw(house, svg)
        print(f"\n{svg} shows it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
