"""SVG of the rooms of a house on their floors, and of the arrows between them.

The width of an arrow grows with the number of importing modules; arrows to one room are joined.
An arrow that goes up or sideways, or to a room outside any layer, is red.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import drawsvg as svg

from scripts.layout import Node, Segment, edge_segments, place
from scripts.rooms import House

FONT = 13
LETTER = 8.0  # the width of one, of that size
BOX = 28.0  # the height of a room
BAND = 12.0  # what a floor has above and below its rooms
STOREY = 100.0  # from floor to floor
MARGIN = 24.0
LABELS = 84.0  # the width of the floors' names
LEGEND = 24.0  # the height of what the picture says of itself
HEAD = 9.0  # the length of an arrow's head
COLOURS = ("#4e79a7", "#59a14f", "#b07aa1", "#9c755f", "#499894", "#b6992d", "#6b6ecf", "#79706e")
RED = "#d62728"
SAYS = (
    "Arrows are imports, wider for more importing modules; an arrow that does not go down is red."
)
STYLE = """
text { font-family: "DejaVu Sans", Verdana, sans-serif; }
.stream path { stroke-opacity: .5; }
.stream:hover path { stroke-opacity: 1; }
"""

Point = tuple[float, float]


def draw(house: House, path: Path) -> None:
    """Draw a house into a file."""
    floors = [floor for floor in (house.outside, *house.floors) if floor]
    names = [f"floor {n}" for n in range(len(house.floors), 0, -1)]
    if house.outside:
        names.insert(0, "no layer")
    segments = edge_segments(floors, [(each.source, each.target) for each in house.arrows])
    widths = {room: 18 + LETTER * len(_short(room)) for room in house.rooms}
    at = place(floors, segments, widths)
    wide = max(x + (0 if node.dummy else widths[node.room] / 2) for node, x in at.items())
    tall = STOREY * (len(floors) - 1) + BOX
    size = (wide + LABELS + 2 * MARGIN, tall + LEGEND + 2 * MARGIN)
    origin = (-LABELS - MARGIN, -MARGIN)
    picture = svg.Drawing(*size, origin=origin)
    picture.append_css(STYLE)
    picture.append(svg.Rectangle(*origin, *size, fill="white"))
    for n, name in enumerate(names):
        band = (-LABELS - 10, _top(n), wide + LABELS + 20, BOX + 2 * BAND)
        picture.append(svg.Rectangle(*band, rx=6, fill="#f1f3f5"))
        picture.append(_text(name, -LABELS, n, fill="#868e96"))
    picture.append(svg.Text(SAYS, FONT, -LABELS, tall + MARGIN + LEGEND / 2, fill="#868e96"))
    picture.extend(_streams(house, segments, _ends(segments, at, widths)))
    for n, floor in enumerate(floors):
        for room in floor:
            middle, width = at[Node(n, room)], widths[room]
            box = (middle - width / 2, n * STOREY, width, BOX)
            picture.append(svg.Rectangle(*box, rx=4, fill="white", stroke="#495057"))
            picture.append(_text(_short(room), middle, n, fill="#212529", text_anchor="middle"))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save_svg(str(path))


def _short(room: str) -> str:
    return room.partition(".")[2] or f"{room} itself"


def _top(floor: int) -> float:
    return floor * STOREY - BAND


def _bottom(floor: int) -> float:
    return floor * STOREY + BOX + BAND


def _text(words: str, x: float, floor: int, **style: str) -> svg.Text:
    # Not every program that shows SVG knows `dominant-baseline`.
    return svg.Text(words, FONT, x, floor * STOREY + BOX / 2 + FONT * 0.35, **style)


def _ends(
    segments: Sequence[Segment], at: Mapping[Node, float], widths: Mapping[str, float]
) -> dict[Segment, tuple[float, float]]:
    """Return the x coordinates of the two ends of each segment.

    Segments leave a room side by side, in the order of their ends; an upward one starts beside the
    heads of downward arrows.
    """
    leaving: dict[tuple[Node, bool], list[Segment]] = defaultdict(list)
    for segment in segments:
        if not segment.start.dummy:
            leaving[segment.start, _is_up(segment)].append(segment)
    starts = {segment: at[segment.start] for segment in segments}
    for (node, up), several in leaving.items():
        several.sort(key=lambda segment: at[segment.end])
        right = at[node] + widths[node.room] / 2 - 6
        left = at[node] + HEAD if up else 2 * at[node] - right
        for n, segment in enumerate(several):
            starts[segment] = left + (right - left) * (n + 0.5) / len(several)
    return {segment: (starts[segment], at[segment.end]) for segment in segments}


def _is_up(segment: Segment) -> bool:
    return segment.end.floor < segment.start.floor


def _streams(
    house: House, segments: Sequence[Segment], ends: Mapping[Segment, tuple[float, float]]
) -> Iterable[svg.Group]:
    """The arrows to each room, the red ones last, which lie on top."""
    modules = {(each.source, each.target): each.modules for each in house.arrows}
    wrong = {(each.source, each.target) for each in house.arrows if house.is_wrong(each)}
    colours = dict(zip(house.rooms, cycle(COLOURS), strict=False))
    streams: dict[tuple[bool, str], list[Segment]] = defaultdict(list)
    for segment in segments:
        red = any((source, segment.target) in wrong for source in segment.sources)
        streams[red, segment.target].append(segment)
    for (red, target), drawn in sorted(streams.items()):
        colour = RED if red else colours[target]
        group = svg.Group(class_="stream")
        for segment in drawn:
            count = {source: modules[source, target] for source in sorted(segment.sources)}
            width = round(0.6 + 0.7 * math.sqrt(sum(count.values())), 2)
            curve = _curve(segment, *ends[segment], stroke=colour, stroke_width=width)
            says = ", ".join(f"{_short(source)} ({n})" for source, n in count.items())
            curve.append_title(f"{says} -> {_short(target)}")
            group.append(curve)
        for x, y, way in {
            _tip(segment, ends[segment][1]) for segment in drawn if not segment.end.dummy
        }:
            side, back = HEAD * 0.55, y - way * HEAD
            corners = (x - side, back, x + side, back, x, y)
            group.append(svg.Lines(*corners, close=True, fill=colour))
        yield group


def _tip(segment: Segment, x: float) -> tuple[float, float, int]:
    """Where the head of an arrow is, and whether it points down (1) or up (-1)."""
    if segment.end.floor > segment.start.floor:
        return x, segment.end.floor * STOREY, 1
    return x, segment.end.floor * STOREY + BOX, -1


def _curve(segment: Segment, start: float, end: float, **style: object) -> svg.Path:
    """A segment: straight past its floor if it starts in a lane, then bent in the gap."""
    path = svg.Path(fill="none", **style)
    here, there = segment.start.floor, segment.end.floor
    up = _is_up(segment)
    leave, enter = (_top(here), _bottom(there)) if up else (_bottom(here), _top(there))
    if here == there:
        enter = _bottom(there)
    edge = here * STOREY + (0 if up else BOX)
    if segment.start.dummy:
        edge = _bottom(here) if up else _top(here)
    path.M(start, edge).L(start, leave)
    if here == there:
        dip = leave + 26
        path.C(start, dip, end, dip, end, enter)
    else:
        bend = (leave + enter) / 2
        path.C(start, bend, end, bend, end, enter)
    if not segment.end.dummy:
        _, tip, way = _tip(segment, end)
        path.L(end, tip - way * (HEAD - 1))
    return path
