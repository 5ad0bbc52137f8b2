"""The watch for drift goes on, whatever keeps it from hearing of changes for a while."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from linkmgr.events import EventBus
from linkmgr.reconcile import drift
from linkmgr.reconcile.drift import DriftWatch


class Deaf:
    """No socket can be had the first time."""

    tries = 0

    async def __aenter__(self) -> Deaf:
        Deaf.tries += 1
        if Deaf.tries == 1:
            raise OSError(24, "Too many open files")
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def wait(self) -> None:
        await asyncio.Event().wait()


async def test_a_watch_that_could_not_begin_begins_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drift, "NetDeviceChanges", Deaf)
    monkeypatch.setattr(drift, "REPAIR_BACKOFF_S", (0.01, 0.01))
    looked = asyncio.Event()
    fakes: list[Any] = [None, EventBus(), list, None]
    watch = DriftWatch(*fakes)

    async def look() -> None:
        looked.set()

    monkeypatch.setattr(watch, "look", look)
    task = asyncio.create_task(watch.run())
    async with asyncio.timeout(5):
        await looked.wait()
    assert Deaf.tries == 2
    assert "cannot be heard" in caplog.text
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
