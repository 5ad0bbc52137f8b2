"""``linkmgr serve`` as a process of its own, on a socket and a state directory of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

from linkmgr import Client
from linkmgr.testing.process import Child, finish

__all__ = ["ServiceProcess"]

_DEFAULT_PROGRAM = Path(sys.executable).with_name("linkmgr")
_START_TIMEOUT_S = 60.0  # seconds for a start


class ServiceProcess:
    """The service; ``async with`` starts it and ends it.

    :param folder: where its socket, its state and its log are.
    :param config: text of its configuration file.
    :param before: words before the command, such as those of a profiler.
    :param program: words that start another linkmgr than this checkout's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: str = "",
        before: tuple[str, ...] = (),
        program: Sequence[str] = (),
    ) -> None:
        self.socket = folder / "lm.sock"
        self.state = folder / "state"
        self._log_path = folder / "service.log"
        self._config = folder / "linkmgr.toml"
        self._config.write_text(config or "# defaults\n")
        self._before = before
        self._program = tuple(program) or (str(_DEFAULT_PROGRAM),)
        self._log: IO[bytes] | None = None
        self._child: Child | None = None

    async def __aenter__(self) -> Self:
        self._log = self._log_path.open("ab")
        try:
            await self.start()
        except BaseException:
            await finish(self._end())
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await finish(self._end())

    async def start(self, *, before: tuple[str, ...] | None = None) -> float:
        """Start it; return how many seconds it took until it answered.

        :param before: instead of those of the constructor, this time.
        """
        assert self._log is not None
        words = self._before if before is None else before
        begun = time.monotonic()
        self._child = Child(
            [
                *(*words, *self._program, "--socket", str(self.socket), "serve"),
                *("--state-dir", str(self.state), "--config", str(self._config)),
            ],
            output=self._log,
        )
        async with self.client() as client:
            await client.networks()  # asks no QEMU
        return time.monotonic() - begun

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal."""
        assert self._child is not None
        self._child.signal(number)
        await self._child.wait(30)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._child is not None
        return self._child.pid

    def client(self) -> Client:
        """One more client."""
        return Client(self.socket, patience=_START_TIMEOUT_S)

    async def get(self, path: str) -> str:
        """Ask for what no verb tells, such as ``/metrics``; the answer, with its head."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            request = f"GET {path} HTTP/1.1\r\nHost: linkmgr\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            return (await reader.read()).decode()
        finally:
            writer.close()
            await writer.wait_closed()

    def said(self) -> str:
        """Its log so far."""
        return self._log_path.read_text()

    async def _end(self) -> None:
        if self._child is not None:
            await self._child.end(30)
        if self._log is not None:
            self._log.close()
