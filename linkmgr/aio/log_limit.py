"""Keeps what strangers can cause again and again from filling the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

#: Lines of one key in a minute; enough to see what is going on.
LINES_PER_MINUTE = 10
#: Keys that are counted apart; all others share one, so that many users fill no memory.
KEYS_MAX = 256
#: Seconds of the window.
WINDOW_S = 60.0


@dataclass
class _Window:
    begun: float
    lines: int = 0
    more: int = 0


class LogLimit:
    """Logs some lines a minute for each key, and then only how many more there were.

    :param name: of the logger.
    :param lines: of one key in a minute.
    """

    def __init__(
        self,
        name: str,
        lines: int = LINES_PER_MINUTE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = logging.getLogger(name)
        self._lines = lines
        self._clock = clock
        self._windows: dict[Hashable, _Window] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the timer

    def warning(self, key: Hashable, text: str, *args: object) -> None:
        """Log a warning that `key` has caused, a user's number for example."""
        self.log(logging.WARNING, key, text, *args)

    def log(
        self,
        level: int,
        key: Hashable,
        text: str,
        *args: object,
        error: BaseException | None = None,
    ) -> None:
        """Log a line that `key` has caused.

        :param error: whose traceback belongs to it.
        """
        self._end_windows()
        if key not in self._windows and len(self._windows) >= KEYS_MAX:
            key = "others"
        window = self._windows.setdefault(key, _Window(self._clock()))
        if window.lines < self._lines:
            window.lines += 1
            self._log.log(level, text, *args, exc_info=error)
            return
        window.more += 1
        if self._timer is None or self._loop is not _loop():
            self._end_later(window.begun + WINDOW_S - self._clock())

    def _end_windows(self) -> None:
        """Say how many more there were in each window that is over."""
        now = self._clock()
        over = [key for key, each in self._windows.items() if now - each.begun >= WINDOW_S]
        for key in over:
            if more := self._windows.pop(key).more:
                self._log.warning("%s: %d more lines like these within a minute", key, more)

    def _end_later(self, delay: float) -> None:
        self._loop = _loop()
        if self._loop is not None:
            self._timer = self._loop.call_later(max(delay, 0.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._end_windows()
        waiting = [each.begun for each in self._windows.values() if each.more]
        if waiting:
            self._end_later(min(waiting) + WINDOW_S - self._clock())


def _loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
