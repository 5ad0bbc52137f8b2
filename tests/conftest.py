"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.differences import FOLDER, Differences

# A shell has its background jobs ignore SIGINT, and so would each process that a test starts and
# interrupts: `make test &`.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def all_differences() -> Differences:
    """The notes of this run."""
    folder = os.environ.get(FOLDER)
    return Differences(Path(folder) if folder else None)


@pytest.fixture
def differs(
    request: pytest.FixtureRequest, all_differences: Differences
) -> Callable[[str, str], None]:
    """Note for docs/compatibility.md what the test has just seen to be so on these versions.

    ``differs("revert to an external snapshot", "refused")``: the subject, in the same words on all
    versions, and what is so here. Call it after the assertion.
    """

    def note(subject: str, here: str) -> None:
        all_differences.note(subject, here, request.node.nodeid.partition("[")[0])

    return note
