"""``linkmgr completion``: the script that makes a shell complete commands and names."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, get_completion_class

from linkmgr.cli.framework import Command
from linkmgr.cli.output import printed_as_json
from linkmgr.cli.params import Choice

SHELLS = ("bash", "zsh", "fish")

# bash breaks words at each of COMP_WORDBREAKS, so also at the ':' of a port and the '=' of an
# option, and puts an answer in the place of the last piece alone ($2). So the pieces are joined to
# the words that a person sees before linkmgr is asked, and what stands there already is taken away
# from each answer. Click's own script hands on the pieces, which are no names of anything.
_BASH = r"""%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} words=() at bare piece kept type value

    for ((at = 0; at <= COMP_CWORD; at++)); do
        bare=${line#"${line%%%%[![:space:]]*}"}
        if [[ $at == 0 || $bare != "$line" ]]; then
            words+=("")
        fi
        piece=${COMP_WORDS[at]}
        if ((at == COMP_CWORD)); then
            piece=$bare
        fi
        words[${#words[@]}-1]+=$piece
        line=${bare#"$piece"}
    done
    piece=${words[${#words[@]}-1]}
    kept=${piece%%"$2"}

    COMPREPLY=()
    while IFS=, read -r type value; do
        if [[ $type == dir ]]; then
            compopt -o dirnames
        elif [[ $type == file ]]; then
            compopt -o default
        elif [[ $type == plain ]]; then
            if [[ $piece == --*=* && $value != -* ]]; then
                value=${piece%%%%=*}=$value
            fi
            COMPREPLY+=("${value#"$kept"}")
        fi
    done < <(
        IFS=$'\n'
        env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
            %(complete_var)s=bash_complete "$1"
    )
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    source_template = _BASH


@click.command(
    cls=Command,
    examples=[
        "linkmgr completion bash >/etc/bash_completion.d/linkmgr",
        'linkmgr completion zsh >"${fpath[1]}/_linkmgr"',
        "linkmgr completion fish >~/.config/fish/completions/linkmgr.fish",
    ],
)
@click.argument("shell", type=Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script."""
    kind = _Bash if shell == "bash" else get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "linkmgr", "_LINKMGR_COMPLETE").source()
    if not printed_as_json({"shell": shell, "script": script}):
        click.echo(script)
