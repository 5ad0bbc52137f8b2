"""A table on a narrow terminal: names stay whole, the rest makes room."""

from __future__ import annotations

import asyncio
import os
import pty
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.cli.output import MIN_CELL, aligned, fitted
from linkmgr.state.codec import to_json
from tests.unit import samples
from tests.unit.cli.test_cli_process import _rest_of, start
from tests.unit.http_peer import FakeService, serving

NAMES = [f"customer-4711-frontend-web-{number}/net0" for number in (1, 2)]
MODEL = "virtio-net-pci-non-transitional"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        nics = [to_json(samples.nic()) | {"ref": name, "model": MODEL} for name in NAMES]
        made.answers({"nics": nics, "vms": [], "domains": []})
        yield made


async def on_terminal(service: FakeService, *words: str, columns: int) -> list[str]:
    ours, theirs = pty.openpty()
    process = await start(service, *words, stdout=theirs, env={"COLUMNS": str(columns)})
    os.close(theirs)
    try:
        async with asyncio.timeout(30):
            assert await process.wait() == 0
            said = (await asyncio.to_thread(_rest_of, ours)).decode()
    finally:
        os.close(ours)
    return re.sub("\x1b\\[[0-9;]*m", "", said).splitlines()


@pytest.mark.parametrize("columns", [80, 40, 10])
async def test_two_nics_of_which_only_the_end_of_the_name_differs_are_told_apart(
    service: FakeService, columns: int
) -> None:
    _, *rows = await on_terminal(service, "nics", columns=columns)
    assert [row.split()[0] for row in rows] == NAMES
    assert all("52:54:00:12:34:56" in row for row in rows)


async def test_a_narrow_terminal_leaves_out_what_is_less_important(service: FakeService) -> None:
    heads, *rows = await on_terminal(service, "nics", columns=100)
    assert "MODEL" not in heads
    assert all(len(row) <= 100 for row in rows)


@pytest.mark.parametrize("words", [["-o", "wide"], ["--no-trunc"], ["--output=wide"]])
async def test_nothing_is_cut_when_all_is_asked_for(service: FakeService, words: list[str]) -> None:
    for line in (["nics", *words], [*words, "nics"]):
        heads, *rows = await on_terminal(service, *line, columns=80)
        assert "MODEL" in heads
        assert all(MODEL in row for row in rows)


async def test_a_pipe_gets_everything(service: FakeService) -> None:
    process = await start(service, "nics", env={"COLUMNS": "40"})
    said, _ = await process.communicate()
    assert said.decode().count(MODEL) == len(NAMES)


def test_the_widest_cells_make_room_and_the_first_never() -> None:
    lines = [["NAME", "A", "B"], ["n" * 50, "a" * 30, "b" * 12]]
    (_, row) = fitted(lines, 80)
    assert row[0] == "n" * 50
    assert sum(map(len, row)) + 4 <= 80
    (_, row) = fitted(lines, 20)
    assert (row[0], len(row[1]), len(row[2])) == ("n" * 50, MIN_CELL, MIN_CELL)
    assert fitted(lines, 200) == lines


def test_wide_letters_count_twice_and_accents_not() -> None:
    rows = aligned([["NAME", "X"], ["\u4e2d\u6587", "x"], ["e\u0301", "x"], ["abcd", "x"]])
    assert rows == ["NAME  X", "\u4e2d\u6587  x", "e\u0301     x", "abcd  x"]
