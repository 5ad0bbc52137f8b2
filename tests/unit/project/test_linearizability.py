"""The checker of histories: it accepts what one at a time could have answered, and nothing else."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linearizability import NEVER, Call, NotLinearizable, Undecided, find_order

Register = int


def write(value: int, called: float, returned: float) -> Call[Register]:
    return Call(f"write {value}", called, returned, lambda _: value)


def read(value: int, called: float, returned: float) -> Call[Register]:
    what = f"read {value}"
    return Call(what, called, returned, lambda now: now if now == value else None, looks=True)


def add(before: int, called: float, returned: float) -> Call[Register]:
    """Add one, and answer what was there before."""
    return Call(
        f"add to {before}", called, returned, lambda now: now + 1 if now == before else None
    )


def order(*calls: Call[Register], start: int = 0, most: int = 10_000) -> list[str]:
    return [call.what for call in find_order(calls, start, most=most)]


def test_calls_one_after_another_keep_their_order() -> None:
    assert order(write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7)) == [
        "write 1", "read 1", "write 2", "read 2",
    ]  # fmt: skip
    assert order() == []


def test_calls_that_overlap_may_have_been_done_in_any_order() -> None:
    assert order(write(1, 0, 9), read(0, 1, 2), read(1, 3, 4)) == ["read 0", "write 1", "read 1"]
    assert order(write(1, 0, 5), write(2, 1, 4), read(1, 6, 7)) == ["write 2", "write 1", "read 1"]


def test_a_read_of_what_was_overwritten_before_it_began_is_found() -> None:
    with pytest.raises(NotLinearizable, match="after 2 of 3 calls, in 2, none of these") as caught:
        order(write(1, 0, 1), write(2, 2, 3), read(1, 4, 5))
    assert "  read 1" in str(caught.value)


def test_a_value_that_goes_back_is_found() -> None:
    with pytest.raises(NotLinearizable):
        order(write(1, 0, 9), read(1, 1, 2), read(0, 3, 4))


def test_a_lost_update_is_found() -> None:
    assert order(add(0, 0, 5), add(1, 1, 4)) == ["add to 0", "add to 1"]
    with pytest.raises(NotLinearizable):
        order(add(0, 0, 5), add(0, 1, 4))


def test_a_call_without_an_outcome_may_have_had_its_effect_or_not_but_not_before_it_began() -> None:
    assert order(write(1, 0, NEVER), read(0, 5, 6)) == ["read 0"]
    assert order(write(1, 0, NEVER), read(0, 5, 6), read(1, 7, 8)) == [
        "read 0", "write 1", "read 1",
    ]  # fmt: skip
    with pytest.raises(NotLinearizable):
        order(read(1, 0, 1), write(1, 2, NEVER))


def test_a_search_that_is_too_large_is_given_up() -> None:
    calls = [add(n, 0, 100 - n) for n in range(12)] + [read(99, 200, 201)]
    with pytest.raises(Undecided, match="no order found in 8 places: after "):
        order(*calls, most=8)
    with pytest.raises(NotLinearizable):
        order(*calls)


def test_two_hundred_overlapping_calls_are_ordered_in_no_time() -> None:
    calls = [add(n, n - 20, n + 0.5) for n in range(200)]
    assert len(order(*calls)) == 200


def by_hand(calls: list[Call[Register]], start: int) -> bool:
    """Try every order."""
    for tried in itertools.permutations(calls):
        if any(b.returned < a.called for a, b in itertools.combinations(tried, 2)):
            continue
        state: int | None = start
        for call in tried:
            state = None if state is None else call.after(state)
        if state is not None:
            return True
    return False


@st.composite
def histories(draw: st.DrawFn) -> list[Call[Register]]:
    calls = []
    for kind in draw(st.lists(st.sampled_from([write, read, add]), max_size=5)):
        called, returned = sorted(draw(st.tuples(st.integers(0, 9), st.integers(0, 9))))
        calls.append(kind(draw(st.integers(0, 2)), called, returned))
    return calls


@given(histories())
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_it_finds_an_order_exactly_when_trying_them_all_does(calls: list[Call[Register]]) -> None:
    try:
        found = find_order(calls, 0)
    except NotLinearizable:
        assert not by_hand(calls, 0)
        return
    assert by_hand(found, 0)
    assert sorted(map(id, found)) == sorted(map(id, calls))
    state: int | None = 0
    for call in found:
        assert state is not None
        state = call.after(state)
    assert state is not None
    assert not any(b.returned < a.called for a, b in itertools.combinations(found, 2))
