"""packaging/install.sh, as far as it goes without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "packaging" / "install.sh"


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
