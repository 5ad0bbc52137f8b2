"""Accepting goes on after the descriptors ran out, and says so a few times only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkmgr.aio import unix_sockets
from linkmgr.aio.unix_sockets import (
    CONNECTION_COST_S,
    USER_CONNECTIONS_SHARE,
    UnixSocket,
    accept_connections,
)


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
    monkeypatch.setattr(unix_sockets, "ACCEPT_RETRY_INTERVAL_S", 0.01)
    path = str(tmp_path / "sock")
    with UnixSocket.make() as listening, contextlib.ExitStack() as stack:
        listening.bind(path)
        listening.listen(64)
        for _ in range(40):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        accepted: list[UnixSocket] = []

        async def accept() -> None:
            async for each in accept_connections(listening):
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


# Connects as another user, as often as it goes; prints how often it was and was not hung up on.
CONNECTS = """
import os, select, socket, sys, time
os.setgroups([]); os.setgid(65534); os.setuid(65534)
kept = []
for _ in range(int(sys.argv[2])):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    kept.append(sock)
time.sleep(0.5)
ready = select.select(kept, [], [], 0)[0]  # at its end
print(len(kept) - len(ready), len(ready))
"""


async def test_a_user_that_connects_without_end_is_hung_up_on_and_root_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    path = str(tmp_path / "sock")
    burst = 20 * CONNECTION_COST_S
    with UnixSocket.make() as listening, contextlib.ExitStack() as stack:
        listening.bind(path)
        (tmp_path / "sock").chmod(0o666)
        listening.listen(64)
        accepted: list[UnixSocket] = []

        async def accept() -> None:
            async for each in accept_connections(listening, burst=burst):
                accepted.append(stack.enter_context(each))

        task = asyncio.create_task(accept())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CONNECTS, path, "400", stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
        taken, hung_up = map(int, said.split())
        assert 20 <= taken <= 20 + 10 * USER_CONNECTIONS_SHARE / CONNECTION_COST_S
        assert hung_up > 100
        assert len([each for each in caplog.records if "connects too often" in each.message]) <= 12
        before = len(accepted)
        for _ in range(50):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        async with asyncio.timeout(5):
            while len(accepted) < before + 50:  # noqa: ASYNC110 - of many
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
