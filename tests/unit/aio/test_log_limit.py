"""What strangers can cause again and again is logged a few times a minute."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkmgr.aio import log_limit
from linkmgr.aio.log_limit import KEYS_MAX, LINES_PER_MINUTE, LogLimit
from linkmgr.service.auth.peer import Peer
from linkmgr.service.http import server
from tests.unit.service_lab import running


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records]


def test_a_key_has_some_lines_and_then_a_number(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    limit = LogLimit("linkmgr.x", lines=2, clock=clock)
    for number in range(5):
        limit.warning("uid 7", "line %d", number)
    limit.warning("uid 8", "another")
    assert texts(caplog) == ["line 0", "line 1", "another"]
    clock.now = 61
    limit.warning("uid 7", "again")
    assert texts(caplog)[3:] == ["uid 7: 3 more lines like these within a minute", "again"]


def test_many_keys_share_one_and_take_no_more_memory(caplog: pytest.LogCaptureFixture) -> None:
    limit = LogLimit("linkmgr.x", clock=Clock())
    for uid in range(10_000):
        limit.warning(f"uid {uid}", "a line")
    assert len(caplog.records) == KEYS_MAX + LINES_PER_MINUTE


async def test_the_number_is_told_when_the_minute_is_over_also_without_another_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_limit, "WINDOW_S", 0.1)
    limit = LogLimit("linkmgr.x", lines=1)
    for _ in range(4):
        limit.warning("uid 7", "a line")
    await asyncio.sleep(0.3)
    assert texts(caplog) == ["a line", "uid 7: 3 more lines like these within a minute"]


async def test_a_user_who_is_refused_a_thousand_times_has_a_few_lines_of_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "peer_of", lambda _: Peer(4242, 4242, 1, frozenset()))
    async with running(tmp_path) as lab:
        caplog.clear()
        for _ in range(60):
            assert (await lab.ask("DELETE", "/v1/networks/blue")).status == 403
        assert len([text for text in texts(caplog) if "4242" in text]) <= LINES_PER_MINUTE
