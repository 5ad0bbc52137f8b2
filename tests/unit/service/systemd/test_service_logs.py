"""In the journal each line has its priority; a program's own logging is left alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

from linkmgr.service.systemd.journal_log import log_to_stderr


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
        logging.getLogger("linkmgr.x").error("one")
        logging.getLogger("linkmgr.x").info("three")
        logging.getLogger("linkmgr.x").debug("four")
    assert capsys.readouterr().err == "<3>linkmgr.x: one\n<6>linkmgr.x: three\n"


def test_what_is_set_up_already_is_left_alone() -> None:
    handler = logging.NullHandler()
    with bare() as root:
        root.addHandler(handler)
        root.setLevel(logging.ERROR)
        log_to_stderr()
        assert (root.handlers, root.level) == ([handler], logging.ERROR)


FORGED = "\x1b[2J\n2026-01-31 12:00:00,000 INFO    uid 0 (pid 1) unplug web1/net0: ok\r\x9b1m\u202e"


def fail() -> None:
    raise RuntimeError(FORGED)


@pytest.mark.parametrize("journal", [True, False])
def test_a_strangers_text_begins_no_line_and_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], journal: bool
) -> None:
    if journal:
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    else:
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    with bare():
        log_to_stderr()
        log = logging.getLogger("linkmgr.x")
        log.warning("QEMU said: %s", FORGED)
        try:
            fail()
        except RuntimeError:
            log.exception("a fault")
    said = capsys.readouterr().err
    assert said.replace("\n", "").isprintable()
    lines = said.splitlines()
    assert "\\x1b[2J\\n2026" in lines[0]
    assert all(line.removeprefix("<3>").startswith("  | ") for line in lines[2:])
    assert "RuntimeError: \\x1b" in said


def test_a_line_is_no_longer_than_a_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    with bare():
        log_to_stderr()
        logging.getLogger("linkmgr.x").warning("%s", "x" * 1_000_000)
    assert len(capsys.readouterr().err) < 5000
