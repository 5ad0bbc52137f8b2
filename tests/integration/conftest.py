"""Integration tests: real QEMU, real kernel, a network of their own; nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from linkmgr.testing import enter_sandbox
from tests.integration.lab import Lab, make_lab

CHECKOUT = Path(__file__).parents[2]


def pytest_configure() -> None:
    """Enter the sandbox before anything starts a thread or an event loop."""
    enter_sandbox()


def _links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def _namespaces() -> set[str]:
    return {path.name for path in Path("/run/netns").iterdir()}


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def _fds() -> Counter[str]:
    """What the fds lead to. Not their numbers: a monitor that is connected again has another."""
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the one that lists
        if ".hypothesis" not in target:
            found[re.sub(r"\d+", "*", target)] += 1
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a link, a namespace, a process or an fd."""
    before = (_links(), _namespaces(), _children(), _fds())
    yield
    gc.collect()
    for _ in range(20):  # a thread may be asking the kernel something yet
        if not _fds() - before[3]:
            break
        time.sleep(0.05)
    links, namespaces, children, fds = _links(), _namespaces(), _children(), _fds()
    left = {
        "links": links - before[0],
        "namespaces": namespaces - before[1],
        "processes": children - before[2],
        "fds": fds - before[3],
    }
    assert not any(left.values()), f"left behind: {left}"
    assert not before[0] - links, f"taken away: {before[0] - links}"


@pytest.fixture(autouse=True)
async def no_task_is_left_behind() -> AsyncIterator[None]:
    """Fail a test that leaves an asyncio task."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


@pytest.fixture(autouse=True)
def a_monitor_that_was_cut_is_dialled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut connections count as lasting ones: tests cut them at every command, QEMUs never do."""
    monkeypatch.setattr("linkmgr.hypervisors.qemu.process.STABLE_CONNECTION_S", 0.0)


@pytest.fixture(scope="session")
def package() -> Path:
    """The package of ``make deb``, built now for this machine's Python."""
    subprocess.run(["make", "--silent", "-C", str(CHECKOUT), "deb"], check=True)
    (found,) = (CHECKOUT / "build").glob("linkmgr_*.deb")
    return found


@pytest.fixture
def qemu() -> str:
    """The QEMU under test, as a command line."""
    return os.environ.get("LINKMGR_QEMU") or "qemu-system-x86_64"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """An empty lab; see `Lab`."""
    async with make_lab(tmp_path) as made:
        yield made
