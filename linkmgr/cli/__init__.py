"""The command line; ``linkmgr --help`` lists the commands, docs/cli.md explains them.

`app` names the file of each; `framework`, `params`, `runner` and `output` are what they share. May
import everything but `testing`. A command loads what it needs when it runs, so that help and
completion come at once.
"""

from __future__ import annotations


def main() -> None:
    """Run the command that the arguments name, and exit with a `linkmgr.cli.exit_codes.Exit`."""
    from linkmgr.cli.process import run

    raise SystemExit(run(_command))


def _command() -> int:
    import contextlib

    import click

    from linkmgr.cli import app
    from linkmgr.cli.exit_codes import Exit

    try:
        ended = app.cli(prog_name="linkmgr", standalone_mode=False)
    except click.ClickException as error:
        with contextlib.suppress(OSError):  # the exit code says it, too
            error.show()
        return error.exit_code
    except click.Abort:
        return Exit.INTERRUPTED
    return ended if isinstance(ended, int) else Exit.OK
