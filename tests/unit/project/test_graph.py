"""scripts/graph.py: the rooms of a package, the arrows between them, its lines, and the layout."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from scripts import graph, layout, lines, rooms
from scripts.layout import Node

ROOT = Path(__file__).parents[3]
PLAN = """
[tool.importlinter]
root_package = "housed"

[[tool.importlinter.contracts]]
name = "Drivers know no hypervisor"
type = "forbidden"

[[tool.importlinter.contracts]]
name = "Imports go one way"
type = "layers"
layers = ["housed.top", "(housed.gone)", "housed.left | housed.right", "housed.words"]
"""
FILES = {
    "__init__.py": "",
    "top/__init__.py": "from housed.top import deep\n",
    "top/deep.py": "import housed.words\n",
    "top/other.py": "from housed import left, words\n",
    "left.py": "def late():\n    from housed import right\n",
    "right.py": "import housed.stray\n",
    "words.py": "import housed.top.deep\n",
    "stray.py": "import housed.left\n",
}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> rooms.House:
    for name, text in FILES.items():
        path = tmp_path / "housed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "pyproject.toml").write_text(PLAN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return rooms.house("housed", tmp_path / "pyproject.toml")


def test_floors_are_the_layers_that_have_a_room(house: rooms.House) -> None:
    assert house.floors == (("housed.top",), ("housed.left", "housed.right"), ("housed.words",))
    assert house.outside == ("housed", "housed.stray")


def test_an_arrow_counts_the_modules_that_import(house: rooms.House) -> None:
    arrows = {(each.source, each.target): each.modules for each in house.arrows}
    assert arrows["housed.top", "housed.words"] == 2
    assert arrows["housed.top", "housed.left"] == 1
    assert ("housed.top", "housed.top") not in arrows
    assert house.modules == len(FILES)
    assert house.imports > len(arrows)


def test_what_does_not_go_down_is_wrong(house: rooms.House) -> None:
    wrong = {(each.source, each.target) for each in house.arrows if house.is_wrong(each)}
    assert wrong == {
        ("housed.left", "housed.right"),  # sideways
        ("housed.right", "housed.stray"),  # to no layer
        ("housed.words", "housed.top"),  # up
    }


def test_layers_within_a_container_have_its_name(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(PLAN.replace("housed.", "").replace("layers = [", 'containers=["a"]\nlayers=['))
    assert rooms.layers(path)[2] == ["a.left", "a.right"]


def test_each_line_is_counted_once() -> None:
    source = (
        '"""Says what it is.\n\nIn short."""\n\nimport os  # with a comment\n\n\n# alone\n'
        'def f():\n    """Say."""\n    return """\n\n# a word\n"""\n'
    )
    assert lines.of_python(source) == lines.Lines(files=1, code=6, text=4, blank=4)
    assert lines.of_python(source).all == source.count("\n")


def test_lines_of_a_shell_script(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("#!/bin/sh\n# why\n\nls # what\n")
    (tmp_path / "note.md").write_text("words\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/hook").write_text("#!/usr/bin/env python3\nx = 1\n")
    assert lines.of_tree(tmp_path) == {
        tmp_path: lines.Lines(files=1, code=2, text=1, blank=1),
        tmp_path / "inner": lines.Lines(files=1, code=1, text=1),
    }


def test_an_arrow_past_a_floor_has_a_lane_there_which_it_shares() -> None:
    segments = layout.edge_segments(
        [["a"], ["b"], ["c"], ["d"]], [("a", "d"), ("b", "d"), ("d", "b")]
    )
    down, up = Node(2, "d", dummy=True), Node(2, "b", dummy=True, up=True)
    through = {(each.start, each.end): each.sources for each in segments}
    assert through[Node(1, "d", dummy=True), down] == {"a"}
    assert through[down, Node(3, "d")] == {"a", "b"}
    assert through[Node(3, "d"), up] == {"d"}


def test_no_arrow_crosses_a_room_and_no_room_another() -> None:
    house = rooms.house("linkmgr", ROOT / "pyproject.toml")
    floors = [floor for floor in (house.outside, *house.floors) if floor]
    segments = layout.edge_segments(floors, [(each.source, each.target) for each in house.arrows])
    widths = {room: 60.0 + len(room) for room in house.rooms}
    at = layout.place(floors, segments, widths)
    rows: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for node, middle in at.items():
        half = 0 if node.dummy else widths[node.room] / 2
        rows[node.floor].append((middle - half, middle + half))
    for row in rows.values():
        row.sort()
        assert all(right[0] - left[1] > layout.LANE / 2 for left, right in pairwise(row))
    assert {node.room for node in at} == set(house.rooms)


def test_the_figures_of_this_tree() -> None:
    said = graph.figures(rooms.house("linkmgr", ROOT / "pyproject.toml")).splitlines()
    count = {name: int(n) for name, n in (line.rsplit(None, 1) for line in said)}
    assert count["modules"] == len(list((ROOT / "linkmgr").rglob("*.py")))
    assert count["rooms"] > count["floors"] > 1
    assert count["arrows between rooms"] < count["arrows between modules"]


def test_the_lines_of_a_folder_are_the_sum_of_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "hall/inner").mkdir(parents=True)
    (tmp_path / "hall/a.py").write_text("x = 1\n\n")
    (tmp_path / "hall/inner/b.py").write_text("# why\ny = 2\n")
    rows = [line.split() for line in graph.folders(tmp_path, ["hall"]).splitlines()]
    assert rows == [
        ["folder", "files", "lines", "code", "text", "blank"],
        ["hall/*", "1", "2", "1", "0", "1"],
        ["hall/inner", "1", "2", "1", "1", "0"],
        ["hall", "2", "4", "2", "1", "1"],
    ]
