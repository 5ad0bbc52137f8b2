"""Asks the service on behalf of a command, and shows that it takes a while."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from linkmgr.cli.framework import Settings

if TYPE_CHECKING:
    from linkmgr.client import Client

CONNECT_RETRY_S = 1.0  #: seconds to wait for a service that is just starting again
SPINNER_DELAY_S = 0.3  #: seconds after which progress is shown
SILENCE_NOTICE_S = 3.0  #: of a service, after which stderr says why it may be silent

T = TypeVar("T")


def run_with_client(request: Callable[[Client], Awaitable[T]], doing: str) -> T:
    """Run a request with a client of the service, in an event loop of its own.

    :param doing: what takes so long, such as "plugging web1/net0".
    :raise ServiceTimeout: it took longer than --timeout.
    """
    import asyncio

    from linkmgr.client import Client

    settings = Settings.current()

    async def run() -> T:
        async with (
            bounded_wait(settings),
            spinner(doing),
            Client(settings.socket, patience=CONNECT_RETRY_S) as client,
        ):
            return await request(client)

    return asyncio.run(run())


@asynccontextmanager
async def bounded_wait(settings: Settings) -> AsyncIterator[None]:
    """Bound the wait for the service by --timeout, and tell on stderr why it is silent.

    :raise ServiceTimeout: the time is up.
    :raise ServiceUnreachable: as the client raised it, with the reason that systemd knows.
    :raise ServiceGone: likewise.
    """
    import asyncio

    from linkmgr.client.diagnose import diagnose
    from linkmgr.errors import ServiceGone, ServiceTimeout, ServiceUnreachable
    from linkmgr.paths import socket_path

    path, seconds = socket_path(settings.socket), settings.seconds()
    watching = asyncio.create_task(_report_silence(path))
    try:
        async with asyncio.timeout(seconds) as deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        found = await diagnose(path)
        raise ServiceTimeout(
            f"the service at {path} has not answered within {seconds:g} s"
            + (f": {found.why}" if found else ", though it runs")
            + "; what it was asked may still be done",
            hint=found.hint if found else "wait longer (--timeout), and look with 'linkmgr status'",
        ) from None
    except (ServiceUnreachable, ServiceGone) as error:
        found = await diagnose(path)
        if found is not None:
            error.what, error.hint = f"{error.what}; {found.why}", found.hint
        raise
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def _report_silence(path: Path) -> None:
    import asyncio

    from linkmgr.client.diagnose import diagnose

    told = None
    while True:
        await asyncio.sleep(SILENCE_NOTICE_S)
        found = await diagnose(path)
        if found is not None and found != told:
            told = found
            click.echo(
                f"linkmgr: the service at {path} does not answer: {found.why}. To do: {found.hint}."
                " Still waiting; Ctrl-C or --timeout SECONDS ends that.",
                err=True,
            )


def removal(
    remove: Callable[[Client], Awaitable[bool]],
    name: str,
    names: Callable[[Client], Awaitable[Collection[str]]],
) -> Callable[[Client], Awaitable[bool]]:
    """Make a removal that tells of a name that is close, where nothing has this one.

    :param names: that there are, asked for only then.
    """

    async def removed(client: Client) -> bool:
        if await remove(client):
            return True
        from linkmgr.cli.output import note
        from linkmgr.errors import LinkmgrError
        from linkmgr.text.suggest import did_you_mean

        with contextlib.suppress(LinkmgrError):
            if said := did_you_mean(name, await names(client)):
                note(said)
        return False

    return removed


@asynccontextmanager
async def spinner(doing: str) -> AsyncIterator[None]:
    """Show a spinner on a terminal's stderr after `SPINNER_DELAY_S`."""
    import asyncio

    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    spinning = asyncio.create_task(_spin(doing))
    try:
        yield
    finally:
        spinning.cancel()
        await asyncio.wait([spinning])


async def _spin(doing: str) -> None:
    import asyncio

    await asyncio.sleep(SPINNER_DELAY_S)
    from rich.console import Console
    from rich.text import Text

    utf8 = (getattr(sys.stderr, "encoding", None) or "").lower().startswith("utf")
    style = "dots" if utf8 else "line"
    with Console(stderr=True).status(Text(f"{doing} ..."), spinner=style):
        await asyncio.Event().wait()
