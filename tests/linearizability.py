"""Whether there is a legal order for calls that overlapped: linearizability, of one object.

The search is that of Wing and Gong (Testing and Verifying Concurrent Objects, 1993) with the
memory of Lowe (Testing for Linearizability, 2017): calls are put one after another into an order
that keeps to time and to a sequential model, and no set of calls is tried twice from one state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

NEVER = math.inf  #: when a call returned whose outcome is not known
MAX_STATES = 200_000  # places that are tried, by default

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Call(Generic[S]):
    """One call of a history.

    :param what: for people.
    :param called: when it began, in any unit.
    :param returned: when its outcome was known; `NEVER` when it is not. Then it may take effect at
        any time after it began, or not at all.
    :param after: the state that it leaves behind from a state; ``None`` when what was answered
        cannot have been answered there.
    :param too_late: that it fits in no state that can come after a state, nor in that one. Only
        makes the search shorter.
    :param looks: that it changes nothing, such as a read. It may still say more of the state.
    """

    what: str
    called: float
    returned: float
    after: Callable[[S], S | None]
    too_late: Callable[[S], bool] = lambda _: False
    looks: bool = False


class NotLinearizable(AssertionError):
    """No order of the calls explains what they answered."""


class Undecided(AssertionError):
    """The search was given up."""


@dataclass
class _Place(Generic[S]):
    """A prefix of an order, and the calls that may still be tried behind it."""

    done: int  # a bit per call
    state: S
    left: Iterator[tuple[int, S]] = field(default_factory=lambda: iter(()))
    by: int | None = None  # the last call of the prefix


def find_order(history: Sequence[Call[S]], start: S, *, most: int = MAX_STATES) -> list[Call[S]]:
    """Find an order in which the calls could have been made one at a time.

    :param most: places to try before giving up.
    :return: the calls in that order; those without an outcome that had no effect are left out.
    :raise NotLinearizable: when there is none. Shows how far the search came.
    :raise Undecided: when there were too many places.
    """
    calls = sorted(history, key=lambda call: call.called)
    needed = sum(1 << n for n, call in enumerate(calls) if call.returned < NEVER)
    path = [_Place(0, start)]
    path[0].left = _next(calls, path[0])
    seen: set[tuple[int, S]] = {(0, start)}
    farthest = path[0], -NEVER
    while path:
        here = path[-1]
        if here.done & needed == needed:
            return [calls[place.by] for place in path if place.by is not None]
        open_since = min(c.returned for n, c in enumerate(calls) if not here.done >> n & 1)
        if open_since > farthest[1]:
            farthest = here, open_since
        for number, state in here.left:
            place = _Place(here.done | 1 << number, state, by=number)
            if (place.done, state) not in seen:
                break
        else:
            path.pop()
            continue
        seen.add((place.done, state))
        if len(seen) > most:
            raise Undecided(f"no order found in {most} places: {_told(calls, farthest[0])}")
        place.left = _next(calls, place)
        path.append(place)
    raise NotLinearizable(_told(calls, farthest[0]))


def _told(calls: Sequence[Call[S]], place: _Place[S]) -> str:
    length = place.done.bit_count()
    stuck = "\n".join(f"  {calls[n].what}" for n in _may_follow(calls, place.done))
    return f"after {length} of {len(calls)} calls, in {place.state}, none of these fits:\n{stuck}"


def _may_follow(calls: Sequence[Call[S]], done: int) -> list[int]:
    """The calls that began before any other of the rest had returned, the first to return first."""
    found: list[int] = []
    horizon = NEVER
    for number, call in enumerate(calls):
        if call.called > horizon:
            break  # the others began later still
        if not done >> number & 1:
            found.append(number)
            horizon = min(horizon, call.returned)
    # A call that returned sooner was probably done sooner: most histories need no second try.
    return sorted((n for n in found if calls[n].called <= horizon), key=lambda n: calls[n].returned)


def _next(calls: Sequence[Call[S]], place: _Place[S]) -> Iterator[tuple[int, S]]:
    steps: list[tuple[int, S]] = []
    open_calls = _may_follow(calls, place.done)
    if any(calls[number].too_late(place.state) for number in open_calls):
        return iter(steps)
    for number in open_calls:
        after = calls[number].after(place.state)
        if after is None:
            continue
        if calls[number].looks and after == place.state and calls[number].returned < NEVER:
            # It fits here, and no other call misses it later: no other choice need be tried.
            return iter([(number, after)])
        steps.append((number, after))
    return iter(steps)
