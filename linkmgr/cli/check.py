"""``check``, ``gc`` and ``metrics``: for those who look after the host."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from linkmgr.cli.exit_codes import Exit
from linkmgr.cli.framework import Command, Settings
from linkmgr.cli.outfile import STDOUT, write_output
from linkmgr.cli.output import natural, printable, printed_as_json, table
from linkmgr.cli.runner import run_with_client

if TYPE_CHECKING:
    from linkmgr.model import OrphanDevice


@click.command(cls=Command, examples=["linkmgr check"])
@click.pass_context
def check(ctx: click.Context) -> None:
    """Compare what should be with QEMU and the kernel.

    Changes nothing. Exits with 1 when there are findings.
    """
    found = run_with_client(lambda client: client.check(), "checking every NIC")
    if not printed_as_json({"findings": found}):
        for each in sorted(found, key=lambda each: natural(each.subject)):
            click.echo(printable(f"{each.subject}: {each.what}"))
            click.echo(f"    to do: {printable(each.hint)}")
        if not found:
            click.echo("Every NIC is as it should be.")
    ctx.exit(Exit.FINDINGS if found else Exit.OK)


@click.command(cls=Command, examples=["linkmgr gc --dry-run", "linkmgr gc --older-than 0"])
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Leave alone what has been an orphan for a shorter time, by default a minute.",
)
@click.pass_context
def gc(ctx: click.Context, dry_run: bool, older_than: float | None) -> None:
    """Remove orphan devices.

    Those are devices that carry linkmgr's tag and that nothing recorded. Exits with 1 when one
    that is old enough is still there.
    """
    from linkmgr.api import ORPHAN_MIN_AGE_S

    age = ORPHAN_MIN_AGE_S if older_than is None else older_than
    found = run_with_client(
        lambda client: client.gc(older_than=age, dry_run=dry_run), "looking for orphan devices"
    )
    if not printed_as_json({"orphans": found}):
        table(
            ["DEVICE", "OF", "SEEN FOR", ""],
            [
                [each.device, each.owner, f"{each.seen:.0f} s", _outcome(each, dry_run=dry_run)]
                for each in found
            ],
        )
        if not found:
            click.echo("There are no orphan devices.")
    # One that is too young is nothing wrong: a look a while later is early enough.
    due = [each for each in found if each.seen >= age]
    left = any(each.error or (dry_run and not each.removed) for each in due)
    ctx.exit(Exit.FINDINGS if left else Exit.OK)


def _outcome(orphan: OrphanDevice, *, dry_run: bool) -> str:
    """What became of an orphan, or would."""
    if orphan.removed:
        return "removed"
    if orphan.error:
        return f"left alone: {orphan.error}"
    return "would be removed" if dry_run else "gone by itself"


@click.command(
    cls=Command,
    examples=[
        "linkmgr metrics",
        "linkmgr metrics --textfile /var/lib/prometheus/node-exporter/linkmgr.prom",
    ],
)
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Replace this file at once, for the textfile collector of node_exporter; its name should "
    "end in .prom. A device or pipe is written through. By default, and for -, they are printed.",
)
def metrics(textfile: str | None) -> None:
    """Fetch the service's figures in the text form of Prometheus.

    With --json each is an object with its name, labels and value.
    """
    text = run_with_client(lambda client: client.metrics(), "asking")
    named = textfile if textfile != STDOUT else None
    if named is not None:
        write_output(named, text)
    if Settings.current().json:
        printed_as_json({"metrics": _figures(text)})
    elif named is None:
        click.echo(text, nl=False)


def _figures(text: str) -> list[dict[str, object]]:
    """The figures one by one; what JSON has no number for is null."""
    from prometheus_client.parser import text_string_to_metric_families

    return [
        {
            "name": each.name,
            "labels": dict(each.labels),
            "value": each.value if math.isfinite(each.value) else None,
        }
        for family in text_string_to_metric_families(text)
        for each in family.samples
    ]
