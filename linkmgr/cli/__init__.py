"""The command line; ``linkmgr --help`` lists the commands, docs/cli.md explains them.

Each command loads what it needs when it runs, so that help and completion come at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the arguments name, and exit with one of `linkmgr.cli.exits.Exit`."""
    from linkmgr.cli.app import cli
    from linkmgr.cli.exits import Exit

    try:
        cli(prog_name="linkmgr")
    except Exception as fault:  # noqa: BLE001 - Python would end with 1: something was found
        sys.excepthook(type(fault), fault, fault.__traceback__)
        raise SystemExit(Exit.OTHER) from None
