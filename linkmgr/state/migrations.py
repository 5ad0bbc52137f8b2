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


def _call_dials_inbound(document: Document) -> Document:
    """2 to 3: what was ``dials:UUID`` is ``inbound:UUID``."""
    if "vm" in document:
        address = str(document.get("qmp"))
        if address.startswith("dials:"):
            document["qmp"] = f"inbound:{address.removeprefix('dials:')}"
        elif address.startswith("inbound:"):  # a relative path, which that was no prefix of
            document["qmp"] = f"./{address}"
    return document


#: For each older format, the step to the next one.
MIGRATIONS: Mapping[int, Callable[[Document], Document]] = MappingProxyType(
    {1: _add_identity, 2: _call_dials_inbound}
)

FORMAT = 1 + len(MIGRATIONS)  #: of what is written now
