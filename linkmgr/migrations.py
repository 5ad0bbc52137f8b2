"""The formats that the state directory had, and what makes each one into the next.

A step gets one document, of whatever kind, and returns it in the next format. Each step is tested
with the state directory that an earlier linkmgr left (tests/data).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

Document = dict[str, Any]


def _add_identity(document: Document) -> Document:
    """1 to 2: a VM says who added it and whose its monitor is. Of an older one nothing is known."""
    if "vm" in document:
        document |= {"adder": None, "owner": None, "uuid": None}
    return document


#: For each older format, the step to the next one.
MIGRATIONS: Mapping[int, Callable[[Document], Document]] = MappingProxyType({1: _add_identity})

FORMAT = 1 + len(MIGRATIONS)  #: of what is written now
