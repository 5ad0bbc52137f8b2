"""Many VMs that are QEMU and nothing else: little memory, a NIC on a hub, no guest that runs."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
from functools import partial
from pathlib import Path
from typing import IO, Self

from linkmgr import hub_args
from linkmgr.testing.process import Child, finish, until

__all__ = ["Fleet"]

_STARTS_AT_ONCE = 20  # that are started together: each takes some 20 ms of CPU


class Fleet:
    """QEMUs vm0, vm1, ... that stay stopped; ``async with`` starts and ends them.

    :param count: how many; about 17 MB each.
    :param folder: where their monitors are.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.folder = folder
        self.names = [f"vm{number}" for number in range(count)]
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - until the end
        self._children: dict[str, Child] = {}

    async def __aenter__(self) -> Self:
        try:
            for first in range(0, len(self.names), _STARTS_AT_ONCE):
                some = self.names[first : first + _STARTS_AT_ONCE]
                for number, name in enumerate(some, first):
                    self._start(name, number)
                await until(partial(self._listen, some), timeout=60, what="the monitors")
        except BaseException:
            await finish(self._end())
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await finish(self._end())

    def monitor(self, name: str) -> Path:
        """Where the QEMU listens for linkmgr."""
        return self.folder / f"{name}.qmp"

    def pid(self, name: str) -> int:
        """Its process id."""
        return self._children[name].pid

    def signal(self, name: str, number: int) -> None:
        """Send a QEMU a signal."""
        self._children[name].signal(number)

    async def kill(self, name: str) -> None:
        """End a QEMU, and wait until it has ended."""
        await self._children[name].end(0)

    def _start(self, name: str, number: int) -> None:
        mac = f"52:54:00:f1:{number >> 8:02x}:{number & 255:02x}"
        qemu = shlex.split(os.environ.get("LINKMGR_QEMU") or "qemu-system-x86_64")
        bare = ["-m", "8", "-S", "-nodefaults", "-no-user-config", "-display", "none"]
        monitor = f"unix:{self.monitor(name)},server=on,wait=off"
        self._children[name] = Child(
            [
                *(*qemu, "-name", name, "-machine", "pc,accel=tcg", *bare, "-qmp", monitor),
                *hub_args("net0", mac=mac),
            ],
            output=self._output,
        )

    async def _listen(self, names: list[str]) -> bool:
        for name in names:
            if (status := self._children[name].status) is not None:
                self._output.seek(0)
                said = self._output.read().decode(errors="replace")
                raise RuntimeError(f"the QEMU of {name} ended with {status}: {said}")
        return all(self.monitor(name).exists() for name in names)

    async def _end(self) -> None:
        # Nothing in them is worth a goodbye.
        await asyncio.gather(*(child.end(0) for child in self._children.values()))
        self._children.clear()
        self._output.close()
