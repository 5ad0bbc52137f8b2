"""Where the service listens: the same answer for service, client and command line."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_SOCKET = Path("/run/linkmgr/linkmgr.sock")
#: Beside the service's socket: for root, and for the group that the unit gives it. Everybody may
#: connect to the other one, and so can fill the queue of those who wait there.
ADMIN_SOCKET_NAME = "admin.sock"
SOCKET_VARIABLE = "LINKMGR_SOCKET"  #: environment variable that names another one


def socket_path(socket: str | Path | None = None) -> Path:
    """Return the path of the service's socket: what is given, else LINKMGR_SOCKET, else default."""
    return Path(socket or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)


def admin_socket_path(socket: Path) -> Path | None:
    """Return the path of the socket that strangers cannot fill, if this user may connect to it."""
    path = socket.with_name(ADMIN_SOCKET_NAME)
    return path if os.access(path, os.W_OK, effective_ids=True) else None
