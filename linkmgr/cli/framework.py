"""What all commands have in common: --socket, --json, and how they end."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from linkmgr.cli.exit_codes import Exit, exit_of
from linkmgr.errors import BadRequest, Forbidden, LinkmgrError

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # older releases of click have no parameter here

TIMEOUT_VARIABLE = "LINKMGR_TIMEOUT"


@dataclass
class Settings:
    """What holds for any command, wherever on the line it was said.

    :param socket: of the service; ``None`` leaves it to LINKMGR_SOCKET and the default.
    :param json: whether a program reads the output. `RootGroup` looks for it before anything is
        parsed: what stands behind a wrong word is never read, and the error must be told as asked
        for.
    :param timeout: seconds to wait for the service; ``None`` leaves it to LINKMGR_TIMEOUT.
    :param wide: whether a table has all its columns and whole cells, however narrow the terminal.
    """

    socket: str | None = None
    json: bool = False
    timeout: float | None = None
    wide: bool = False

    @classmethod
    def current(cls) -> Settings:
        """Those of the command that runs."""
        return click.get_current_context().ensure_object(cls)

    def seconds(self) -> float | None:
        """How long to wait for the service; ``None`` is as long as it takes.

        :raise click.UsageError: LINKMGR_TIMEOUT is no such number.
        """
        said = os.environ.get(TIMEOUT_VARIABLE)
        if self.timeout is not None or not said:
            return self.timeout
        return Seconds().convert(said, None, None, name=TIMEOUT_VARIABLE)


class Seconds(_Type):
    """A time that can be waited for: more than 0."""

    name = "seconds"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
        *,
        name: str | None = None,
    ) -> float:
        """Read it.

        :param name: of what the value comes from, if it is no parameter.
        """
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0
        if seconds > 0:  # which nan is not
            return seconds
        what = f"{str(value)!r} is not a number of seconds that is greater than 0."
        raise click.BadParameter(what, ctx, param, param_hint=name and f"'{name}'")


def _set_socket(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Settings).socket = value


def _set_timeout(ctx: click.Context, _: click.Parameter, value: float | None) -> None:
    if value is not None:
        ctx.ensure_object(Settings).timeout = value


def _set_wide(ctx: click.Context, _: click.Parameter, value: object) -> None:
    if value:
        ctx.ensure_object(Settings).wide = True


def common_options() -> list[click.Parameter]:
    """The options that every command takes, before its name and after it."""
    return [
        click.Option(
            ["--socket"],
            type=click.Path(),
            metavar="PATH",
            expose_value=False,
            callback=_set_socket,
            help="Socket of the service; else LINKMGR_SOCKET, else /run/linkmgr/linkmgr.sock.",
        ),
        click.Option(
            ["--timeout"],
            type=Seconds(),
            metavar="SECONDS",
            expose_value=False,
            callback=_set_timeout,
            help="How long to wait for the service's answer; else LINKMGR_TIMEOUT, else as long as "
            "it takes.",
        ),
        click.Option(
            ["-o", "--output"],
            type=click.Choice(["wide"]),
            expose_value=False,
            callback=_set_wide,
            help="All columns of a table, however narrow the terminal.",
        ),
        click.Option(
            ["--no-trunc"],
            is_flag=True,
            expose_value=False,
            callback=_set_wide,
            help="The same: no cell of a table is cut.",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            help="Print JSON, for programs.",
        ),
    ]


#: What a command is called in virsh, nmcli, kubectl, podman, VBoxManage: the first that is there.
OTHER_WORDS: Mapping[str, Sequence[str]] = {
    "attach": ["plug"],
    "connect": ["plug"],
    "detach": ["unplug"],
    "disconnect": ["unplug"],
    "ls": ["list", "nics"],
    "list": ["nics"],
    "get": ["show", "list"],
    "describe": ["show"],
    "info": ["show"],
    "inspect": ["show"],
    "show": [],
    "set-link": ["link"],
    "add": ["create"],
    "define": ["create"],
    "create": ["add"],
    "new": ["create", "add"],
    "rm": ["delete", "remove"],
    "del": ["delete", "remove"],
    "remove": ["delete"],
    "delete": ["remove"],
    "undefine": ["delete"],
    "events": ["watch"],
    "monitor": ["watch"],
    "start": ["serve"],
    "daemon": ["serve"],
}


class Command(click.Command):
    """A command that takes the common options too.

    :param examples: calls of it, for its help.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line of its own."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            formatter.write("".join(f"  {each}\n" for each in self.examples))


class CommandGroup(click.Group):
    """A group of commands, in the order in which they were added."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls it
        """In the order of a day's work, not of the alphabet."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; a word that other tools have for it is told."""
        word, root = args[0], ctx.find_root()
        if word not in self.commands and word in OTHER_WORDS and not ctx.resilient_parsing:
            known = [each for each in OTHER_WORDS[word] if each in self.commands]
            assert isinstance(root.command, click.Group)  # it has led to this one
            if not known and word in root.command.commands:
                known = [f"{root.command_path} {word} {ctx.info_name}"]
            if known:
                ctx.fail(f"No such command {word!r}. Did you mean '{known[0]}'?")
        return super().resolve_command(ctx, args)


class LazyCommand(click.Command):
    """A command that is loaded when it is called.

    :param home: ``MODULE:NAME`` of the command.
    """

    def __init__(self, name: str, home: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._home = home

    def load(self) -> click.Command:
        """Return the command itself, with the common options."""
        from importlib import import_module

        module, _, attribute = self._home.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        known = {option for each in command.params for option in each.opts}
        command.params += [each for each in common_options() if not known & set(each.opts)]
        return command


class RootGroup(CommandGroup):
    """The command line as a whole. Errors become a sentence and an exit code here."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the options before the command."""
        words = args[: args.index("--")] if "--" in args else args
        settings = extra.setdefault("obj", Settings(json="--json" in words))
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError as error:  # --help and --version are printed here
            raise BrokenPipe from error
        except click.UsageError as error:
            if settings.json:
                raise CliUsageError(error) from error
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Load a lazy command when it is the one that was named."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        settings = ctx.ensure_object(Settings)  # made here, it is the commands' too
        try:
            return super().invoke(ctx)
        except LinkmgrError as error:
            if isinstance(error, Forbidden):
                from linkmgr.client.membership import explained

                explained(error)
            raise CliError(error, as_json=settings.json) from error
        except click.UsageError as error:
            if settings.json:
                raise CliUsageError(error) from error
            raise
        except KeyboardInterrupt:
            ctx.exit(Exit.INTERRUPTED)
        except BrokenPipeError as error:
            raise BrokenPipe from error  # of an OSError click makes exit code 1


class BrokenPipe(click.ClickException):
    """Nothing reads the output any more."""

    exit_code = Exit.BROKEN_PIPE

    def __init__(self) -> None:
        super().__init__("nothing reads the output any more")

    def show(self, file: Any = None) -> None:
        """Print nothing: whatever read the output has ended on purpose."""


class CliError(click.ClickException):
    """An error of linkmgr, as the end of the command."""

    def __init__(self, error: LinkmgrError, *, as_json: bool) -> None:
        super().__init__(str(error))
        vars(self)["exit_code"] = int(exit_of(type(error)))  # click declares it for the class
        self._error = error
        self._as_json = as_json

    def show(self, file: Any = None) -> None:
        """Print a sentence for people; with --json also the error's parts on stdout."""
        from linkmgr.cli.output import printable

        end = "" if self.message.endswith("?") else "."
        click.echo(f"linkmgr: {printable(self.message)}{end}", file=file, err=file is None)
        if self._as_json:
            _print_parts(self._error)


class CliUsageError(click.UsageError):
    """A call that click found to be wrong, where a program reads the output."""

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(error.message, error.ctx)
        self._error = error

    def show(self, file: Any = None) -> None:
        """Print what click prints for people, and an error's parts on stdout."""
        self._error.show(file)
        _print_parts(_parts_of(self._error))


def _parts_of(error: click.UsageError) -> LinkmgrError:
    """The same as an error of linkmgr; if it was one to begin with, that one."""
    if isinstance(error.__cause__, LinkmgrError):
        return error.__cause__
    what = error.format_message().rstrip(".")
    if "\n" in what:  # the help, which click prints where a command is missing
        what = "Missing command"
    command = error.ctx.command_path if error.ctx else "linkmgr"
    return BadRequest(what, hint=f"see '{command} --help'")


def _print_parts(error: LinkmgrError) -> None:
    parts = {"code": error.code, "what": error.what, "hint": error.hint}
    click.echo(json.dumps({"error": parts | {"nic": error.nic, "state": error.state}}))
