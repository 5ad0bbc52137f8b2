"""`make setup` says in lines what it does, and pip's own words when that fails."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PIP = """#!/bin/sh
case $* in *requirements.lock*) ;; *) exit 0 ;; esac
echo "Collecting aiofiles==25.1.0 (from -r requirements.lock (line 1))"
echo "  Downloading aiofiles.whl"
echo "Processing /mirror/click-8.5.1-py3-none-any.whl (from -r requirements.lock (line 9))"
n=0
while ! [ -e "$GO" ] && [ $((n += 1)) -lt 400 ]; do sleep 0.05; done
echo "ERROR: No matching distribution" >&2
exit "$STATUS"
"""


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A python3 whose virtual environments have a pip that only talks."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "pip").write_text(PIP)
    (bin_ / "python3").write_text('#!/bin/sh\nmkdir -p "$3/bin" && cp "${0%/*}/pip" "$3/bin/"\n')
    for each in bin_.iterdir():
        each.chmod(0o755)
    return tmp_path


def begin(stubs: Path, status: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ROOT / "scripts/make-venv.sh", stubs / "venv"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={
            "PATH": f"{stubs}/bin:{os.environ['PATH']}",
            "GO": str(stubs / "go"), "STATUS": str(status),
        },
    )  # fmt: skip


def test_each_step_and_each_package_is_told_while_it_is_done(stubs: Path) -> None:
    made = begin(stubs, 0)
    assert made.stdout
    began = time.monotonic()
    lines = [made.stdout.readline() for _ in range(4)]  # before pip ends
    (stubs / "go").touch()
    rest, _ = made.communicate(timeout=20)
    assert time.monotonic() - began < 20
    assert made.returncode == 0
    assert lines[0] == f"setup: virtual environment {stubs}/venv\n"
    assert lines[1].endswith("Python packages, pinned in requirements.lock\n")
    assert " of " in lines[2]
    assert lines[2].endswith(": aiofiles==25.1.0\n")
    assert lines[3].endswith(": click-8.5.1-py3-none-any.whl\n")
    assert rest == "setup: linkmgr itself\n"


def test_a_pip_that_fails_is_heard_and_fails_the_setup(stubs: Path) -> None:
    (stubs / "go").touch()
    made = begin(stubs, 1)
    out, err = made.communicate(timeout=20)
    assert made.returncode == 1
    assert "ERROR: No matching distribution" in err
    assert "linkmgr itself" not in out


def test_the_makefile_is_silent_nowhere() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("$(VENV)/stamp:")[2].partition("\n\n")[0]
    assert "scripts/make-venv.sh" in recipe
    assert "--quiet" not in recipe
