"""How things look: aligned text, a table on a terminal, JSON for programs."""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from linkmgr.cli.framework import Settings

if TYPE_CHECKING:
    from linkmgr.model import Nic

MIN_CELL = 8  #: characters that a cell keeps, however narrow the terminal

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def printed_as_json(value: object) -> bool:
    """Print the JSON form if a program reads; tell whether it did."""
    if not Settings.current().json:
        return False
    from linkmgr.state.codec import to_json

    click.echo(json.dumps(to_json(value), indent=2))
    return True


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    none: str = "",
    *,
    minor: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Print a table.

    On a terminal that is too narrow for it cells are cut, but never those of the first column,
    which are the names that other commands take; --no-trunc leaves all of them whole.

    :param none: what is said on stderr where there are no rows; stdout stays empty.
    :param minor: heads of the columns that a terminal shows only if they fit, the first to be left
        out first.
    :param whole: heads of the columns that are of no use when they are cut.
    """
    if not rows:
        if none:
            click.echo(none, err=True)
        return
    lines = [list(heads), *([printable(cell) for cell in row] for row in rows)]
    on_terminal = _is_terminal()
    if on_terminal and not Settings.current().wide:
        lines = fitted(lines, shutil.get_terminal_size().columns, minor, whole)
    for number, line in enumerate(aligned(lines)):
        click.echo(click.style(line, bold=True) if on_terminal and not number else line)


def fitted(
    lines: Sequence[Sequence[str]],
    width: int,
    minor: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> list[list[str]]:
    """Lines, the first one the heads, made to fit as far as they may be; see `table`."""
    kept = [list(line) for line in lines]
    for head in minor:
        if _width(kept) > width:
            at = kept[0].index(head)
            for line in kept:
                del line[at]
    may_be_cut = [at for at, head in enumerate(kept[0]) if at and head not in whole]
    while (excess := _width(kept) - width) > 0:
        sizes = {at: max(_cells(line[at]) for line in kept) for at in may_be_cut}
        room = {at: size - max(MIN_CELL, _cells(kept[0][at])) for at, size in sizes.items()}
        widest = max((at for at in sizes if room[at] > 0), key=sizes.__getitem__, default=None)
        if widest is None:
            break  # a line that is too long says more than a name that is cut
        size = sizes[widest] - min(excess, (room[widest] + 1) // 2)
        for line in kept[1:]:
            line[widest] = _cut(line[widest], size)
    return kept


def _cut(text: str, size: int) -> str:
    if _cells(text) <= size:
        return text
    mark = "\u2026" if _has_unicode() else "~"
    kept = ""
    for each in text:
        if _cells(kept + each) > size - 1:
            break
        kept += each
    return kept.rstrip() + mark


def _has_unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _width(lines: Sequence[Sequence[str]]) -> int:
    columns = [max(map(_cells, column)) for column in zip(*lines, strict=True)]
    return sum(columns) + 2 * (len(columns) - 1)


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes: two for each wide letter, none for an accent."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns stand under each other, two spaces apart."""
    widths = [max(map(_cells, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - _cells(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


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
