"""Rate limits on what one QEMU sends unasked, so that it costs the other guests nothing.

All guests share one event loop. Each message costs it some ten microseconds, and the library goes
on to the next without a pause for as long as there is one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from linkmgr.aio.token_bucket import TokenBucket
from linkmgr.hypervisors.qemu.qmp.events import OVERFLOW, MonitorEvent

#: Messages a second that a QEMU may send unasked for as long as it likes: one and a half percent
#: of a processor. A storm of I/O errors on a guest's disk stays below.
MESSAGES_PER_SECOND = 1000
#: Bytes a second that it may send unasked for as long as it likes: 250 to each of those messages.
BYTES_PER_SECOND = 256 << 10
#: Seconds' worth of both that may come at once: a guest that starts, or is resumed.
BURST_S = 0.5
#: Seconds that nothing is read from a QEMU that said too much: rather seldom and long than often
#: and short, for each pause is a timer.
FLOOD_PAUSE_S = 0.1
#: Seconds for which it may go on saying too much before it is disconnected. What it has not got rid
#: of until then grows in its own memory.
FLOOD_TIMEOUT_S = 10.0
#: Events a second that are handed on, for each goes to every subscriber; the others are counted.
EVENTS_PER_SECOND = 10
#: Events that may come at once: each NIC of a large guest has its receive filter set at the boot.
EVENTS_BURST = 100
#: Seconds until it is told how many were left out.
OVERFLOW_DELAY_S = 1.0
#: Messages after which the loop has its turn, whatever was said.
MESSAGES_PER_TURN = 32


class FloodError(Exception):
    """It has said too much for too long."""


class MessageRateLimit:
    """The rate limit of the messages that one connection sends unasked."""

    def __init__(self) -> None:
        self._messages = TokenBucket(MESSAGES_PER_SECOND, MESSAGES_PER_SECOND * BURST_S)
        self._bytes = TokenBucket(BYTES_PER_SECOND, BYTES_PER_SECOND * BURST_S)
        self._since: float | None = None  # when it began to say too much

    def take(self, size: int) -> float:
        """Take one message that nobody asked for into account.

        :param size: bytes.
        :return: seconds in which nothing more is to be read.
        :raise FloodError: it has gone on for too long.
        """
        if self._since is not None and self._messages.full and self._bytes.full:
            self._since = None
        owed = max(self._messages.take(1), self._bytes.take(size))
        if not owed:
            return 0.0
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > FLOOD_TIMEOUT_S:
            raise FloodError(
                f"it sent more than {MESSAGES_PER_SECOND} messages or {BYTES_PER_SECOND >> 10} KiB "
                f"a second unasked for {FLOOD_TIMEOUT_S:g} s"
            )
        return max(FLOOD_PAUSE_S, owed)


class EventRateLimit:
    """Hands on events up to a rate; of those above it, only how many they were.

    :param on_event: called with each event; must not raise or block.
    """

    def __init__(self, on_event: Callable[[MonitorEvent], None]) -> None:
        self._on_event = on_event
        self._bucket = TokenBucket(EVENTS_PER_SECOND, EVENTS_BURST)
        self._missed = 0
        self._overflow_timer: asyncio.TimerHandle | None = None

    def __call__(self, event: MonitorEvent) -> None:
        """Take an event of QEMU."""
        if self._bucket.try_take():
            self._on_event(event)
            return
        self._missed += 1
        if self._overflow_timer is None:
            loop = asyncio.get_running_loop()
            self._overflow_timer = loop.call_later(OVERFLOW_DELAY_S, self._report_missed)

    def close(self) -> None:
        """Tell no more."""
        if self._overflow_timer is not None:
            self._overflow_timer.cancel()

    def _report_missed(self) -> None:
        missed, self._missed, self._overflow_timer = self._missed, 0, None
        self._on_event(MonitorEvent(OVERFLOW, {"lost": missed}))
