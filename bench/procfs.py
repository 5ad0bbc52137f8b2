"""What the kernel says about a process: memory, CPU time, fds, threads (proc(5))."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Memory", "cpu_seconds", "open_files", "read_memory", "threads"]


@dataclass(frozen=True)
class Memory:
    """Resident memory in KiB.

    :param rss: all that is mapped and there, what other processes map as well included.
    :param pss: a page that n processes map counts as an nth of one.
    :param anon: the part of `pss` that is in no file: heap, stacks, a guest's RAM unless shared.
    :param shmem: the part of `pss` that is shared memory: a guest's RAM, if it is in a memfd.
    """

    rss: int
    pss: int
    anon: int
    shmem: int

    @property
    def own(self) -> int:
        """All of `rss` but shared memory. Others who map the same files do not change it."""
        return self.rss - self.shmem


def read_memory(pid: int) -> Memory:
    """Read smaps_rollup."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {
        key: int(number) for key, number in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)
    }
    return Memory(found["Rss"], found["Pss"], found["Pss_Anon"], found["Pss_Shmem"])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far, its own and the kernel's for it.

    From schedstat, which counts nanoseconds: the ticks of stat are too coarse for an idle process.
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def open_files(pid: int) -> Counter[str]:
    """Count the fds of a process by kind: ``socket``, ``/dev/net/tun``, ``anon_inode:[pidfd]``."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        # Every macvtap has a device node of its own, every socket and pipe a number.
        kind = re.sub(r"^(socket|pipe):.*|^(/dev/tap)\d+$", r"\1\2", target)
        kinds[kind if kind.startswith("/dev/") else kind.rpartition("/")[2]] += 1
    return kinds


def threads(pid: int) -> int:
    """Count the threads of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
