"""In the journal each line has its priority; a program's own logging is left alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

from linkmgr.service.logs import log_to_stderr


@contextlib.contextmanager
def bare() -> Iterator[logging.Logger]:
    """A root logger that nobody has set up, not even pytest."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        yield root
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_each_line_has_its_priority_in_the_journal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    with bare():
        log_to_stderr()
        logging.getLogger("linkmgr.x").error("one\ntwo")
        logging.getLogger("linkmgr.x").info("three")
        logging.getLogger("linkmgr.x").debug("four")
    assert capsys.readouterr().err == "<3>linkmgr.x: one\n<3>two\n<6>linkmgr.x: three\n"


def test_what_is_set_up_already_is_left_alone() -> None:
    handler = logging.NullHandler()
    with bare() as root:
        root.addHandler(handler)
        root.setLevel(logging.ERROR)
        log_to_stderr()
        assert (root.handlers, root.level) == ([handler], logging.ERROR)
