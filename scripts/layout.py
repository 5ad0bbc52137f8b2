"""Layered graph drawing (Sugiyama) with bundled edges: positions of boxes and of edge lanes.

An edge that passes a floor has a dummy node there, and the edges to one room share it. Edges
therefore bend only in the gaps between floors, and never cross a box.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP = 16.0  # between two boxes
LANE = 7.0  # between two lanes
ORDERING_SWEEPS = 18  # down and up in turn; each sorts the nodes of a floor by their neighbours
PLACING_SWEEPS = 6  # each moves the nodes, in their order, to the mean of all neighbours


@dataclass(frozen=True)
class Node:
    """A room's box on its floor; or a dummy, where the edges to that room pass another floor."""

    floor: int
    room: str
    dummy: bool = False
    up: bool = False


@dataclass(frozen=True)
class Segment:
    """A part of the edges to one room, between two adjacent floors or on one.

    :param target: the room to which the edges lead.
    :param sources: the rooms from which they come.
    """

    start: Node
    end: Node
    target: str
    sources: frozenset[str]


def edge_segments(
    floors: Sequence[Sequence[str]], arrows: Sequence[tuple[str, str]]
) -> list[Segment]:
    """Cut all edges at the floors that they pass."""
    depth = {room: n for n, floor in enumerate(floors) for room in floor}
    through: dict[tuple[Node, Node, str], set[str]] = defaultdict(set)
    for source, target in arrows:
        here, there = depth[source], depth[target]
        step = 1 if there > here else -1
        between = range(here + step, there, step) if here != there else ()
        lanes = [Node(floor, target, dummy=True, up=step < 0) for floor in between]
        nodes = [Node(here, source), *lanes, Node(there, target)]
        for start, end in pairwise(nodes):
            through[start, end, target].add(source)
    return [Segment(*ends, frozenset(sources)) for ends, sources in through.items()]


def place(
    floors: Sequence[Sequence[str]], segments: Sequence[Segment], widths: Mapping[str, float]
) -> dict[Node, float]:
    """Return the middle of each node, chosen by barycentre so that edges cross seldom."""
    rows: list[list[Node]] = [[Node(n, room) for room in floor] for n, floor in enumerate(floors)]
    near: dict[Node, list[Node]] = defaultdict(list)
    for segment in segments:
        for node, other in ((segment.start, segment.end), (segment.end, segment.start)):
            if node.dummy and node not in rows[node.floor]:
                rows[node.floor].append(node)
            if segment.start.floor != segment.end.floor:
                near[node].append(other)
    at = {node: place for row in rows for node, place in _spread(row, widths, {}).items()}
    for sweep in range(ORDERING_SWEEPS + PLACING_SWEEPS):
        ordering = sweep < ORDERING_SWEEPS
        way = -1 if sweep % 2 == 0 else 1
        for row in rows if way < 0 else reversed(rows):
            wish = {}
            for node in row:
                seen = [at[n] for n in near[node] if not ordering or n.floor - node.floor == way]
                wish[node] = sum(seen) / len(seen) if seen else at[node]
            if ordering:
                row.sort(key=wish.__getitem__)
            at |= _spread(row, widths, wish)
    left = min(at[node] - _half(node, widths) for row in rows for node in row)
    return {node: place - left for node, place in at.items()}


def _half(node: Node, widths: Mapping[str, float]) -> float:
    return 0.0 if node.dummy else widths[node.room] / 2


def _spread(
    row: Sequence[Node], widths: Mapping[str, float], wish: Mapping[Node, float]
) -> dict[Node, float]:
    """Place the nodes of a row as near to their wishes as order and distances allow.

    Least squares, by pooling adjacent violators: nodes whose wishes are too close form a block,
    which takes the mean of the wishes.
    """
    offsets: list[float] = []
    for n, node in enumerate(row):
        gap = LANE if n and node.dummy and row[n - 1].dummy else GAP
        before = offsets[-1] + _half(row[n - 1], widths) + gap if n else 0.0
        offsets.append(before + _half(node, widths))
    blocks: list[tuple[float, int]] = []
    for node, offset in zip(row, offsets, strict=True):
        mean, count = wish.get(node, offset) - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, more = blocks.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        blocks.append((mean, count))
    starts = [mean for mean, count in blocks for _ in range(count)]
    return {node: start + off for node, start, off in zip(row, starts, offsets, strict=True)}
