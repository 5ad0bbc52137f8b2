"""The command line; ``linkmgr --help`` lists the commands, docs/cli.md explains them.

Each command loads what it needs when it runs, so that help and completion come at once.
"""

from __future__ import annotations


def main() -> None:
    """Run the command that the arguments name, and exit with one of `linkmgr.cli.exits.Exit`."""
    from linkmgr.cli.app import cli

    cli(prog_name="linkmgr")
