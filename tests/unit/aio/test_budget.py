"""What a stranger's words may cost in processor time."""

from __future__ import annotations

import time

import pytest

from linkmgr.aio.token_bucket import USERS_MAX, TimeBudget, UserBudgets


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_free_and_what_is_beyond_it_is_waited_for() -> None:
    clock = Clock()
    budget = TimeBudget(burst=0.1, share=0.1, clock=clock)
    assert budget.wait == 0
    budget.spend(0.1)
    assert budget.wait == 0
    budget.spend(0.05)
    assert budget.wait == pytest.approx(0.5)
    clock.now = 0.5
    assert budget.wait == pytest.approx(0)
    clock.now = 100
    budget.spend(0.2)  # what was not used is not saved up
    assert budget.wait == pytest.approx(1.0)


def test_who_waits_as_told_has_his_share_and_no_more() -> None:
    clock = Clock()
    budget = TimeBudget(burst=0.1, share=0.1, clock=clock)
    spent = 0.0
    while clock.now < 100:
        clock.now += budget.wait
        budget.spend(0.03)
        spent += 0.03
    assert 10 <= spent < 10.5


def test_a_block_is_measured_by_the_processor_and_not_by_the_clock() -> None:
    budget = TimeBudget(burst=0.0, share=1.0, clock=Clock())
    with budget.spending():
        time.sleep(0.05)
    assert budget.wait < 0.02
    with budget.spending():
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
    assert budget.wait >= 0.05


def test_each_user_has_a_budget_and_those_who_are_too_many_share_one() -> None:
    users = UserBudgets(burst=0.1, share=0.1)
    users.of(1000).spend(5.0)
    assert users.of(1000).wait > 0
    assert users.of(1001).wait == 0
    for uid in range(2000, 2000 + USERS_MAX):
        users.of(uid).spend(5.0)
    assert users.of(9000) is users.of(9001)


def test_a_user_who_has_been_silent_makes_room() -> None:
    users = UserBudgets(burst=0.1, share=0.1)
    for uid in range(USERS_MAX):
        users.of(uid)
    assert users.of(9000) is not users.of(9001)
