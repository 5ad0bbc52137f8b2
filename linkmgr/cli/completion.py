"""``linkmgr completion``: the script that makes a shell complete commands and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from linkmgr.cli.base import Verb
from linkmgr.cli.show import printed_as_json

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script.

    \b
      bash: linkmgr completion bash > /etc/bash_completion.d/linkmgr
      zsh:  linkmgr completion zsh > "${fpath[1]}/_linkmgr"
      fish: linkmgr completion fish > ~/.config/fish/completions/linkmgr.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "linkmgr", "_LINKMGR_COMPLETE").source()
    if not printed_as_json({"shell": shell, "script": script}):
        click.echo(script)
