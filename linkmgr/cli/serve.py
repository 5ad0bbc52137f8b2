"""``linkmgr serve``: run the service."""

from __future__ import annotations

from pathlib import Path

import click

from linkmgr.cli.framework import Command, Settings
from linkmgr.paths import socket_path

DEFAULT_STATE_DIR = Path("/var/lib/linkmgr")
DEFAULT_CONFIG = Path("/etc/linkmgr/linkmgr.toml")


@click.command(
    cls=Command, examples=["linkmgr serve", "linkmgr serve --state-dir /var/tmp/linkmgr"]
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="Where it keeps what must survive it.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help=f"Configuration file; by default {DEFAULT_CONFIG}, if there is one.",
)
def serve(state_dir: Path, config: Path | None) -> None:
    """Run the service in the foreground.

    Under systemd it is linkmgr.service.
    """
    import asyncio

    from linkmgr.service.main import serve as run

    asyncio.run(run(socket_path(Settings.current().socket), state_dir, config or DEFAULT_CONFIG))
