"""`linkmgr` as on a kernel without SO_PASSRIGHTS, which is to say before Linux 6.16."""

from __future__ import annotations

import sys
from pathlib import Path

from linkmgr.aio import unix_sockets
from linkmgr.cli import main

NO_OPTION = 32767  # no kernel has an option of this number


def command() -> str:
    """Return the command line of the service."""
    root = Path(__file__).parents[2]
    return f"env PYTHONPATH={root} {sys.executable} -m {__name__} serve"


if __name__ == "__main__":
    unix_sockets.SO_PASSRIGHTS = NO_OPTION
    main()
