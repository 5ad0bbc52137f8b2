"""Output files that are named on the command line: replaced as a whole, or written through."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import tempfile
import time
from pathlib import Path

STDOUT = "-"
#: Seconds for which a named pipe may have no reader; a timer must not wait for ever.
READER_TIMEOUT_S = 10.0
_READER_INTERVAL_S = 0.05
_MAX_SYMLINKS = 40  # symbolic links in a row, as many as Linux follows
_OPEN_FLAGS = os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FD_DIRECTORY = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd")


def write_output(name: str, text: str) -> None:
    """Write text to an output file as UTF-8.

    A regular file is replaced at once, so that a reader sees the old or the new text and never a
    part; it keeps its mode and owner. Symbolic links are followed. A device or pipe is written
    through, and so is a file descriptor (``/dev/stdout``, ``/dev/fd/3``).

    :param name: ``-`` is stdout.
    :raise HostError: when it cannot be written; a regular file is as it was.
    :raise BrokenPipeError: when nothing reads from the pipe any more.
    """
    data = text.encode()
    try:
        fd = 1 if name == STDOUT else _own_fd(name)
        if fd is not None:
            with contextlib.suppress(AttributeError):  # stdout is closed
                sys.stdout.flush()
            _write_all(fd, data)
        elif _is_regular(name):
            _replace(Path(name).resolve(), data)
        else:
            _write_through(name, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        from linkmgr.errors import HostError

        raise HostError(
            f"{name!r} cannot be written: {error.strerror}", hint=_hint(error.errno)
        ) from error


def _hint(number: int | None) -> str:
    match number:
        case errno.ENXIO:
            return "start what reads from it first, or name a regular file"
        case errno.ENOSPC | errno.EDQUOT:
            return "make room there, or name a file elsewhere"
        case _:
            return "name a file in a directory that exists and that you may write to"


def _own_fd(name: str) -> int | None:
    """Return the fd of this process that a path leads to.

    Opening it anew would begin at the start of a regular file, and replacing that file would cut
    off what else the shell writes to it.
    """
    path = Path(name).absolute()
    for _ in range(_MAX_SYMLINKS):
        if not path.is_symlink():
            return None
        folder = _FD_DIRECTORY.fullmatch(str(path.parent.resolve()))
        if folder and path.name.isdigit():
            return int(path.name) if int(folder[1]) == os.getpid() else None
        path = path.parent / path.readlink()
    return None


def _is_regular(name: str) -> bool:
    """Whether it is a regular file, or is not there yet."""
    path = Path(name)
    try:
        there = path.stat()
    except FileNotFoundError:
        return True
    if not stat.S_ISREG(there.st_mode):
        return False
    try:
        return os.path.samestat(there, path.resolve().stat())
    except FileNotFoundError:  # a deleted file, open in another process: a link of /proc
        return False


def _replace(path: Path, data: bytes) -> None:
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    # The name begins with a dot, so node_exporter does not read it.
    fd, name = tempfile.mkstemp(prefix=".linkmgr.", dir=path.parent)
    try:
        try:
            _write_all(fd, data)
            if before is not None:
                with contextlib.suppress(PermissionError):  # only root gives a file away
                    os.fchown(fd, before.st_uid, before.st_gid)
            os.fchmod(fd, 0o644 if before is None else before.st_mode & 0o777)
        finally:
            os.close(fd)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _write_through(name: str, data: bytes) -> None:
    fd = _open_with_reader(name)
    try:
        os.set_blocking(fd, True)
        _write_all(fd, data)
    finally:
        os.close(fd)


def _open_with_reader(name: str) -> int:
    """Open what is no regular file; of a named pipe the reader may come a little later."""
    deadline = time.monotonic() + READER_TIMEOUT_S
    while True:
        try:
            return os.open(name, _OPEN_FLAGS)
        except OSError as error:
            is_pipe = error.errno == errno.ENXIO and Path(name).is_fifo()
            if not is_pipe or time.monotonic() > deadline:
                raise
        time.sleep(_READER_INTERVAL_S)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
