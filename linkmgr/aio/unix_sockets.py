"""Unix sockets on which a peer cannot make us wait by sending descriptors (SCM_RIGHTS).

Dropping the last reference to a descriptor closes it, and closing can wait for as long as its
sender likes. Receiving without room for it drops it, and so does closing a socket in which it lies.

Linux 6.16 has SO_PASSRIGHTS: off, the sender gets EPERM. Connections inherit it when they are made.
Without it, or where a connection is older than the option, each read looks first (MSG_PEEK leaves
the descriptors where they are), and what may hold some is closed in another process.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import AsyncIterator
from typing import Any

from linkmgr.aio.fd_discard import discard
from linkmgr.aio.log_limit import LogLimit
from linkmgr.aio.token_bucket import TimeBudget, UserBudgets

SO_PASSRIGHTS = 83  #: asm-generic/socket.h; Python has no name for it
#: Seconds without accepting when the process or the host has no descriptor left.
ACCEPT_RETRY_INTERVAL_S = 0.2
#: Seconds of the loop's time that a connection costs until its first request is looked at.
CONNECTION_COST_S = 0.0005
#: Seconds of it that a user's connections may take at once: all 256 that it may have.
CONNECTIONS_BURST_S = 0.15
USER_CONNECTIONS_SHARE = 0.05  #: of the loop's time for a user's connections: a hundred a second
REFUSAL_COST_S = 0.00005  #: of the loop's time for a connection that is refused
#: Of the loop's time for all of those: 2,000 a second. Root waits half a second behind a backlog
#: that somebody has filled.
REFUSALS_SHARE = 0.1
_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_limit = LogLimit(__name__)


class UnixSocket(socket.socket):
    """A unix socket that takes in no descriptors; so are the connections that it accepts.

    Only `recv` reads safely. SOCK_SEQPACKET is for descriptors: there its user receives, and only
    the closing is done elsewhere.
    """

    _may_hold_fds: bool | None = None  #: descriptors may lie in it; ``None``: and others share it
    recv_max: int | None = None  #: bytes that `recv` takes at once, however many are asked for

    @classmethod
    def make(cls, kind: int = socket.SOCK_STREAM) -> UnixSocket:
        """Make one that is neither bound nor connected, and does not block."""
        made = cls(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        made._may_hold_fds = not made._refuse_descriptors()
        return made

    @classmethod
    def from_fd(cls, fd: int) -> UnixSocket:
        """Own a socket that somebody else made."""
        made = cls(fileno=fd)
        made.setblocking(False)
        made._refuse_descriptors()
        return made

    def accept(self) -> tuple[UnixSocket, Any]:
        """See `socket.socket.accept`; the connection does not block."""
        fd, address = self._accept()  # type: ignore[attr-defined]  # as in socket.socket.accept
        made = type(self)(self.family, self.type, self.proto, fileno=fd)
        made.setblocking(False)
        made._may_hold_fds = made._takes_descriptors()  # noqa: SLF001 - our own
        if made._may_hold_fds:  # noqa: SLF001 - our own
            # From now on; what came before the connection was accepted may lie in it.
            made._refuse_descriptors()  # noqa: SLF001 - our own
        return made, address

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive bytes.

        :raise ConnectionAbortedError: the peer has sent descriptors too.
        """
        if self.recv_max is not None:
            size = min(size, self.recv_max)
        if self._may_hold_fds is False or flags:
            return super().recv(size, flags)
        data, _, said, _ = self.recvmsg(size, 0, socket.MSG_PEEK)
        if said & socket.MSG_CTRUNC:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the peer sent descriptors")
        return super().recv(len(data)) if data else data

    def close(self) -> None:
        """Close it, where that may wait in another process."""
        if self.fileno() >= 0 and self._may_hold_fds is not False and not self._is_empty():
            discard(self.detach())
        else:
            super().close()

    def _refuse_descriptors(self) -> bool:
        """Let the kernel refuse them. False where it cannot, or must not."""
        if self.type == socket.SOCK_SEQPACKET:
            return False
        try:
            # A byte sent out of band would else be passed over by the look, and dropped.
            self.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            self.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            return False
        return True

    def _takes_descriptors(self) -> bool:
        try:
            return bool(self.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS))
        except OSError:
            return True

    def _is_empty(self) -> bool:
        """Whether nothing lies in it, and nothing can come any more."""
        if self._may_hold_fds is None:
            return False  # systemd's, which goes on listening
        with contextlib.suppress(OSError):  # it was never connected, or is not any more
            self.shutdown(socket.SHUT_RDWR)
        listens = self.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens or self.type == socket.SOCK_SEQPACKET:
            return False  # connections cannot be counted, and an empty packet has no length
        waiting = array.array("i", [0])
        fcntl.ioctl(self.fileno(), termios.FIONREAD, waiting)
        return waiting[0] == 0


async def accept_connections(
    listening: UnixSocket, *, burst: float = CONNECTIONS_BURST_S
) -> AsyncIterator[UnixSocket]:
    """Accept one connection after another. Without a free descriptor the callers wait.

    Connections of a user that connects without end are closed until it is within its share again;
    those of root and of the service's own user never are. Everybody waits a little in the backlog
    meanwhile.

    :param burst: seconds of the loop's time that a user's connections may take at once.
    """
    loop = asyncio.get_running_loop()
    users = UserBudgets(burst, USER_CONNECTIONS_SHARE)
    refusals = TimeBudget(share=REFUSALS_SHARE)
    while True:
        try:
            accepted, _ = await loop.sock_accept(listening)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                _limit.warning("accept", "no connection can be taken now: %s", error.strerror)
                await asyncio.sleep(ACCEPT_RETRY_INTERVAL_S)
            continue  # else the peer has gone again
        assert isinstance(accepted, UnixSocket)
        uid = _uid_of(accepted)
        if uid in (0, os.geteuid()):
            yield accepted
        elif not users.of(uid).wait:
            users.of(uid).spend(CONNECTION_COST_S)
            yield accepted
        else:
            accepted.close()
            _limit.warning(f"uid {uid}", "uid %d connects too often and is hung up on", uid)
            refusals.spend(REFUSAL_COST_S)
            await asyncio.sleep(refusals.wait)


def _uid_of(sock: socket.socket) -> int:
    """The user at the other end; -1, which no user has, if the kernel does not say."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return -1
    uid: int = _UCRED.unpack(raw)[1]
    return uid


async def wait_readable(sock: socket.socket) -> None:
    """Wait until a socket has something to read, or its peer has gone."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
