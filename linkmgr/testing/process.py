"""Processes of a test: gone when the test is gone, even after kill -9; awaited without threads."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import IO, TypeVar

__all__ = ["Child", "ProcessFailed", "Result", "execute", "finish", "until"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left behind: its exit status, and stdout and stderr as they were written."""

    status: int
    output: str


class ProcessFailed(Exception):
    """A command that had to succeed did not.

    ``result`` holds its status and output.
    """

    def __init__(self, where: str, command: str, result: Result) -> None:
        super().__init__(
            f"{where}: {command!r} ended with status {result.status}: {result.output.strip()}"
        )
        self.result = result


class Child:
    """A process of its own session, killed by the kernel when the thread that started it ends.

    ``output`` takes stdout and stderr and stays the caller's. Only this object may reap it.
    """

    def __init__(
        self, argv: Sequence[str], *, output: IO[bytes], pass_fds: Sequence[int] = ()
    ) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *argv],  # it execs: the pid stays the same
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process id, which is also that of its session and process group."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended takes no notice."""
        self._process.send_signal(number)

    async def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended, at most ``timeout`` seconds, and return its status.

        :raise TimeoutError: it still runs.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout):
            while (status := self.status) is None:
                ended: asyncio.Future[None] = loop.create_future()
                pidfd = os.pidfd_open(self.pid)
                try:
                    loop.add_reader(pidfd, _resolve, ended)
                    await ended
                finally:
                    loop.remove_reader(pidfd)
                    os.close(pidfd)
        return status

    async def end(self, grace: float = 2.0) -> int:
        """End the process: a request, and after ``grace`` seconds an order. Returns its status."""
        for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process cannot hear the first
            self.signal(number)
        try:
            return await self.wait(grace)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await self.wait()


async def execute(argv: Sequence[str], *, timeout: float = 10.0, check: bool = True) -> Result:
    """Run a program of this machine to its end, at most ``timeout`` seconds.

    :raise ProcessFailed: it returned another status than 0, and ``check`` is set.
    :raise TimeoutError: it took too long, and was ended.
    """
    with tempfile.TemporaryFile() as output:
        child = Child(argv, output=output)
        try:
            status = await child.wait(timeout)
        finally:
            await finish(child.end())
        output.seek(0)
        result = Result(status, output.read().decode(errors="backslashreplace"))
    if check and status:
        raise ProcessFailed("this machine", " ".join(argv), result)
    return result


async def finish(work: Coroutine[object, object, object]) -> None:
    """Run ``work`` to its end even if the caller is cancelled; the cancellation comes after it."""
    task = asyncio.ensure_future(work)
    interrupted: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            interrupted = error
    task.result()
    if interrupted is not None:
        raise interrupted


async def until(
    ask: Callable[[], Awaitable[T]], *, timeout: float, what: str, interval: float = 0.05
) -> T:
    """Ask every ``interval`` seconds until the answer is true, and return it.

    :raise TimeoutError: ``what`` did not happen within ``timeout`` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not (answer := await ask()):
        if loop.time() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s, the last answer was {answer!r}")
        await asyncio.sleep(interval)
    return answer


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
