"""Token buckets: what a stranger's words may cost in messages, bytes and processor time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

#: Seconds of processor time that may be spent at once, as at the start of a guest.
BURST_S = 0.1
#: Seconds of it for each second: so much of the loop a stranger may have for good, and no more.
LOOP_SHARE = 0.1


class TokenBucket:
    """A token bucket. More may be taken than is there; it is owed then.

    :param rate: tokens a second.
    :param burst: tokens that it holds, and begins with.
    :param clock: seconds that never go back.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens = burst
        self._at = clock()

    def take(self, amount: float) -> float:
        """Take tokens, there or not; return the seconds until none is owed."""
        self._fill()
        self._tokens -= amount
        return self.wait

    def try_take(self) -> bool:
        """Take a token if there is one."""
        self._fill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    @property
    def wait(self) -> float:
        """Seconds until none is owed; 0 while the burst is not used up."""
        self._fill()
        return max(0.0, -self._tokens / self._rate)

    @property
    def full(self) -> bool:
        """Whether nothing that was taken still counts."""
        self._fill()
        return self._tokens >= self._burst

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class TimeBudget(TokenBucket):
    """A bucket of processor seconds: what one stranger's words may cost in the long run.

    It stops nothing by itself: its user waits for `wait` seconds before the next piece of work.

    :param burst: seconds that may be spent at once.
    :param share: seconds that may be spent in each second after that.
    :param clock: as in `TokenBucket`.
    """

    def __init__(
        self,
        burst: float = BURST_S,
        share: float = LOOP_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(share, burst, clock)

    def spend(self, seconds: float) -> None:
        """Count processor time that was spent; less than nothing gives some back."""
        self.take(seconds)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the processor time of a block in this thread, which must not await."""
        begun = time.thread_time()
        try:
            yield
        finally:
            self.spend(time.thread_time() - begun)


#: Users whose budgets are told apart; those who come while all of them are in use share one. A user
#: with a range of subordinate uids (subuid(5)) can be 65,536.
USERS_MAX = 256


class UserBudgets:
    """A `TimeBudget` for each user.

    :param burst: see `TimeBudget`.
    :param share: see `TimeBudget`.
    """

    def __init__(self, burst: float = BURST_S, share: float = LOOP_SHARE) -> None:
        self._new = partial(TimeBudget, burst, share)
        self._rest = self._new()
        self._by_uid: dict[int, TimeBudget] = {}

    def of(self, uid: int) -> TimeBudget:
        """The user's budget."""
        if (known := self._by_uid.get(uid)) is not None:
            return known
        if len(self._by_uid) >= USERS_MAX:
            for idle in [each for each, its in self._by_uid.items() if its.full]:
                del self._by_uid[idle]
        if len(self._by_uid) >= USERS_MAX:
            return self._rest
        return self._by_uid.setdefault(uid, self._new())
