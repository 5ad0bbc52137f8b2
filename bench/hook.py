"""What libvirt's hook costs: `virsh start` with it and with a hook of ``exit 0``, taking turns.

The domain asks for no cables, so that the hook is measured and not the plugging; the service is a
real one. The domain is started paused: its guest would take the CPUs from the next round. The hook
alone is run at "started", where it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.served import ServiceProcess
from bench.stats import spread
from tests.hook_copy import write_hook
from tests.integration.libvirtd import Libvirtd, private_libvirtd, tiny_domain

__all__ = [
    "ALONE", "DOWN", "EXIT_0", "HANGS", "OURS", "HookEffort", "HookFigures", "measure_hook",
]  # fmt: skip

EXIT_0, OURS, DOWN, HANGS = "exit 0", "linkmgr", "service down", "service hangs"
ALONE = (EXIT_0, OURS, DOWN, HANGS)
_WORDS = ("web1", "started", "begin", "-")
_CONFIG = '[libvirt]\nuri = ""\n'  # the hook is all that tells the service of the domain


@dataclass(frozen=True)
class HookEffort:
    """How often each thing is measured: `starts` with each hook, `alone` runs of each hook."""

    starts: int
    alone: int
    hangs: int  # of which each takes 2 s

    @property
    def ticks(self) -> int:
        """How often the progress moves."""
        return self.starts + self.alone + self.hangs


@dataclass
class HookFigures:
    """What was found, in milliseconds, by hook and in the order of the rounds."""

    starts: dict[str, list[float]] = field(default_factory=lambda: {EXIT_0: [], OURS: []})
    alone: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ALONE})

    def report(self) -> dict[str, Any]:
        """Return it for bench.json."""
        rounds = zip(self.starts[OURS], self.starts[EXIT_0], strict=True)
        return {
            "hook_start_over_ms_median": round(median(one - other for one, other in rounds), 2),
            "hook_down_ms_worst": round(max(self.alone[DOWN]), 2),
            "hook_hangs_s_worst": round(max(self.alone[HANGS]) / 1000, 3),
            "start_ms": {name: spread(ms).rounded(2) for name, ms in self.starts.items()},
            "alone_ms": {name: spread(ms).rounded(2) for name, ms in self.alone.items()},
        }


async def measure_hook(workdir: Path, effort: HookEffort, tick: Callable[[], None]) -> HookFigures:
    """Start a libvirtd and the service, and measure."""
    found = HookFigures()
    async with private_libvirtd() as libvirtd, ServiceProcess(workdir, config=_CONFIG) as service:
        await libvirtd.define(tiny_domain(libvirtd, "web1", ["<interface type='user'/>"]))
        xml = (await libvirtd.virsh("dumpxml", "web1")).encode()
        hooks = _hooks(workdir, service.socket)
        await _start(libvirtd, hooks[OURS])
        await libvirtd.restart()  # now it knows that there are hooks
        for number in range(effort.starts):
            for name in (EXIT_0, OURS) if number % 2 else (OURS, EXIT_0):
                found.starts[name].append(await _start(libvirtd, hooks[name]))
            tick()
        for number in range(effort.alone):
            names = (EXIT_0, OURS, DOWN)
            for name in names if number % 2 else reversed(names):
                found.alone[name].append(await _run(hooks[name], xml))
            tick()
        with _hanging(workdir / "hanging.sock"):
            for _ in range(effort.hangs):
                found.alone[HANGS].append(await _run(hooks[HANGS], xml))
                tick()
    return found


def _hooks(folder: Path, service: Path) -> dict[str, Path]:
    sockets = {OURS: service, DOWN: folder / "gone.sock", HANGS: folder / "hanging.sock"}
    made = {
        name: write_hook(folder / f"hook-{number}", socket=sock, config=folder / "linkmgr.toml")
        for number, (name, sock) in enumerate(sockets.items())
    }
    made[EXIT_0] = folder / "hook-exit-0"
    made[EXIT_0].write_text("#!/bin/sh\nexit 0\n")
    made[EXIT_0].chmod(0o755)
    return made


async def _start(libvirtd: Libvirtd, hook: Path) -> float:
    """Start the domain with this hook; the milliseconds of ``virsh start``."""
    place = libvirtd.root / "etc/hooks/qemu.d/50-linkmgr"
    place.write_bytes(hook.read_bytes())
    place.chmod(0o755)
    begun = time.monotonic()
    await libvirtd.virsh("start", "--paused", "web1")
    taken = time.monotonic() - begun
    await libvirtd.virsh("destroy", "web1")
    return taken * 1000


async def _run(hook: Path, xml: bytes) -> float:
    """Run a hook as libvirt does; the milliseconds that it takes."""
    pipe = asyncio.subprocess.PIPE
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        hook, *_WORDS, stdin=pipe, stdout=pipe, stderr=pipe,
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    out, _ = await process.communicate(xml)
    taken = time.monotonic() - begun
    if process.returncode or out:
        raise RuntimeError(f"{hook} ended with status {process.returncode} and said {out!r}")
    return taken * 1000


@contextlib.contextmanager
def _hanging(path: Path) -> Iterator[None]:
    """A socket on which many may wait, and nobody is ever answered."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(64)
        yield
