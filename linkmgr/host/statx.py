"""statx(2) without asking the file system, which Python's `os` has only in 3.15."""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from pathlib import Path

_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE = 0x1
_SIZE = 256  # bytes of struct statx
_MODE = slice(28, 30)
_MAJOR, _MINOR = slice(128, 132), slice(132, 136)


def device_of_node(path: Path) -> int | None:
    """The number of a character device's node, ``None`` for any other file.

    The kernel tells what it has in memory: type and number of a file that is open never change. A
    file system that does not answer (FUSE) holds up nobody.

    :raise OSError: there is none, or no right to look.
    """
    made = ctypes.create_string_buffer(_SIZE)
    statx = ctypes.CDLL(None, use_errno=True).statx
    if statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_TYPE, made):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    mode, major, minor = (
        int.from_bytes(made.raw[each], sys.byteorder) for each in (_MODE, _MAJOR, _MINOR)
    )
    return os.makedev(major, minor) if stat.S_ISCHR(mode) else None
