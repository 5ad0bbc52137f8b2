"""packaging/install.sh, as far as it goes without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "packaging" / "install.sh"


def test_an_installation_stays_when_what_a_new_one_needs_cannot_be_had(tmp_path: Path) -> None:
    there = tmp_path / "usr/local/lib/linkmgr/bin/linkmgr"
    there.parent.mkdir(parents=True)
    there.touch()
    python = tmp_path / "python"  # makes the place for pip, but no pip can be used in it
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        'mkdir -p "$3/bin" && printf "#!/bin/sh\\nexit 1\\n" >"$3/bin/python"\n'
        'chmod 755 "$3/bin/python"\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        [SCRIPT], capture_output=True, check=False,
        env={"PATH": "/usr/bin:/bin", "DESTDIR": str(tmp_path), "SYSTEM_PYTHON": str(python)},
    )  # fmt: skip
    assert done.returncode != 0
    assert there.exists(), done.stderr.decode()


def test_modules_are_compiled_into_the_installation_wherever_the_caller_has_his(
    tmp_path: Path,
) -> None:
    python = tmp_path / "python"  # installs nothing, and writes down what compiles
    python.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        f'[ "$2" = compileall ] && {{ env >{tmp_path}/compiles; exit 1; }}\n'
        'for last; do :; done; mkdir -p "$last/bin"\n'
        'printf "#!/bin/sh\n" >"$last/bin/python" && chmod 755 "$last/bin/python"\n'
        f'ln -s {sys.executable} "$last/bin/python3"\n'
    )
    python.chmod(0o755)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / ".complete").touch()
    done = subprocess.run(
        [SCRIPT], capture_output=True, check=False,
        env={
            "PATH": "/usr/bin:/bin", "DESTDIR": str(tmp_path), "SYSTEM_PYTHON": str(python),
            "WHEELS": str(wheels), "PYTHONPYCACHEPREFIX": str(tmp_path / "elsewhere"),
        },
    )  # fmt: skip
    assert (tmp_path / "compiles").exists(), done.stderr.decode()
    assert "PYTHONPYCACHEPREFIX" not in (tmp_path / "compiles").read_text()
