"""Takes a packet with descriptors off the fd socket, by a process that is not waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from linkmgr.aio.unix_sockets import wait_readable
from linkmgr.errors import BadFd, HostError
from linkmgr.host import Fd
from linkmgr.host.fds import receive
from linkmgr.service.problems import ServiceProblem

#: Seconds until a receiver is given up: it needs 30 ms, and one that is held by a file waits long.
RECEIVE_TIMEOUT_S = 5.0
#: Receivers of one user at once. A user's own file system can hold one for ever.
MAX_RECEIVERS_PER_UID = 2
#: Receivers of all users but root, which is no more than a few megabytes of memory each.
MAX_RECEIVERS = 16
_EXIT_TIMEOUT_S = 0.2  # for a receiver to end, so that the next packet of this user finds a place
_MIN_REAP_INTERVAL_S = 0.005
_CLOEXEC = socket.MSG_CMSG_CLOEXEC
_HINT = "hand over an fd of /dev/net/tun after TUNSETIFF, or of a macvtap's /dev/tapN"


@dataclass
class Packet:
    """One packet.

    :param count: descriptors that came with it.
    :param fd: the one that came, if it is a tap's. Owned by the packet's holder.
    :param kind: ``st_mode`` and device number of a single one.
    """

    data: bytes
    too_long: bool = False
    count: int = 0
    lost: bool = False
    fd: Fd | None = None
    kind: tuple[int, int] = (0, 0)


class Receivers:
    """The processes that receive. Close it at the end."""

    def __init__(self) -> None:
        self._running: Counter[int] = Counter()  # by uid
        self._reaping: set[asyncio.Task[None]] = set()

    async def receive(self, sock: socket.socket, uid: int) -> Packet:
        """Receive the packet that is next, which brings descriptors.

        :raise ServiceProblem: when too many receivers of this user, or of all, are under way.
        :raise BadFd: when what came holds its receiver up.
        :raise HostError: when no process can be made.
        """
        others = self._running.total() - self._running[0]
        if self._running[uid] >= MAX_RECEIVERS_PER_UID or (uid and others >= MAX_RECEIVERS):
            raise ServiceProblem("too-many", "fds are being received already", "try again")
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise _cannot(error) from error
        with ours:
            with theirs:
                child = _start(sock.fileno(), theirs.fileno())
            self._running[uid] += 1
            reaping = asyncio.create_task(self._reap(child, uid), name="fd receiver")
            self._reaping.add(reaping)
            reaping.add_done_callback(self._reaping.discard)
            ours.setblocking(False)
            try:
                async with asyncio.timeout(RECEIVE_TIMEOUT_S):
                    await wait_readable(ours)
                # It has nothing more to do; only a file system can hold it now.
                await asyncio.wait({reaping}, timeout=_EXIT_TIMEOUT_S)
                return _read(ours)
            except TimeoutError:
                raise BadFd(
                    "what was left holds up its receiver: it is no tap", hint=_HINT
                ) from None
            finally:
                if not reaping.done():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)

    async def close(self, timeout: float = 2.0) -> None:
        """Wait for those that are about to end.

        :param timeout: seconds; what is held by a file system stays until that lets go.
        """
        if self._reaping:
            _, stuck = await asyncio.wait(self._reaping, timeout=timeout)
            for each in stuck:
                each.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)

    async def _reap(self, child: int, uid: int) -> None:
        pause = _MIN_REAP_INTERVAL_S
        while os.waitpid(child, os.WNOHANG)[0] != child:  # noqa: ASYNC222 - it does not wait
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)
        self._running -= Counter([uid])


def _start(connection: int, answer: int) -> int:
    command = [sys.executable, "-I", "-S", str(Path(receive.__file__))]
    inherited = [(os.POSIX_SPAWN_DUP2, connection, 0), (os.POSIX_SPAWN_DUP2, answer, 1)]
    try:
        return os.posix_spawn(command[0], command, {}, file_actions=inherited)
    except OSError as error:
        raise _cannot(error) from error


def _read(ours: socket.socket) -> Packet:
    size = receive.ANSWER.size
    answer, fds, _, _ = socket.recv_fds(ours, size + receive.PACKET_MAX, 1, _CLOEXEC)
    fd = Fd(fds[0]) if fds else None
    if len(answer) < size:
        raise HostError("the process that receives fds has failed", hint="see the service's log")
    flags, count, mode, major, minor = receive.ANSWER.unpack_from(answer)
    return Packet(
        answer[size:],
        too_long=bool(flags & socket.MSG_TRUNC),
        count=count,
        lost=bool(flags & socket.MSG_CTRUNC),
        fd=fd,
        kind=(mode, os.makedev(major, minor)),
    )


def _cannot(error: OSError) -> HostError:
    return HostError(
        f"no process can be made to receive an fd in: {error.strerror}",
        hint="try again; see the limits of the service (TasksMax, LimitNOFILE)",
    )
