"""The kernel's small files, in /proc and /sys, of devices that come and go.

Not by `Path`: that puts each part of itself, so each new device's name, into Python's table of
interned strings. When such a name goes, its place in the table stays, until the table is made anew:
1.8 MB each time, in the memory of whichever thread happens to be there.
"""

from __future__ import annotations

import os


def read(path: str) -> str:
    """What a file says.

    :raise OSError: when it cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), encoding="ascii") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write to a file that is there.

    :raise OSError: when it cannot be written, or the kernel does not take it.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "w", encoding="ascii") as file:
        file.write(text)
