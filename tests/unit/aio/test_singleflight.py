"""One look for all who ask."""

from __future__ import annotations

import asyncio

import pytest

from linkmgr.aio.singleflight import REST_MAX_S, SingleFlight


class Look:
    """A look that waits for its gate, and remembers."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.under_way = 0
        self.gate = asyncio.Event()
        self.fails: Exception | None = None

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        self.under_way += 1
        assert self.under_way == 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if self.fails is not None:
            raise self.fails
        return number


async def begun(look: Look, number: int) -> None:
    async with asyncio.timeout(5):
        while look.begun < number:  # noqa: ASYNC110 - it knows no test
            await asyncio.sleep(0.001)


async def test_all_who_ask_before_it_begins_share_one_and_who_comes_later_the_next() -> None:
    look = Look()
    flight = SingleFlight(look, "look")
    first = [asyncio.create_task(flight.get()) for _ in range(100)]
    await begun(look, 1)
    second = [asyncio.create_task(flight.get()) for _ in range(100)]
    await asyncio.sleep(0.02)
    assert look.begun == 1
    look.gate.set()
    assert await asyncio.gather(*first, *second) == [1] * 100 + [2] * 100
    assert await flight.get() == 3


async def test_what_nobody_waits_for_any_more_is_cancelled_and_the_next_comes_after_its_end() -> (
    None
):
    look = Look()
    flight = SingleFlight(look, "look")
    asking = [asyncio.create_task(flight.get()) for _ in range(3)]
    await begun(look, 1)
    for each in asking[:2]:
        each.cancel()
    await asyncio.sleep(0.01)
    assert look.cancelled == 0
    asking[2].cancel()
    await asyncio.wait(asking)
    again = asyncio.create_task(flight.get())
    await begun(look, 2)
    assert look.cancelled == 1
    look.gate.set()
    assert await again == 2


async def test_one_that_waits_for_its_turn_is_given_up_too() -> None:
    look = Look()
    flight = SingleFlight(look, "look")
    first = asyncio.create_task(flight.get())
    await begun(look, 1)
    second = asyncio.create_task(flight.get())
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({second})
    look.gate.set()
    assert await first == 1
    assert await flight.get() == 2


async def test_what_fails_fails_for_all_who_waited_and_not_for_the_next() -> None:
    look = Look()
    look.gate.set()
    look.fails = ValueError("no")
    flight = SingleFlight(look, "look")
    said = await asyncio.gather(*(flight.get() for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in said] == [ValueError] * 3
    look.fails = None
    assert await flight.get() == 2


async def test_who_asks_without_end_has_a_quarter_of_the_time() -> None:
    spent = 0.0

    async def look() -> None:
        nonlocal spent
        await asyncio.sleep(0.01)
        spent += 0.01

    flight = SingleFlight(look, "look")
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.5

    async def ask() -> None:
        while loop.time() < end:
            await flight.get()

    await asyncio.gather(*(ask() for _ in range(20)))
    assert spent <= 0.5 / 4 + 0.03
    assert REST_MAX_S <= 1.0


async def test_closing_ends_what_is_under_way() -> None:
    look = Look()
    flight = SingleFlight(look, "look")
    await flight.close()
    asking = asyncio.create_task(flight.get())
    await begun(look, 1)
    await flight.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert look.cancelled == 1
