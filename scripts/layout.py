"""Where the rooms of a house are drawn, and along which lanes the arrows between them run.

Each room that is imported has a stream of arrows, which all end in it. A stream passes each floor
between its highest source and the room in a lane of its own, so it crosses no box: everything that
bends lies in the gaps between two floors. This is Sugiyama's way to draw layers, with the lanes of
arrows to one target joined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP = 16.0  # between two boxes
LANE = 7.0  # between two lanes
SWEEPS = 24


@dataclass(frozen=True)
class Stop:
    """What a stream passes on a floor: a room's box, or the lane of the stream to a room."""

    floor: int
    room: str
    lane: bool = False
    up: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of a stream, between two floors next to each other or on one.

    :param target: the room in which the stream ends.
    :param sources: the rooms whose arrows run through it.
    """

    start: Stop
    end: Stop
    target: str
    sources: frozenset[str]


def pieces(floors: Sequence[Sequence[str]], arrows: Sequence[tuple[str, str]]) -> list[Piece]:
    """Cut the streams of all arrows into pieces."""
    depth = {room: n for n, floor in enumerate(floors) for room in floor}
    through: dict[tuple[Stop, Stop, str], set[str]] = defaultdict(set)
    for source, target in arrows:
        here, there = depth[source], depth[target]
        step = 1 if there > here else -1
        between = range(here + step, there, step) if here != there else ()
        lanes = [Stop(floor, target, lane=True, up=step < 0) for floor in between]
        stops = [Stop(here, source), *lanes, Stop(there, target)]
        for start, end in pairwise(stops):
            through[start, end, target].add(source)
    return [Piece(*ends, frozenset(sources)) for ends, sources in through.items()]


def place(
    floors: Sequence[Sequence[str]], parts: Sequence[Piece], widths: Mapping[str, float]
) -> dict[Stop, float]:
    """Choose the middle of each stop, so that the streams are short and cross seldom."""
    rows: list[list[Stop]] = [[Stop(n, room) for room in floor] for n, floor in enumerate(floors)]
    near: dict[Stop, list[Stop]] = defaultdict(list)
    for part in parts:
        for stop, other in ((part.start, part.end), (part.end, part.start)):
            if stop.lane and stop not in rows[stop.floor]:
                rows[stop.floor].append(stop)
            if part.start.floor != part.end.floor:
                near[stop].append(other)
    at = {stop: place for row in rows for stop, place in _spread(row, widths, {}).items()}
    for sweep in range(SWEEPS):
        # Down by what lies above, up by what lies below, at last by both.
        way = -1 if sweep % 2 == 0 else 1
        for row in rows if way < 0 else reversed(rows):
            wish = {}
            for stop in row:
                seen = [
                    at[n] for n in near[stop] if sweep > SWEEPS - 6 or n.floor - stop.floor == way
                ]
                wish[stop] = sum(seen) / len(seen) if seen else at[stop]
            if sweep <= SWEEPS - 6:
                row.sort(key=wish.__getitem__)
            at |= _spread(row, widths, wish)
    left = min(at[stop] - _half(stop, widths) for row in rows for stop in row)
    return {stop: place - left for stop, place in at.items()}


def _half(stop: Stop, widths: Mapping[str, float]) -> float:
    return 0.0 if stop.lane else widths[stop.room] / 2


def _spread(
    row: Sequence[Stop], widths: Mapping[str, float], wish: Mapping[Stop, float]
) -> dict[Stop, float]:
    """Place a row in its order, as near to what each stop wishes as the distances allow.

    Stops that wish to be too near to each other form a block, which takes the mean of their wishes.
    """
    offsets: list[float] = []
    for n, stop in enumerate(row):
        gap = LANE if n and stop.lane and row[n - 1].lane else GAP
        before = offsets[-1] + _half(row[n - 1], widths) + gap if n else 0.0
        offsets.append(before + _half(stop, widths))
    blocks: list[tuple[float, int]] = []
    for stop, offset in zip(row, offsets, strict=True):
        mean, count = wish.get(stop, offset) - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, more = blocks.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        blocks.append((mean, count))
    starts = [mean for mean, count in blocks for _ in range(count)]
    return {stop: start + off for stop, start, off in zip(row, starts, offsets, strict=True)}
