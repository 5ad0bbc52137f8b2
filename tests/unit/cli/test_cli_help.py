"""Each command explains itself, with examples that are calls of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from linkmgr.cli.app import cli
from linkmgr.cli.framework import LazyCommand, Settings
from tests.unit.cli_runner import run


def leaves(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield (*path, name)


LEAVES = list(leaves(cli))


def parsed(line: str) -> tuple[str, ...]:
    """Have click read a call of linkmgr, and run nothing; return which command it is."""
    line = re.sub(r".*\$\((linkmgr .*?)\).*", r"\1", line)  # inside of another command
    program, *words = shlex.split(line.partition(" >")[0])
    assert program == "linkmgr"
    context, path = click.Context(cli, info_name="linkmgr", obj=Settings()), []
    command: click.Command = cli
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        path.append(str(name))
        command = found.load() if isinstance(found, LazyCommand) else found
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name, parent=context)
    command.make_context(path[-1], words, parent=context)
    return tuple(path)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
async def test_the_examples_of_each_commands_help_are_calls_of_it(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    result = await run(tmp_path, *words, "--help")
    assert result.exit_code == 0
    section = result.stdout.partition("\nExamples:\n")[2]
    examples = [line.strip() for line in section.splitlines() if line.strip()]
    assert examples, f"{words} has no example"
    for line in examples:
        assert parsed(line) == words, line


def test_a_wrong_example_would_be_noticed() -> None:
    for line in ("linkmgr plug web1/net0", "linkmgr plgu web1 blue", "linkmgr link web1 sideways"):
        with pytest.raises(click.UsageError):
            parsed(line)


@pytest.mark.parametrize("words", [(), ("vm",), *LEAVES], ids=" ".join)
async def test_help_says_what_the_option_says(tmp_path: Path, words: tuple[str, ...]) -> None:
    asked = await run(tmp_path, "help", *words)
    assert asked.exit_code == 0
    assert asked.stdout == (await run(tmp_path, *words, "--help")).stdout


async def test_help_for_what_is_no_command_is_a_wrong_call(tmp_path: Path) -> None:
    wrong = await run(tmp_path, "help", "plgu")
    assert wrong.exit_code == 2
    assert "No such command 'plgu'" in wrong.stderr
    deeper = await run(tmp_path, "help", "plug", "x")
    assert deeper.exit_code == 2
    assert "'linkmgr plug' has no commands of its own" in deeper.stderr


async def test_the_version_is_a_command_too(tmp_path: Path) -> None:
    said = (await run(tmp_path, "version")).stdout
    assert said == (await run(tmp_path, "--version")).stdout.replace(", version", "")
    number = json.loads((await run(tmp_path, "version", "--json")).stdout)["version"]
    assert said == f"linkmgr {number}\n"
