"""scripts/way.py: the files, tasks and locks between two functions."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from scripts.way import Way

FILES = {
    "route": """
        import asyncio
        from walked import deep, words

        async def plug():
            await asyncio.create_task(deep.run())
    """,
    "deep": """
        import asyncio
        from walked import swap, words

        lock = asyncio.Lock()

        async def run():
            async with lock:
                await asyncio.to_thread(words.say)
                await asyncio.gather(swap.plug(lock))
    """,
    "words": """
        def say():
            pass
    """,
    "swap": """
        import asyncio
        from walked import after

        async def plug(lock):
            waiting = asyncio.create_task(after.wait(lock))
            await asyncio.sleep(0)
            lock.release()
            await waiting
    """,
    "after": """
        async def wait(lock):
            await lock.acquire()
    """,
    "aside": """
        import asyncio

        async def listen(lock):
            for _ in range(20):
                async with lock:
                    await asyncio.sleep(0)
    """,
}


@pytest.fixture
def walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    folder = tmp_path / "walked"
    folder.mkdir()
    for name, text in FILES.items():
        lines = (line.removeprefix(" " * 8) for line in text.splitlines())
        (folder / f"{name}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {name: importlib.import_module(f"walked.{name}") for name in FILES}
    for name in [each for each in sys.modules if each.partition(".")[0] == "walked"]:
        del sys.modules[name]


async def test_a_way_goes_through_tasks_and_threads_and_leaves_out_what_ran_before(
    tmp_path: Path, walked: dict[str, ModuleType]
) -> None:
    way = Way(
        tmp_path / "walked",
        lambda file, function: (file, function) == ("route", "plug"),
        lambda file, function: (file, function) == ("swap", "plug"),
    )
    aside = asyncio.create_task(walked["aside"].listen(asyncio.Lock()))
    threading.setprofile(way)
    sys.setprofile(way)
    try:
        await walked["route"].plug()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    await aside
    assert way.ended
    assert way.files == {"route": "plug", "deep": "run", "words": "say"}
    assert [each.rpartition(".")[2] for each in way.tasks] == [
        test_a_way_goes_through_tasks_and_threads_and_leaves_out_what_ran_before.__name__,
        "run",
        "plug",
    ]
    assert way.locks == ["deep: run"]
    assert way.later_locks == ["after: wait"], "once, though it had to wait for it"
