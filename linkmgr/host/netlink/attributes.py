"""Netlink attributes (struct nlattr): made and taken apart."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_ATTR = struct.Struct("=HH")
_KIND_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

Attrs = dict[int, memoryview]


def attr(kind: int, value: bytes) -> bytes:
    """An attribute, padded."""
    return _ATTR.pack(_ATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


def each_attr(view: memoryview | None) -> Iterator[tuple[int, memoryview]]:
    """The kinds and values of what follows one another; none for ``None``."""
    at = 0
    while view is not None and at + _ATTR.size <= len(view):
        length, kind = _ATTR.unpack_from(view, at)
        yield kind & _KIND_MASK, view[at + _ATTR.size : at + length]
        at += max(_ATTR.size, (length + 3) & ~3)


def attrs_of(view: memoryview | None) -> Attrs:
    """The values by kind; of a kind that is there twice, the last."""
    return dict(each_attr(view))
