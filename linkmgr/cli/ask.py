"""Asks the service on behalf of a command, and shows that it takes a while."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from linkmgr.cli.base import Settings

if TYPE_CHECKING:
    from linkmgr.client import Client

PATIENCE = 1.0  #: seconds to wait for a service that is just starting again
BLINK = 0.3  #: seconds after which progress is shown

T = TypeVar("T")


def ask(work: Callable[[Client], Awaitable[T]], doing: str) -> T:
    """Do some work with a client.

    :param doing: what takes so long, such as "plugging web1/net0".
    """
    import asyncio

    from linkmgr.client import Client

    socket = Settings.current().socket

    async def run() -> T:
        async with progress(doing), Client(socket, patience=PATIENCE) as links:
            return await work(links)

    return asyncio.run(run())


@asynccontextmanager
async def progress(doing: str) -> AsyncIterator[None]:
    """Show a spinner on a terminal's stderr after a blink."""
    import asyncio

    if not sys.stderr.isatty():
        yield
        return
    spinner = asyncio.create_task(_spin(doing))
    try:
        yield
    finally:
        spinner.cancel()
        await asyncio.wait([spinner])


async def _spin(doing: str) -> None:
    import asyncio

    await asyncio.sleep(BLINK)
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(f"{doing} ...")):
        await asyncio.Event().wait()
