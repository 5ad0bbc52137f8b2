"""What a stranger's words may cost in processor time."""

from __future__ import annotations

import time

import pytest

from linkmgr.budget import TimeBudget


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
