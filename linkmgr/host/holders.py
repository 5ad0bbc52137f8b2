"""Which processes have a device of ours open."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

from linkmgr.file_threads import FileThreads
from linkmgr.host.links import Link
from linkmgr.host.macvtap import device_number
from linkmgr.host.trouble import Refused

#: Seconds for the look at what all processes have open; it takes some ms.
LOOK_S = 5.0
SILENT = f"a process whose open files could not be looked at within {LOOK_S:g} s"
UNSEEN = "a process whose descriptors linkmgr may not see (that takes CAP_SYS_PTRACE)"

_looks = FileThreads()  # of its own: a look that never ends takes no place of a monitor


async def held_by(link: Link) -> list[str]:
    """Return the processes that may have a tap or macvtap open, such as ``qemu (4711)``.

    A process whose files cannot be looked at in time, such as one with a file open on a file
    system that does not answer, may have it too.
    """
    try:
        return await _looks.run(os.geteuid(), partial(_held_by, link), timeout=LOOK_S)
    except TimeoutError:
        return [SILENT]


def _held_by(link: Link) -> list[str]:
    """As `held_by`; waits for the files that processes have open.

    Takes some ms. This process does not count. Without the right to look at all others, and
    with nobody found, `UNSEEN` stands for them. For a tap the kernel tells in /proc/PID/fdinfo, for
    a macvtap by the number of its node.
    """
    if link.kind not in {"tun", "macvtap"}:
        return []
    number = None
    if link.kind == "macvtap":
        try:
            number = device_number(link.name, link.index)
        except Refused:  # gone meanwhile
            return []
    holders, unseen = [], False
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        try:
            if any(_is_of(process, fd.name, link, number) for fd in (process / "fd").iterdir()):
                holders.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
        except PermissionError:
            unseen = True
        except OSError:  # it has ended
            continue
    return sorted(holders) or [UNSEEN] * unseen


def _is_of(process: Path, fd: str, link: Link, number: int | None) -> bool:
    try:
        if number is not None:
            found = (process / "fd" / fd).stat()
            return stat.S_ISCHR(found.st_mode) and found.st_rdev == number
        if (process / "fd" / fd).readlink() != Path("/dev/net/tun"):
            return False
        return f"iff:\t{link.name}\n" in (process / "fdinfo" / fd).read_text()
    except OSError:
        return False
