"""Draw the rooms of a house on their floors, and the arrows between them, as SVG.

An arrow is the wider the more modules import; those to one room are joined on their way. Red is
what goes up or sideways, or to a room outside any layer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import drawsvg as svg

from scripts.layout import Piece, Stop, pieces, place
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
SAYS = "Arrows are imports, the wider the more modules; red is what does not go down a floor."
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
    parts = pieces(floors, [(each.source, each.target) for each in house.arrows])
    widths = {room: 18 + LETTER * len(_short(room)) for room in house.rooms}
    at = place(floors, parts, widths)
    wide = max(x + (0 if stop.lane else widths[stop.room] / 2) for stop, x in at.items())
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
    picture.extend(_streams(house, parts, _ends(parts, at, widths)))
    for n, floor in enumerate(floors):
        for room in floor:
            middle, width = at[Stop(n, room)], widths[room]
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
    parts: Sequence[Piece], at: Mapping[Stop, float], widths: Mapping[str, float]
) -> dict[Piece, tuple[float, float]]:
    """Where each piece starts and ends, from left to right.

    What leaves a room does so side by side, in the order of where it leads; what goes up starts
    beside the head of what comes down.
    """
    leaving: dict[tuple[Stop, bool], list[Piece]] = defaultdict(list)
    for part in parts:
        if not part.start.lane:
            leaving[part.start, _is_up(part)].append(part)
    starts = {part: at[part.start] for part in parts}
    for (stop, up), several in leaving.items():
        several.sort(key=lambda part: at[part.end])
        right = at[stop] + widths[stop.room] / 2 - 6
        left = at[stop] + HEAD if up else 2 * at[stop] - right
        for n, part in enumerate(several):
            starts[part] = left + (right - left) * (n + 0.5) / len(several)
    return {part: (starts[part], at[part.end]) for part in parts}


def _is_up(part: Piece) -> bool:
    return part.end.floor < part.start.floor


def _streams(
    house: House, parts: Sequence[Piece], ends: Mapping[Piece, tuple[float, float]]
) -> Iterable[svg.Group]:
    """The arrows to each room, the red ones last, which lie on top."""
    modules = {(each.source, each.target): each.modules for each in house.arrows}
    wrong = {(each.source, each.target) for each in house.arrows if house.is_wrong(each)}
    colours = dict(zip(house.rooms, cycle(COLOURS), strict=False))
    streams: dict[tuple[bool, str], list[Piece]] = defaultdict(list)
    for part in parts:
        red = any((source, part.target) in wrong for source in part.sources)
        streams[red, part.target].append(part)
    for (red, target), drawn in sorted(streams.items()):
        colour = RED if red else colours[target]
        group = svg.Group(class_="stream")
        for part in drawn:
            count = {source: modules[source, target] for source in sorted(part.sources)}
            width = round(0.6 + 0.7 * math.sqrt(sum(count.values())), 2)
            curve = _curve(part, *ends[part], stroke=colour, stroke_width=width)
            says = ", ".join(f"{_short(source)} ({n})" for source, n in count.items())
            curve.append_title(f"{says} -> {_short(target)}")
            group.append(curve)
        for x, y, way in {_tip(part, ends[part][1]) for part in drawn if not part.end.lane}:
            side, back = HEAD * 0.55, y - way * HEAD
            corners = (x - side, back, x + side, back, x, y)
            group.append(svg.Lines(*corners, close=True, fill=colour))
        yield group


def _tip(part: Piece, x: float) -> tuple[float, float, int]:
    """Where the head of an arrow is, and whether it points down (1) or up (-1)."""
    if part.end.floor > part.start.floor:
        return x, part.end.floor * STOREY, 1
    return x, part.end.floor * STOREY + BOX, -1


def _curve(part: Piece, start: float, end: float, **style: object) -> svg.Path:
    """A piece: straight past its floor if it starts in a lane, then bent in the gap."""
    path = svg.Path(fill="none", **style)
    here, there = part.start.floor, part.end.floor
    up = _is_up(part)
    leave, enter = (_top(here), _bottom(there)) if up else (_bottom(here), _top(there))
    if here == there:
        enter = _bottom(there)
    edge = here * STOREY + (0 if up else BOX)
    if part.start.lane:
        edge = _bottom(here) if up else _top(here)
    path.M(start, edge).L(start, leave)
    if here == there:
        dip = leave + 26
        path.C(start, dip, end, dip, end, enter)
    else:
        bend = (leave + enter) / 2
        path.C(start, bend, end, bend, end, enter)
    if not part.end.lane:
        _, tip, way = _tip(part, end)
        path.L(end, tip - way * (HEAD - 1))
    return path
