"""What CONTRIBUTING.md names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
TASKS = [
    "Change a swap",
    "Mend a restart's recovery",
    "Add a driver",
    "Add an endpoint kind",
    "Add a wiring",
    "Add a route",
]


def named(text: str) -> set[str]:
    """The files in a text: what has a folder or an ending that a file of ours has."""
    words = re.findall(r"(?<![\w./-])[\w.-]+(?:/[\w.-]+)*\.(?:py|md|toml)\b", text)
    return set(words)


def test_each_file_exists() -> None:
    missing = sorted(name for name in named(TEXT) if not (ROOT / name).exists())
    assert missing == [], "moved or removed? CONTRIBUTING.md names it"


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_list_of_files(task: str) -> None:
    section = TEXT.partition(f"## {task}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    assert len(rows) >= 3
    assert all(named(row) for row in rows), "each row begins with a file"


def test_each_target_exists() -> None:
    targets = set(re.findall(r"^\.PHONY: ([\w-]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?:^    |`)make ([a-z-]+)", TEXT, re.MULTILINE))
    assert used >= {"setup", "lint", "test", "graph"}
    assert used <= targets


def test_a_file_that_is_not_there_is_found() -> None:
    assert named("see `linkmgr/gone.py`, `pyproject.toml` and docs/api.md.") == {
        "linkmgr/gone.py",
        "pyproject.toml",
        "docs/api.md",
    }
