"""The reports of the ``frames`` program (vm-images/frames.c), which sends and counts frames.

The same program runs in the guest and in the peers of a network, so both ends of a measurement
count in the same way. Frames have ethertype 0x88b5, a tag and a number that starts at 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Counted", "Sent", "TagCount", "parse_counted", "parse_sent"]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a sender did.

    ``failed`` frames were refused by its own kernel (no carrier, queue full) and use up a number.
    """

    sent: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TagCount:
    """The frames of one tag that arrived; ``unique`` leaves out duplicates.

    ``longest_gap_ms`` is the longest time between two frames, ``gap_after`` the number of the frame
    before it.
    """

    frames: int
    unique: int
    reordered: int
    first: int
    last: int
    longest_gap_ms: float
    gap_after: int

    @property
    def missing(self) -> int:
        """How many frames between the first and the last that arrived did not."""
        return self.last - self.first + 1 - self.unique


@dataclass(frozen=True, slots=True)
class Counted:
    """What a counter saw: by tag, what its own kernel dropped, and 0x88b5 frames not asked for."""

    seconds: float
    dropped: int
    foreign: int
    tags: dict[str, TagCount] = field(default_factory=dict)

    def unique(self, tag: str) -> int:
        """How many different frames with this tag arrived; 0 for a tag never seen."""
        return self.tags[tag].unique if tag in self.tags else 0


def parse_sent(output: str) -> Sent:
    """Read the report of ``frames send``.

    :raise ValueError: there is none.
    """
    return Sent(**_report(output))


def parse_counted(output: str) -> Counted:
    """Read the report of ``frames count``.

    :raise ValueError: there is none.
    """
    report = _report(output)
    tags = {tag: TagCount(**count) for tag, count in report.pop("tags").items()}
    return Counted(**report, tags=tags)


def _report(output: str) -> dict[str, Any]:
    for line in output.splitlines():
        if line.startswith("{"):
            report: dict[str, Any] = json.loads(line)
            return report
    raise ValueError(f"no report of the frames program in {output!r}")
