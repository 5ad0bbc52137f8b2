"""Which processes have a device of ours open."""

from __future__ import annotations

import os
from pathlib import Path

from linkmgr.aio.threads import run_in_thread
from linkmgr.host.devices.macvtap import device_number
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.host.netlink.link import NetDevice
from linkmgr.host.statx import device_of_node

UNSEEN_HOLDER = "a process whose descriptors linkmgr may not see (that takes CAP_SYS_PTRACE)"


_TUN = os.makedev(10, 200)  # MISC_MAJOR and TUN_MINOR of Linux: the node of all taps


async def fd_holders(device: NetDevice) -> list[str]:
    """Return the processes that may have a tap or macvtap open, such as ``qemu (4711)``."""
    return await run_in_thread(_fd_holders, device)


def _fd_holders(device: NetDevice) -> list[str]:
    """As `fd_holders`. Asks no file system that may not answer, only /proc and the kernel's memory.

    Takes some ms. This process does not count. Without the right to look at all others, and
    with nobody found, `UNSEEN_HOLDER` stands for them. A node is known by its number: its path
    may be any. All taps have one number; /proc/PID/fdinfo tells which is behind a descriptor.
    """
    if device.kind not in {"tun", "macvtap"}:
        return []
    try:
        number = _TUN if device.kind == "tun" else device_number(device.name, device.index)
    except KernelRefused:  # gone meanwhile
        return []
    holders, unseen = [], False
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        try:
            if any(_is_of(process, fd.name, device, number) for fd in (process / "fd").iterdir()):
                holders.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
        except PermissionError:
            unseen = True
        except OSError:  # it has ended
            continue
    return sorted(holders) or [UNSEEN_HOLDER] * unseen


def _is_of(process: Path, fd: str, device: NetDevice, number: int) -> bool:
    try:
        if device_of_node(process / "fd" / fd) != number:
            return False
        if number != _TUN:
            return True
        return f"iff:\t{device.name}\n" in (process / "fdinfo" / fd).read_text()
    except OSError:
        return False
