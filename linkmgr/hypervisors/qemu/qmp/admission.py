"""Whose monitor a socket is: asked of the connected socket, never of the path that led to it.

A path is looked up anew at each connect, and may lead elsewhere by then: its last part or any
directory may have been exchanged. What the kernel says of the connected socket (SO_PEERCRED of
unix(7)) cannot change: the process that made it listen, and the user of that process.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from linkmgr.errors import Forbidden, MonitorReplaced

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid

#: Says of the uid of a listening process whether its monitor may be used.
MayUse = Callable[[int], bool]


@dataclass(frozen=True)
class PeerCredentials:
    """Who made a monitor socket listen (SO_PEERCRED). That need not be QEMU.

    :param pid: ``None`` for one of another pid namespace.
    :param uid: ``None`` if an older linkmgr met it, which did not keep that.
    """

    pid: int | None
    uid: int | None

    def __str__(self) -> str:
        uid = [] if self.uid is None else [f"uid {self.uid}"]
        return ", ".join(uid if self.pid is None else [*uid, f"pid {self.pid}"])


def peer_credentials(sock: socket.socket) -> PeerCredentials | None:
    """Ask the kernel for the credentials of the peer of a connected socket; ``None`` if unknown."""
    try:
        pid, uid, _ = _UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
    except OSError:
        return None
    return PeerCredentials(pid or None, uid)


class Admission:
    """Decides at each connect, before a byte is sent, whether the monitor is the VM's.

    The first peer must be of a user that `may_use` accepts, or the socket's file must belong to
    one: root may have made the monitor and given it away. Each later one must be the first.

    :param known: the first peer, when an earlier run has met it.
    """

    def __init__(
        self, *, may_use: MayUse | None = None, known: PeerCredentials | None = None
    ) -> None:
        self._may_use = may_use
        self.peer = known

    def __call__(self, path: str, peer: PeerCredentials | None, owner: int | None = None) -> None:
        """Let a connection pass.

        :param owner: uid of the owner of the file that was connected to; ``None``: not known.

        :raise Forbidden: the first peer is of a user whose monitors may not be used.
        :raise MonitorReplaced: it is another peer than the first.
        """
        if self.peer is not None:
            if peer is None or not _same(self.peer, peer):
                raise MonitorReplaced(
                    f"another process listens at {path} now ({peer or 'which is not known'}), "
                    f"not the one of this VM ({self.peer})",
                    hint="if the guest was started anew, remove the VM and add it again; else see "
                    f"who has changed {path}",
                )
        elif not self._is_usable(peer.uid if peer else None, owner):
            raise Forbidden(
                f"the monitor {path} belongs to {peer or 'nobody that is known'}, whose VMs "
                "the caller may not add",
                hint="add it as root or as its owner",
            )
        self.peer = peer

    def _is_usable(self, *uids: int | None) -> bool:
        if self._may_use is None:
            return True
        return any(uid is not None and self._may_use(uid) for uid in uids)


def _same(known: PeerCredentials, found: PeerCredentials) -> bool:
    # What is not known tells nothing apart.
    return all(
        one is None or other is None or one == other
        for one, other in ((known.uid, found.uid), (known.pid, found.pid))
    )
