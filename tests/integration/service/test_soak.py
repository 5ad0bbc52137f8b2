"""A short soak: some hundred swaps through a real service, and nothing is more than before."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from bench.procfs import Memory
from bench.soak.census import SERVICE, Census, changes, growth
from bench.soak.swapping import SWAPS_PER_CYCLE, Soak, make_soak

#: What the service keeps is full after a warm-up as short as this one.
FEW = "[limits]\noperations = 20\nevents = 20\n"
CYCLES = 9  # in two rounds each NIC has one whose swaps are told to the guest


@pytest.mark.timeout(120)
async def test_nothing_is_more_after_some_hundred_swaps_than_before(tmp_path: Path) -> None:
    async with make_soak(tmp_path, guests=1, nics=4, config=FEW) as soak:
        first = await _round(soak, CYCLES)
        last = await _round(soak, CYCLES)
        assert soak.swaps == 2 * CYCLES * SWAPS_PER_CYCLE * 4
        assert soak.events["replugged"] >= soak.swaps
        assert soak.events["failed"] == 0
    assert changes(first, last) == {}
    assert first.counts["links: tun"] == 4
    assert first.counts["web0: fds of /dev/net/tun"] == 4
    # Far more than 2 %, for a short run says little; a leak of an fd's buffers would be more.
    for each in growth([first, last]):
        assert each.percent < 10, each


def test_what_changed_is_told_with_what_it_was() -> None:
    memory = {SERVICE: Memory(rss=100, pss=80, anon=60, shmem=30)}
    first = Census(0, memory, Counter({"links: tun": 4, "files": 3, "gone": 1}))
    more = {SERVICE: Memory(rss=117, pss=88, anon=71, shmem=40)}
    last = Census(9, more, Counter({"links: tun": 5, "files": 3, "new": 2}))
    assert changes(first, last) == {"gone": (1, 0), "links: tun": (4, 5), "new": (0, 2)}
    (grown,) = growth([first, last])
    assert (grown.percent, grown.pss_percent) == (10.0, 10.0)  # 70 KiB of its own, then 77


async def _round(soak: Soak, cycles: int) -> Census:
    return await soak.round(cycles, lambda: None, until=asyncio.get_running_loop().time() + 60)
