"""Lock files that only their owner can open, and so lock, whatever the directory's mode."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from linkmgr.errors import Conflict
from linkmgr.text.untrusted import shell_word

LOCK_FILE_NAME = ".lock"  #: name of the lock file of a directory


def open_lock(path: Path) -> int:
    """Open a lock file for flock(2), made if it is missing.

    For reading: one that is there can be locked on a read-only file system, too.

    :raise Conflict: when somebody else's is in its place.
    """
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise Conflict(
            f"{path} is not a lock file of ours", hint=f"'rm -r {shell_word(str(path))}'"
        ) from None
    found = os.fstat(fd)
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
    if not ours or found.st_mode & 0o077:
        os.close(fd)
        raise Conflict(f"{path} is not a lock file of ours", hint=f"'rm {shell_word(str(path))}'")
    return fd
