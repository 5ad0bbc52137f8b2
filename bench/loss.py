"""How many frames a swap loses, beside windows of the same length in which nothing is swapped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench.lab import MAC, Lab
from linkmgr.testing import Counted, Sent, Station
from linkmgr.testing.station import Measurement

__all__ = ["FRAMES_PER_SECOND", "IN", "OUT", "Loss", "count_loss"]

OUT, IN = "out", "in"  # as the guest sees it
FRAMES_PER_SECOND = 10_000  # frames per second
FRAMES_PER_WINDOW = 5_000  # per window: half a second
SWAP_DELAY_S = 0.1  # seconds from the first frame to the swap
PAIRS_PER_COUNTER = 15  # windows with and without a swap per counter, which knows 32 tags


@dataclass
class Loss:
    """Frames lost per window, on one network in one direction.

    :param late: swaps that had not ended when the window had.
    """

    network: str
    direction: str
    swap: list[float] = field(default_factory=list)
    quiet: list[float] = field(default_factory=list)
    late: int = 0


async def count_loss(
    lab: Lab, network: str, direction: str, pairs: int, tick: Callable[[], None]
) -> Loss:
    """Measure `pairs` windows with a swap and as many without, which take turns."""
    loss = Loss(network, direction)
    peer = lab.peers[network]
    await lab.settle(network)
    sender, receiver = (lab.guest, peer) if direction == OUT else (peer, lab.guest)
    to = await peer.mac("eth0") if direction == OUT else MAC
    for first in range(0, pairs, PAIRS_PER_COUNTER):
        numbers = range(first, min(first + PAIRS_PER_COUNTER, pairs))
        sent: dict[str, Sent] = {}
        async with receiver.counting("eth0") as counting:
            for number in numbers:
                for kind in ("swap", "quiet") if number % 2 else ("quiet", "swap"):
                    tag = f"{kind}{number}"
                    async with _window(sender, to, tag) as sending:
                        if kind == "swap":
                            loss.late += await _late(lab, network)
                    sent[tag] = sending.report
                    tick()
        for number in numbers:
            loss.swap.append(_lost(f"swap{number}", sent, counting.report))
            loss.quiet.append(_lost(f"quiet{number}", sent, counting.report))
    return loss


@asynccontextmanager
async def _window(sender: Station, to: str, tag: str) -> AsyncIterator[Measurement[Sent]]:
    async with sender.sending(
        "eth0", to, rate=FRAMES_PER_SECOND, count=FRAMES_PER_WINDOW, tag=tag
    ) as sending:
        await asyncio.sleep(SWAP_DELAY_S)
        yield sending


async def _late(lab: Lab, network: str) -> bool:
    now = asyncio.get_running_loop().time
    start = now()
    await lab.swap(network)
    return now() - start > FRAMES_PER_WINDOW / FRAMES_PER_SECOND - SWAP_DELAY_S


def _lost(tag: str, sent: dict[str, Sent], counted: Counted) -> float:
    """Frames that did not arrive; what the sender's own kernel refused is lost as well."""
    return sent[tag].sent + sent[tag].failed - counted.unique(tag)
