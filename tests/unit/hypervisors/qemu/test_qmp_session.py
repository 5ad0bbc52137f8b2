"""A `Monitor` over a session that is no socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from linkmgr.errors import MonitorGone
from linkmgr.hypervisors.qemu.qmp import Monitor, MonitorEvent, QmpCommand


class Cut:
    """Answers the first commands; the others are not sent, for it ends."""

    def __init__(self, answers: int, on_closed: Callable[[], None]) -> None:
        self.pid: int | None = 7
        self.answers = answers
        self.closed = False
        self._on_closed = on_closed

    async def open(self, timeout: float, deadline: float) -> None:
        pass

    async def wait_closed(self) -> None:
        assert self.closed

    def closed_error(self, what: str, *, sent: bool) -> MonitorGone:
        return MonitorGone(what, sent=sent)

    def ensure_open(self, what: str) -> None:
        pass

    async def execute(self, name: str, arguments: Mapping[str, object]) -> Any:
        if self.answers:
            self.answers -= 1
            return name
        self.closed = True
        self._on_closed()
        raise self.closed_error(name, sent=False)

    def send_fd(self, name: str, fd: int) -> None:
        raise AssertionError

    async def close(self) -> None:
        self.closed = True


async def cut(answers: int) -> Monitor:
    def make(_: Callable[[MonitorEvent], None], on_closed: Callable[[], None]) -> Cut:
        return Cut(answers, on_closed)

    return await Monitor.from_session(make, name="a guest")


@pytest.mark.parametrize("answers", [0, 1])
async def test_of_a_batch_that_was_cut_off_all_or_nothing_is_unsent(answers: int) -> None:
    async with await cut(answers) as monitor:
        assert monitor.pid == 7
        with pytest.raises(MonitorGone) as gone:
            await monitor.batch([QmpCommand("one"), QmpCommand("two")])
        assert gone.value.sent is bool(answers)
