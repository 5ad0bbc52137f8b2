"""How things look: aligned text, a table on a terminal, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from linkmgr.cli.base import Settings

if TYPE_CHECKING:
    from linkmgr.model import Nic

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def printed_as_json(value: object) -> bool:
    """Print the JSON form if a program reads; tell whether it did."""
    if not Settings.current().json:
        return False
    from linkmgr.jsonform import to_json

    click.echo(json.dumps(to_json(value), indent=2))
    return True


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], none: str = "") -> None:
    """Print a table: with rich on a terminal, else in plain columns.

    :param none: what is said on stderr where there are no rows; stdout stays empty.
    """
    if not rows:
        if none:
            click.echo(none, err=True)
        return
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in aligned([heads, *rows]):
            click.echo(line)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    Console().print(made)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns stand under each other, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def age(since: datetime, now: datetime) -> str:
    """How long it is, in the largest unit that fits: ``3 h``. Not negative, whatever the clock."""
    seconds = max(0, int((now - since).total_seconds()))
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def where(nic: Nic) -> str:
    """What a plugged NIC is plugged into: ``blue (bridge br0, lm3f9a1c2e)``."""
    here = nic.connection
    if here is None:
        return "?"
    # The device of an fd is its owner's; the endpoint tells of it if it can be seen.
    return f"{here.port} ({', '.join(filter(None, (str(here.endpoint), here.device)))})"


def pairs(options: Mapping[str, object]) -> str:
    """Options as they are written on the command line."""
    from linkmgr.model import written

    return written(options)


def note(text: str) -> None:
    """Tell something that a person should know, which is no error, on stderr."""
    click.echo(f"note: {printable(text)}{'' if text.endswith('?') else '.'}", err=True)


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts net2 before net10."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", text)]


def printable(text: str) -> str:
    """Text without what would steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
