"""Where the service listens: the same answer for service, client and command line."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_SOCKET = Path("/run/linkmgr/linkmgr.sock")
VARIABLE = "LINKMGR_SOCKET"  #: environment variable that names another one


def find_socket(socket: str | Path | None = None) -> Path:
    """Return the path of the service's socket: what is given, else LINKMGR_SOCKET, else default."""
    return Path(socket or os.environ.get(VARIABLE) or DEFAULT_SOCKET)
