"""``linkmgr doctor``: what works on this host, what does not, and how to mend it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from linkmgr import doctor as probes
from linkmgr.cli.exit_codes import Exit
from linkmgr.cli.framework import Command, Settings
from linkmgr.cli.output import aligned, printable, printed_as_json
from linkmgr.cli.runner import spinner
from linkmgr.doctor import ProbeResult, Verdict
from linkmgr.paths import socket_path

DEFAULT_CONFIG = Path("/etc/linkmgr/linkmgr.toml")
_AREAS = ("host", "kernel", "QEMU", "libvirt", "OVS", "network", "rights", "service",
          "configuration")  # fmt: skip
_COLOURS = {Verdict.WORKS: "green", Verdict.MISSING: "yellow", Verdict.UNKNOWN: "cyan"}


@click.command(cls=Command, examples=["linkmgr doctor", "linkmgr doctor --config new.toml"])
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"Check this configuration file instead of {DEFAULT_CONFIG}.",
)
@click.pass_context
def doctor(ctx: click.Context, config: Path | None) -> None:
    """Say what works on this host, what does not, and how to mend it.

    Tries what the kernel can do in namespaces of its own, so run it as root; changes nothing.
    Exits with 1 when something is missing that linkmgr needs.
    """
    results = asyncio.run(look(socket_path(Settings.current().socket), config))
    if not printed_as_json({"ok": not any(result.bad for result in results), "lines": results}):
        show(results)
    ctx.exit(Exit.FINDINGS if any(result.bad for result in results) else Exit.OK)


async def look(socket: Path, config: Path | None) -> list[ProbeResult]:
    """Probe everything, all at once. What is missing and nothing uses is left out."""
    async with spinner("looking at this host"):
        areas = await asyncio.gather(
            probes.host(),
            probes.kernel(),
            probes.qemu(),
            _libvirt(config or DEFAULT_CONFIG),
            probes.hook(),
            probes.apparmor(),
            probes.ovs(),
            probes.forwarding(),
            probes.managers(),
            probes.rights(),
            probes.service(socket),
            probes.configuration(config or DEFAULT_CONFIG, asked=config is not None),
        )
    found = [
        result
        for area in areas
        for result in area
        if result.used or result.verdict is Verdict.WORKS
    ]
    return sorted(found, key=lambda result: _AREAS.index(result.area))


async def _libvirt(config: Path) -> list[ProbeResult]:
    section = await probes.libvirt_section(config)
    found = await probes.libvirt(uri=section.uri)
    if section.uri and section.run_dir:
        found += await probes.guest_files(Path(section.run_dir))
    return found + await probes.prepared(section.uri)


def show(results: Sequence[ProbeResult]) -> None:
    """Print a table, then how many needed things are missing."""
    heads = ["AREA", "WHAT", "", "FOUND", "TO DO"]
    rows = [
        [
            printable(cell)
            for cell in (result.area, result.name, word(result), result.what, result.todo or "")
        ]
        for result in results
    ]
    if sys.stdout.isatty() and not Settings.current().wide:
        _show_table(heads, rows, results)
    else:
        for each in aligned([heads, *rows]):
            click.echo(each)
    missing = sum(result.bad for result in results)
    click.echo(
        f"{missing} needed {'thing is' if missing == 1 else 'things are'} missing."
        if missing
        else "Nothing that is needed is missing."
    )


def word(result: ProbeResult) -> str:
    """The verdict in a word, so that what is needed stands out."""
    return "NEEDED" if result.bad else result.verdict.value


def _show_table(
    heads: Sequence[str], rows: Sequence[list[str]], results: Sequence[ProbeResult]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False)
    for at, head in enumerate(heads):
        made.add_column(head, no_wrap=at < 3, overflow="fold")  # a long path is folded, not cut
    for row, result in zip(rows, results, strict=True):
        colour = "bold red" if result.bad else _COLOURS[result.verdict]
        made.add_row(*(Text(cell, style=colour if at == 2 else "") for at, cell in enumerate(row)))
    Console().print(made)
