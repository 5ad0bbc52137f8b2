"""Each bound in docs/security.md is in the code, has the value told, and has the test it names."""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


def rows() -> list[list[str]]:
    """The cells of each row of the table."""
    lines = (ROOT / "docs/security.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ") and "::" in line]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


ROWS = rows()


@cache
def module(name: str) -> ModuleType:
    if name != "hooks/qemu":
        return importlib.import_module(name)
    loader = importlib.machinery.SourceFileLoader("hook_for_security", str(ROOT / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


@cache
def functions_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def ways_to_say(value: float) -> set[str]:
    """How a person writes a number."""
    said = {f"{value:g}", f"{value:,}"}
    if isinstance(value, int):
        said |= {f"{value >> shift:,} {unit}" for shift, unit in ((10, "KiB"), (20, "MiB"))
                 if value and not value % (1 << shift)}  # fmt: skip
    return said


def test_the_table_is_there() -> None:
    assert len(ROWS) > 20
    assert {len(row) for row in ROWS} == {5}, [row for row in ROWS if len(row) != 5]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}: {row[1][:40]}" for row in ROWS])
def test_a_bound_has_the_value_that_is_told(row: list[str]) -> None:
    bound = row[2]
    modules = re.findall(r"`(linkmgr[\w.]+|hooks/qemu)`", bound)
    assert modules or "`packaging/" in bound, f"no module is named: {bound}"
    for each in modules:
        module(each)  # it is there
    for name in re.findall(r"`([A-Z_]{2,})`", bound):
        values = [getattr(module(each), name) for each in modules if hasattr(module(each), name)]
        assert values, f"no {name} in {modules}"
        found = values[0]
        if not isinstance(found, int | float):
            continue
        told = re.findall(r"[\d.,]*\d(?: [KM]iB)?", bound)
        assert not ways_to_say(found).isdisjoint(told), f"{name} is {found}: {bound}"


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}: {row[1][:40]}" for row in ROWS])
def test_a_bound_has_its_test(row: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[4])
    assert named, f"no test is named: {row[4]}"
    for path, name in named:
        assert name in functions_in(path), f"{path} has no {name}"
