"""The unix socket that the API is on: made, taken over from a dead service, removed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from linkmgr.aio.unix_sockets import UnixSocket
from linkmgr.errors import BadRequest, Conflict, HostError
from linkmgr.state.lock_file import LOCK_FILE_NAME, open_lock

MODE_PUBLIC = 0o666  #: who may do what is decided by who it is, not by who can connect
MODE_OWNER = 0o600  #: of a socket whose queue strangers cannot fill
_BACKLOG = 1024
_LOCK_TIMEOUT_S = 5.0  # seconds that another service may take to start in the same directory


@contextlib.asynccontextmanager
async def listening(path: Path, mode: int = MODE_PUBLIC) -> AsyncIterator[UnixSocket]:
    """Listen on a unix socket; remove it at the end if it is still ours.

    A socket that nobody listens on any more is replaced. The directory is made if it is missing.

    :raise Conflict: when a service listens there already, or the path is something else.
    :raise BadRequest: when the path is too long for a socket.
    :raise HostError: when it cannot be made.
    """
    sock = UnixSocket.make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        async with _alone_in(path.parent):
            await _clear(path)
            # Mode 0 until it listens: nobody gets a refusal in between.
            before = os.umask(0o777)
            try:
                sock.bind(str(path))
            finally:
                os.umask(before)
            made = path.lstat()
            sock.listen(_BACKLOG)
            path.chmod(mode)
    except OSError as error:
        sock.close()
        if error.errno is None:  # Python itself measures the path
            raise BadRequest(
                f"{path} is too long for the path of a socket", hint="give at most 107 bytes"
            ) from None
        raise HostError(
            f"the socket {path} cannot be made: {error.strerror}",
            hint="name another one with --socket, or start the service as root",
        ) from None
    except BaseException:
        sock.close()
        raise
    try:
        yield sock
    finally:
        sock.close()
        with contextlib.suppress(OSError):
            now = path.lstat()
            if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
                path.unlink()


async def _clear(path: Path) -> None:
    """Remove a dead service's socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"{path} exists and is not a socket", hint="name another one with --socket")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with probe:
        probe.setblocking(False)
        # 0: it listens; EAGAIN: it listens, and many wait already.
        result = probe.connect_ex(str(path))
        if result == errno.ECONNREFUSED:
            path.unlink()
        elif result != errno.ENOENT:
            raise Conflict(
                f"a service listens on {path} already",
                hint="stop it first, or name another socket with --socket",
            )


@contextlib.asynccontextmanager
async def _alone_in(folder: Path) -> AsyncIterator[None]:
    """Keep two services from taking the same dead socket over, for the moment that it takes."""
    path = folder / LOCK_FILE_NAME
    fd = -1
    try:
        async with asyncio.timeout(_LOCK_TIMEOUT_S):
            while not _is_locked(path, fd := open_lock(path)):
                os.close(fd)
                fd = -1
                await asyncio.sleep(0.02)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    except TimeoutError:
        raise Conflict(
            f"another process holds a lock on {path}", hint="see who with 'lslocks'"
        ) from None
    finally:
        if fd >= 0:
            os.close(fd)


def _is_locked(path: Path, fd: int) -> bool:
    """Lock a file that may have been removed meanwhile by the one who had locked it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False
