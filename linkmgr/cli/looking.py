"""``nics`` and ``connections``: everything that is known, in columns."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from linkmgr.cli.ask import ask
from linkmgr.cli.base import Verb
from linkmgr.cli.show import age, natural, printed_as_json, table


@click.command(cls=Verb)
def nics() -> None:
    """List all NICs."""
    found = ask(lambda links: links.nics(), "asking every guest")
    if printed_as_json({"nics": found}):
        return
    now = datetime.now(UTC)
    table(
        ["NIC", "STATE", "LINK", "PORT", "DEVICE", "MAC", "MTU", "MODEL", "FOR"],
        [
            [
                str(nic.ref), nic.state, nic.link or "?",
                str(nic.connection.port) if nic.connection else "-",
                nic.connection.device if nic.connection else "-",
                nic.mac, str(nic.mtu), nic.model, age(nic.since, now),
            ]
            for nic in sorted(found, key=lambda nic: natural(str(nic.ref)))
        ],
    )  # fmt: skip


@click.command(cls=Verb)
def connections() -> None:
    """List the NICs that are plugged, and into what."""
    found = ask(lambda links: links.connections(), "asking")
    if printed_as_json({"connections": found}):
        return
    now = datetime.now(UTC)
    table(
        ["NIC", "PORT", "ENDPOINT", "DEVICE", "FOR"],
        [
            [str(each.nic), str(each.port), str(each.endpoint), each.device, age(each.since, now)]
            for each in sorted(found, key=lambda each: natural(str(each.nic)))
        ],
    )
