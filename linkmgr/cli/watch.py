"""``linkmgr watch``: what happens, as it happens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from linkmgr.cli.framework import Command, Settings
from linkmgr.cli.output import printable
from linkmgr.cli.runner import CONNECT_RETRY_S, bounded_wait

if TYPE_CHECKING:
    from linkmgr.events import Event


@click.command(cls=Command, examples=["linkmgr watch", "linkmgr watch --json"])
def watch() -> None:
    """Print events until interrupted. Says on stderr when it has begun to listen.

    With --json they are objects, one per line.
    """
    import asyncio

    asyncio.run(_watch(Settings.current()))


async def _watch(settings: Settings) -> None:
    from linkmgr.client import Client
    from linkmgr.state.codec import to_json

    async with Client(settings.socket, patience=CONNECT_RETRY_S) as client:
        events = client.events()
        async with bounded_wait(settings):
            await events.settled.wait()
        click.echo("listening", err=True)  # what happens from now on is told
        async for event in events:
            click.echo(json.dumps(to_json(event)) if settings.json else describe(event))


def describe(event: Event) -> str:
    """One line: when, to whom, what."""
    from linkmgr.events import EventKind

    match event.kind:
        case EventKind.RESET:
            what = "the service has started anew; look with 'linkmgr status'"
        case EventKind.OVERFLOW:
            what = f"{event.details.get('lost', 'some')} events were missed"
        case _:
            details = [f"{key}={_short(value)}" for key, value in event.details.items()]
            what = " ".join([event.kind, *details])
    when = event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return printable(f"{when}  {event.subject or '-'}  {what}")


def _short(value: object) -> str:
    """A detail in one word if it can be; the timings of a swap as their sum."""
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(v, int | float) for v in value.values())
    ):
        return f"{sum(value.values()):.0f}ms"
    return value if isinstance(value, str) and " " not in value else json.dumps(value)
