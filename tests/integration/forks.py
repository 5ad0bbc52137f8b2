"""A program that is started again and again, without the second that its imports take each time.

A process that has imported what the program imports forks one after another. Each is a process of
its own, which runs all of the program, from its first line to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

from linkmgr.testing.process import Child, finish

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Forks:
    """Runs one at a time; ``async with`` ends it too.

    :param module: is run as ``python -m MODULE FD WORDS``, and calls `fork_each` with that FD.
    :param log: takes what it and its forks say.
    """

    def __init__(self, module: str, *words: str, log: Path) -> None:
        self.running = False
        self.pid = 0  #: of the one that was started last
        self._argv = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", module]
        self._words = words
        self._log_path = log
        self._log: IO[bytes] | None = None
        self._child: Child | None = None

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        self._log = self._log_path.open("wb")
        with theirs:
            self._child = Child(
                [*self._argv, str(theirs.fileno()), *self._words],
                output=self._log,
                pass_fds=[theirs.fileno()],
            )
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await finish(self._end())

    async def start(self, *words: str) -> None:
        """Fork one, which is given these words."""
        assert not self.running
        self._writer.write(json.dumps(words).encode() + b"\n")
        self.pid = int(await self._reader.readline())
        self.running = True

    async def ended(self) -> int:
        """Wait until it has ended; the status, negative for a signal."""
        async with asyncio.timeout(30):
            status = int(await self._reader.readline())
        self.running = False
        return status

    async def stop(self) -> int:
        """End it as systemd does, and say with which status."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.pid, signal.SIGTERM)
        return await self.ended()

    def said(self) -> str:
        """What all of them have said so far."""
        return self._log_path.read_text()

    async def _end(self) -> None:
        if self.running:
            await self.stop()
        self._writer.close()
        await self._writer.wait_closed()
        assert self._child is not None
        await self._child.wait(10)
        assert self._log is not None
        self._log.close()


def fork_each(number: int, run: Callable[[list[str]], None]) -> None:
    """Fork a process that runs this for each line of the socket; say its pid, and how it ended."""
    parent = os.getpid()
    with socket.socket(fileno=number) as line, line.makefile("r") as lines:
        for words in lines:
            pid = os.fork()
            if not pid:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                lines.close()
                line.close()
                if os.getppid() == parent:
                    run(json.loads(words))
                os._exit(0)
            line.sendall(b"%d\n" % pid)
            _, status = os.waitpid(pid, 0)
            line.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
