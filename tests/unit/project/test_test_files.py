"""scripts/test-files.py: what a run reports of the versions that it was made on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
QUICK = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
SEES = """
def test_a_revert(differs):
    differs("a revert", {0!r})
"""
SKIPS = """
import pytest
@pytest.mark.skip(reason="no such thing: here")
def test_a_thing():
    pass
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the fixtures of all tests, and no test."""
    (tmp_path / "tests/unit").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ['-ra']\n")
    for name in ("tests/__init__.py", "tests/conftest.py", "tests/differences.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "scripts/test-files.py", tmp_path / "scripts")
    return tmp_path


def run(checkout: Path, *words: str, **tests: str) -> tuple[int, str]:
    files = []
    for name, text in tests.items():
        files.append(checkout / "tests" / f"test_{name}.py")
        files[-1].write_text(text)
    command = [sys.executable, "scripts/test-files.py", "--jobs", "1", "--report", "out/r.json"]
    done = subprocess.run(
        [*command, *words, *files], cwd=checkout, text=True, check=False, timeout=100,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | QUICK,
    )  # fmt: skip
    return done.returncode, done.stdout


def reported(checkout: Path) -> Any:
    return json.loads((checkout / "out/r.json").read_text())


def test_a_report_says_what_ran_what_was_skipped_and_what_differs(checkout: Path) -> None:
    status, said = run(checkout, one=SEES.format("works"), two=SEES.format("works") + SKIPS)
    assert status == 0, said
    found = reported(checkout)
    assert found["versions"].keys() == {"Debian", "Python", "QEMU", "libvirt", "systemd", "Linux"}
    assert found["files"] == {
        "tests/test_one.py": {"passed": 1},
        "tests/test_two.py": {
            "passed": 1,
            "skipped": 1,
            "reasons": {"tests/test_two.py: no such thing: here": 1},
        },
    }
    assert found["differences"] == {
        "a revert": {
            "here": "works",
            "tests": ["tests/test_one.py::test_a_revert", "tests/test_two.py::test_a_revert"],
        }
    }


def test_a_subject_of_which_two_tests_say_different_things_is_an_error(checkout: Path) -> None:
    status, said = run(checkout, one=SEES.format("works"), two=SEES.format("refused"))
    assert status == 1
    assert "a revert: 'works' says tests/test_one.py::test_a_revert, and 'refused' says" in said
    assert not (checkout / "out/r.json").exists()
    both = SEES.format("works") + SEES.format("refused").replace("a_revert", "another")
    status, said = run(checkout, three=both)
    assert status == 1
    assert "ValueError: a revert: noted as 'works' before, and as 'refused' now" in said


def test_a_run_of_some_files_leaves_the_report_of_more_alone(checkout: Path) -> None:
    assert run(checkout, one=SEES.format("works"), two=SKIPS)[0] == 0
    status, said = run(checkout, one=SEES.format("other"))
    assert status == 0
    assert "out/r.json stays: it has files that did not run now (tests/test_two.py ...)" in said
    assert reported(checkout)["differences"]["a revert"]["here"] == "works"
    (checkout / "tests/test_two.py").unlink()
    assert run(checkout, one=SEES.format("other"))[0] == 0
    assert reported(checkout)["differences"]["a revert"]["here"] == "other"


def test_the_parts_of_the_unit_tests_run_each_file_once_and_are_reported_as_one(
    checkout: Path,
) -> None:
    for number in range(7):
        text = SKIPS + "def test_another():\n    pass\n"
        (checkout / f"tests/unit/test_{number}.py").write_text(text)
    status, said = run(checkout, "--unit", "--only-suite")
    assert status == 0, said
    assert "tests/unit (part 3 of 3): 2 passed, 2 skipped" in said
    counted = reported(checkout)["files"]["tests/unit"]
    assert (counted["passed"], counted["skipped"], len(counted["reasons"])) == (7, 7, 7)


def test_modules_are_compiled_once_and_apart_from_the_sources(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    assert run(checkout, one=SEES.format("works"))[0] == 0
    compiled = list((checkout / "build/compiled").rglob("differences.*.pyc"))
    assert len(compiled) == 1
    assert set(checkout.rglob("*.pyc")) == set((checkout / "build/compiled").rglob("*.pyc"))


def test_nothing_is_written_by_a_run_without_a_report(checkout: Path) -> None:
    (checkout / "tests/test_one.py").write_text(SEES.format("works"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_one.py"],
        cwd=checkout, text=True, check=False, timeout=100, capture_output=True,
        env=QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert not list(checkout.rglob("*.json*"))
