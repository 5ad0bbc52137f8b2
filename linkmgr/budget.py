"""Budgets of processor time for work on a stranger's words in the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

#: Seconds of processor time that may be spent at once, as at the start of a guest.
BURST = 0.1
#: Seconds of it for each second: so much of the loop a stranger may have for good, and no more.
SHARE = 0.1


class TimeBudget:
    """A token bucket of processor seconds: what one stranger's words may cost in the long run.

    It stops nothing by itself: who spends asks for `wait` before the next piece of work.

    :param burst: seconds that may be spent at once.
    :param share: seconds that may be spent in each second after that.
    :param clock: seconds that never go back.
    """

    def __init__(
        self,
        burst: float = BURST,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._share = share
        self._clock = clock
        self._spent = 0.0
        self._at = clock()

    def spend(self, seconds: float) -> None:
        """Count processor time that was spent."""
        self._spent = self._left_over() + seconds
        self._at = self._clock()

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the processor time of a block in this thread, which must not await."""
        begun = time.thread_time()
        try:
            yield
        finally:
            self.spend(time.thread_time() - begun)

    @property
    def wait(self) -> float:
        """Seconds until there may be more; 0 while the burst is not used up."""
        return max(0.0, (self._left_over() - self._burst) / self._share)

    @property
    def is_unused(self) -> bool:
        """Whether nothing that was spent still counts."""
        return not self._left_over()

    def _left_over(self) -> float:
        return max(0.0, self._spent - (self._clock() - self._at) * self._share)


#: Users whose budgets are told apart; those who come while all of them are in use share one. A user
#: with a range of subordinate uids (subuid(5)) can be 65,536.
USERS_MOST = 256


class UserBudgets:
    """A `TimeBudget` for each user.

    :param burst: see `TimeBudget`.
    :param share: see `TimeBudget`.
    """

    def __init__(self, burst: float = BURST, share: float = SHARE) -> None:
        self._new = partial(TimeBudget, burst, share)
        self._rest = self._new()
        self._by_uid: dict[int, TimeBudget] = {}

    def of(self, uid: int) -> TimeBudget:
        """The user's budget."""
        if (known := self._by_uid.get(uid)) is not None:
            return known
        if len(self._by_uid) >= USERS_MOST:
            for idle in [each for each, its in self._by_uid.items() if its.is_unused]:
                del self._by_uid[idle]
        if len(self._by_uid) >= USERS_MOST:
            return self._rest
        return self._by_uid.setdefault(uid, self._new())
