"""The process of a command: its standard streams, its limit of open files, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import sys
from collections.abc import Callable
from typing import TextIO

#: Descriptors that a command needs: doctor uses 13, the most; the caller may have left some open.
MIN_FDS = 16
#: An OSError without a file name and with one of these comes of writing to a stream.
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EINVAL)


def run(command: Callable[[], int]) -> int:
    """Run a command whose errors are sentences; return the process's exit code.

    :param command: returns an exit code.
    """
    _open_streams()
    _write_any_text()
    from linkmgr.cli.exit_codes import Exit

    try:
        _allow_fds()
        status = command()
    except KeyboardInterrupt:
        status = Exit.INTERRUPTED
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else Exit.OTHER
    except Exception as fault:  # noqa: BLE001 - Python would end with 1: something was found
        status = _tell(fault)
    return _flush(status)


def _open_streams() -> None:
    """Open what is closed of the three standard streams.

    Else the next file or socket takes its number, and what is printed goes there. Writing to a
    stdout that was closed must fail, so it is opened for reading only.
    """
    for fd, name, flags in (
        (0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY),
    ):  # fmt: skip
        if getattr(sys, name) is None:
            null = os.open(os.devnull, flags)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            stream = open(fd, "r" if fd == 0 else "w", closefd=False)  # noqa: SIM115 - for good
            setattr(sys, name, stream)


def _write_any_text() -> None:
    """Have what the locale cannot encode escaped, as stderr does by default."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _allow_fds() -> None:
    """Raise the limit of open files if it is too low.

    :raise OSError: EMFILE; it may not be raised so far.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_FDS:
        return
    if hard != resource.RLIM_INFINITY and hard < MIN_FDS:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MIN_FDS, hard))


def _tell(fault: Exception) -> int:
    """Print a fault and return its exit code: a sentence if the reason lies outside linkmgr."""
    from linkmgr.cli.exit_codes import Exit

    text = _sentence(fault) if isinstance(fault, OSError) else None
    with contextlib.suppress(OSError):
        if isinstance(fault, BrokenPipeError):
            return Exit.BROKEN_PIPE
        if text is not None:
            sys.stderr.write(f"linkmgr: {text}.\n")
        else:
            sys.excepthook(type(fault), fault, fault.__traceback__)
    return Exit.OTHER


def _sentence(error: OSError) -> str | None:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"too many files are open, and the limit is {limit}. "
            f"To do: raise it with 'ulimit -n', to {MIN_FDS} or more"
        )
    if error.errno in _OUTPUT_ERRORS and error.filename is None:
        return _unwritable(error)
    if isinstance(error, FileNotFoundError) and not _has_directory():
        return "the working directory has been deleted. To do: 'cd' to another one"
    return None


def _unwritable(error: OSError) -> str:
    return (
        f"the output cannot be written: {error.strerror}; what was asked is done all the same. "
        "To do: send the output elsewhere"
    )


def _has_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - the same, without an import that may fail now
    except OSError:
        return False
    return True


def _flush(status: int) -> int:
    """Write what is buffered; Python would tell of an error with a traceback, and exit with 120."""
    from linkmgr.cli.exit_codes import Exit

    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)  # Python 3.14 tries again at its end, and exits with 120, too
    except ValueError:  # it was closed
        pass
    try:
        sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            status = Exit.BROKEN_PIPE
        elif status in (Exit.OK, Exit.FINDINGS):
            with contextlib.suppress(OSError):
                sys.stderr.write(f"linkmgr: {_unwritable(error)}.\n")
            status = Exit.OTHER
        _drop(sys.stdout)
    except ValueError:  # it was closed
        pass
    return int(status)


def _drop(stream: TextIO) -> None:
    """Let go of what a stream has buffered and cannot write."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        stream.flush()
