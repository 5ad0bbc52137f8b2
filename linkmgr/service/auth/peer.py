"""Who is at the other end of a connection, as the kernel says (unix(7))."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import Protocol

_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_MAX_OPTION_BYTES = 1024  # bytes that Python's getsockopt takes: 256 groups


class PeerSocket(Protocol):
    """A connected unix socket, or asyncio's stand-in for one."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """As in `socket.socket`."""


@dataclass(frozen=True)
class Peer:
    """The process that connected, at the moment when it did.

    :param groups: all its groups, the primary one too.
    """

    uid: int
    gid: int
    pid: int
    groups: frozenset[int]

    def __str__(self) -> str:
        return f"uid {self.uid} (pid {self.pid})"


def peer_of(sock: PeerSocket) -> Peer:
    """Ask the kernel who is at the other end.

    :raise OSError: when it cannot say.
    """
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("iII", raw)
    return Peer(uid, gid, pid, frozenset([gid, *_groups(sock, uid, gid)]))


def _groups(sock: PeerSocket, uid: int, gid: int) -> list[int]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_OPTION_BYTES)
    except OSError as error:
        if error.errno not in (errno.ERANGE, errno.ENOPROTOOPT):
            raise
        # More groups than fit, or a kernel before 4.13: what the user database says.
        try:
            return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        except KeyError:
            return []
    return list(struct.unpack(f"{len(raw) // 4}I", raw))
