"""What a QEMU sends: how much of it is read, and what it has to look like.

A QEMU that was taken over says what it likes. So each message is measured before it is decoded: a
few megabytes of ``[]`` are half a second of the event loop and a hundred megabytes of memory. What
is wrong with one is said in a sentence of bounded length, never by showing the message.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from qemu.qmp.error import ProtocolError

from linkmgr.hypervisors.qemu.qmp.events import (
    HANDLED_EVENTS,
    ID_MEMBERS,
    MAX_ID_CHARS,
    MonitorEvent,
)
from linkmgr.text.untrusted import is_nested_deeper_than, printable

#: Bytes of a message: the longest that is usual is an error text.
MAX_MESSAGE_BYTES = 64 << 10
#: Bytes of an answer that have a reason to be more. The schema of QEMU 7.2 has 207 KB, that of 8.2
#: 236 KB; `linkmgr.hypervisors.qemu.qmp.info_network` says why a network has less.
MAX_ANSWER_BYTES: Mapping[str, int] = MappingProxyType(
    {"query-qmp-schema": 2 << 20, "human-monitor-command": 256 << 10}
)
#: Objects, lists and members of a message, counted by brackets and commas: 2 ms to decode. A
#: receive filter has the most, up to 4,096 VLANs.
MAX_MESSAGE_ITEMS = 8192
#: The same of an answer that has a reason to have more: the schema of QEMU 8.2 has 18,200.
MAX_ANSWER_ITEMS: Mapping[str, int] = MappingProxyType(
    {"query-qmp-schema": 1 << 16, "human-monitor-command": 1 << 15}
)
#: Levels of objects and lists in a message. The schema of QEMU 11.1 has 5, an answer about block
#: devices one or two for each layer of an image.
MAX_MESSAGE_DEPTH = 64
#: Bytes of an answer that was asked for and that QEMU may send as often as it is asked.
UNMETERED_ANSWER_BYTES = 16 << 10
#: How QEMU itself begins an event, so that one that nobody wants need not be decoded.
_EVENT = re.compile(rb'\{"timestamp": \{[^{}]{0,80}\}, "event": "(?P<name>[A-Z0-9_]{1,64})"')


class NotQmpError(ProtocolError):
    """A message that is none, or too large; says so without showing all of it."""


def is_unwanted(line: bytes) -> bool:
    """Whether a message is an event that linkmgr does nothing about, told without decoding it."""
    match = _EVENT.match(line)
    return match is not None and match["name"].decode() not in HANDLED_EVENTS


def decode(
    data: bytes | str, *, items: int = MAX_MESSAGE_ITEMS, limit: int | None = None
) -> dict[str, Any]:
    """Decode one message, which is an object.

    :param items: how many objects, lists and members it may have.
    :param limit: bytes or characters that it may have, if nobody has measured it yet.
    :raise NotQmpError: it is something else, or has more.
    """
    if limit is not None and len(data) > limit:
        raise NotQmpError(f"a message of more than {limit >> 10} KiB")
    # In a text of theirs these characters count, too: that is cheaper than to know better.
    counted: list[int] = (
        [data.count(each) for each in (b"[", b"{", b",")]
        if isinstance(data, bytes)
        else [data.count(each) for each in "[{,"]
    )
    if sum(counted) > items:
        raise NotQmpError(f"a message of more than {items} parts")
    try:
        said = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise NotQmpError("a message that is nested too deeply") from None
    except ValueError:  # not JSON, not UTF-8, or a number of thousands of digits
        shown = data[:80].decode(errors="replace") if isinstance(data, bytes) else data[:80]
        raise NotQmpError(f"a message that is not JSON: {printable(shown, 80)}") from None
    if not isinstance(said, dict):
        raise NotQmpError(f"a message that is no object: {printable(said, 80)}")
    # Each level takes a bracket, so hardly a message has enough of them to be looked at.
    if counted[0] + counted[1] > MAX_MESSAGE_DEPTH and is_nested_deeper_than(
        said, MAX_MESSAGE_DEPTH
    ):
        raise NotQmpError("a message that is nested too deeply")
    return said


def check_shape(said: Mapping[str, Any]) -> None:
    """Check that a message is an answer that the library can read.

    :raise NotQmpError: it is none.
    """
    if "return" in said and "error" not in said:
        return
    error = said.get("error")
    if (
        not isinstance(error, dict)
        or not isinstance(error.get("class"), str)
        or not isinstance(error.get("desc"), str)
    ):
        raise NotQmpError(f"an answer that is none: {printable(said, 80)}")


def event_of(said: Mapping[str, Any]) -> MonitorEvent | None:
    """The event that a message is, with what linkmgr needs of its data; ``None`` if unwanted.

    :raise NotQmpError: it is malformed.
    """
    name, data = said["event"], said.get("data", {})
    if not isinstance(name, str) or not isinstance(data, dict):
        raise NotQmpError(f"a malformed event: {printable(said, 80)}")
    if (wanted := HANDLED_EVENTS.get(name)) is None:
        return None
    kept = {key: _short(key, data[key]) for key in wanted if key in data}
    return MonitorEvent(name, MappingProxyType(kept))


def _short(key: str, value: object) -> object:
    """A member of an event: a bool, an id as it is, or a text on one line."""
    if value is None or isinstance(value, bool):
        return value
    return (
        value[:MAX_ID_CHARS] if key in ID_MEMBERS and isinstance(value, str) else printable(value)
    )


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # 1e999
        raise ValueError(digits)
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are not JSON
