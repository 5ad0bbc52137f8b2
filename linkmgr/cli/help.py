"""``help`` and ``version``."""

from __future__ import annotations

import click

from linkmgr.cli.framework import Command, LazyCommand
from linkmgr.cli.output import printed_as_json


@click.command(name="help", cls=Command, examples=["linkmgr help", "linkmgr help network create"])
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Explain linkmgr, or one command."""
    here = ctx.find_root()
    for word in words:
        group = here.command
        if not isinstance(group, click.Group):
            raise click.UsageError(f"{here.command_path!r} has no commands of its own.", here)
        _, command, _ = group.resolve_command(here, [word])
        assert command is not None  # or resolve_command had failed
        made = command.load() if isinstance(command, LazyCommand) else command
        here = click.Context(made, info_name=word, parent=here)
    click.echo(here.get_help())


@click.command(cls=Command, examples=["linkmgr version", "linkmgr version --json"])
def version() -> None:
    """Print the version of linkmgr."""
    from importlib.metadata import version as installed

    number = installed("linkmgr")
    if not printed_as_json({"version": number}):
        click.echo(f"linkmgr {number}")
