"""The NIC side: how a guest's NIC is held so that its cable can change. Knows no network driver.

`base` is what a wiring implements, `hub` the one that there is, `endpoints` the host's devices of
its cables. Imports `host`, `hypervisors`, `text` and the words.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from linkmgr.wirings.hub.qemu_args import hub_args

if TYPE_CHECKING:
    from linkmgr.wirings.base import Cable, Wiring
    from linkmgr.wirings.hub.wiring import HubWiring

__all__ = ["Cable", "HubWiring", "Wiring", "hub_args"]

# Loaded when they are asked for: who only makes QEMU's arguments needs neither netlink nor QMP.
_HOMES = {"Cable": "base", "Wiring": "base", "HubWiring": "hub.wiring"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"linkmgr.wirings.{_HOMES[name]}"), name)
