"""Runs the command line in this process, against the scripted service of the test's own loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

from click.testing import CliRunner, Result

from linkmgr.cli.app import cli


async def run(socket: Path, *words: str) -> Result:
    """Run a command in a thread, since it has a loop of its own.

    :param socket: for LINKMGR_SOCKET.
    """
    return await asyncio.to_thread(
        CliRunner(catch_exceptions=False).invoke,
        cli,
        list(words),
        env={"LINKMGR_SOCKET": str(socket)},
        prog_name="linkmgr",
    )
