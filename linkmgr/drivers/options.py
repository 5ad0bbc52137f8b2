"""Options of networks and ports: what a driver accepts, and an error that says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from linkmgr.errors import BadOption
from linkmgr.model import Options
from linkmgr.text.suggest import did_you_mean, hint_for_unknown
from linkmgr.text.untrusted import quoted


@dataclass(frozen=True)
class Option:
    """One option: its type, default and bounds.

    :param type: ``bool``, ``int``, ``str`` or a `StrEnum` (given by value or by member).
    :param required: it has no default.
    :param at_least: smallest `int`.
    :param at_most: largest `int`.
    """

    type: type[bool] | type[int] | type[str]
    help: str
    default: object = None
    required: bool = False
    at_least: int | None = None
    at_most: int | None = None

    def expected(self) -> str:
        """What a value may be, for errors and help."""
        if issubclass(self.type, StrEnum):
            return "one of " + ", ".join(self.type)
        if self.type is int and self.at_least is not None:
            return f"a whole number from {self.at_least} to {self.at_most}"
        return {bool: "true or false", int: "a whole number", str: "text"}[self.type]

    def read(self, value: object) -> object:
        """Return the value in its proper type.

        :raise ValueError: when it is not of that type or out of bounds.
        """
        if issubclass(self.type, StrEnum):
            return self.type(str(value))
        # bool is an int to Python, but "mtu = true" is a mistake.
        if type(value) is not self.type:
            raise ValueError(value)
        if isinstance(value, int) and self.at_least is not None and value < self.at_least:
            raise ValueError(value)
        if isinstance(value, int) and self.at_most is not None and value > self.at_most:
            raise ValueError(value)
        return value


MTU = Option(
    int,
    "largest payload that the network carries, bytes; default: that of its device",
    at_least=68,
    at_most=65521,
)


def check_options(owner: str, known: Mapping[str, Option], given: Options) -> Options:
    """Return what was given, each value in its proper type.

    Defaults are not filled in here, so that a port can leave an option to its network.

    :param owner: whose options they are, for the error.
    :raise BadOption: for the first option that is unknown, missing or has a wrong value.
    """
    values: dict[str, object] = {}
    for key, value in given.items():
        if key not in known:
            raise BadOption(
                f"{owner} has no option {quoted(key)}",
                hint=hint_for_unknown(key, known, "the options are"),
            )
        try:
            values[key] = known[key].read(value)
        except ValueError:
            kind = known[key].type
            close = did_you_mean(str(value), list(kind)) if issubclass(kind, StrEnum) else ""
            raise BadOption(
                f"option {key!r} of {owner} cannot be {ascii(value)[:43]}",
                hint=close or f"give {known[key].expected()}: {known[key].help}",
            ) from None
    for key, option in known.items():
        if option.required and key not in given:
            raise BadOption(f"{owner} needs the option {key!r}", hint=f"give {option.help}")
    return MappingProxyType(values)


def defaults(known: Mapping[str, Option]) -> dict[str, object]:
    """The default of every option that has one."""
    return {key: option.default for key, option in known.items() if not option.required}
