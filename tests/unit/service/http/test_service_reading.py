"""A user whose requests take long to be read waits; nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace

import pytest

from linkmgr.aio.token_bucket import TimeBudget
from linkmgr.service.auth.peer import Peer
from linkmgr.service.http.reading import ALL_SHARE, BURST_S, USER_SHARE, ReadMeter
from tests.unit.virtual_time import VirtualTime, virtual_time

COST = 0.005  # CPU seconds of a read of these tests


@pytest.fixture(autouse=True)
async def clock(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VirtualTime]:
    """Shares are of time that passes, of which a busy machine gives a test too little."""
    with virtual_time(monkeypatch) as made:
        for module in ("linkmgr.aio.token_bucket", "linkmgr.service.http.reading"):
            monkeypatch.setattr(f"{module}.TimeBudget", partial(TimeBudget, clock=made.read))
        spent = SimpleNamespace(thread_time=made.read)
        monkeypatch.setattr("linkmgr.service.http.reading.time", spent)
        yield made


class Flood:
    """Connections of one user that always have something to be read."""

    def __init__(
        self, reading: ReadMeter, clock: VirtualTime, uid: int, connections: int = 8
    ) -> None:
        self.peer = Peer(uid, uid, 1, frozenset([uid]))
        self.reads = 0
        self._reading = reading
        self._clock = clock
        self._connections = [_Connection() for _ in range(connections)]
        for each in self._connections:
            reading.add(self.peer, each)

    async def run(self) -> None:
        while True:
            for each in self._connections:
                if each.reads.is_set():
                    with self._reading.spending(self.peer, each):
                        self._clock.pass_by(COST)
                    self.reads += 1
            await asyncio.sleep(0.001)

    def rests(self) -> int:
        return sum(each.rests for each in self._connections)

    def leave(self) -> None:
        for each in self._connections:
            self._reading.remove(self.peer, each)


class _Connection:
    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.rests = 0

    def pause_reading(self) -> None:
        self.rests += 1
        self.reads.clear()

    def resume_reading(self) -> None:
        self.reads.set()


async def flooded(seconds: float, *floods: Flood) -> float:
    """CPU seconds that reading took while all of them flooded."""
    tasks = [asyncio.create_task(each.run()) for each in floods]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return COST * sum(each.reads for each in floods)


def reading() -> ReadMeter:
    return ReadMeter(lambda peer: peer.uid == 0)


async def test_all_connections_of_a_user_together_are_read_within_a_share_of_the_loop(
    clock: VirtualTime,
) -> None:
    flood = Flood(reading(), clock, 1000)
    took = await flooded(2.0, flood)
    assert BURST_S <= took < (BURST_S + 2.0 * USER_SHARE) * 1.5
    before = flood.reads
    await flooded(1.0, flood)
    assert flood.reads > before, "nobody is left waiting for good"


async def test_many_users_together_are_read_within_a_share_of_the_loop(clock: VirtualTime) -> None:
    all_of_them = reading()
    took = await flooded(2.0, *(Flood(all_of_them, clock, uid) for uid in range(1000, 1020)))
    assert took < (BURST_S + 2.0 * ALL_SHARE) * 1.5


async def test_root_is_read_as_fast_as_it_sends_beside_a_user_who_rests(clock: VirtualTime) -> None:
    both = reading()
    user, root = Flood(both, clock, 1000), Flood(both, clock, 0, connections=1)
    await flooded(2.0, user, root)
    assert (root.rests(), user.rests() > 0) == (0, True)
    assert COST * root.reads > 1.0, "most of these two seconds"


async def test_a_connection_that_is_made_while_its_user_rests_rests_too(clock: VirtualTime) -> None:
    made = reading()
    first = Flood(made, clock, 1000)
    await flooded(0.5, first)
    first.leave()
    new = _Connection()
    made.add(first.peer, new)
    assert not new.reads.is_set()
    async with asyncio.timeout(10):
        await new.reads.wait()
