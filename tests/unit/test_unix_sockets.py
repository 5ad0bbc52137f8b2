"""Accepting goes on after the descriptors ran out, and says so a few times only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkmgr import unix_sockets
from linkmgr.unix_sockets import UnixSocket, connections


@contextlib.contextmanager
def no_descriptor_free() -> Iterator[None]:
    """Let this process open no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_connections_wait_while_no_descriptor_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_sockets, "ACCEPT_PAUSE_S", 0.01)
    path = str(tmp_path / "sock")
    with UnixSocket.make() as listening, contextlib.ExitStack() as stack:
        listening.bind(path)
        listening.listen(64)
        for _ in range(40):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        accepted: list[UnixSocket] = []

        async def accept() -> None:
            async for each in connections(listening):
                accepted.append(stack.enter_context(each))

        task = asyncio.create_task(accept())
        with no_descriptor_free(), caplog.at_level(logging.INFO):
            began = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - began < 0.2
            assert 1 <= len(caplog.records) <= 10
            assert not any(each.exc_info for each in caplog.records)
        assert not accepted
        async with asyncio.timeout(5):
            while len(accepted) < 40:  # noqa: ASYNC110 - of many
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
