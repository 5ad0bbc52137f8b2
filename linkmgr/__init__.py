"""linkmgr plugs, unplugs and exchanges the network cable of a running QEMU guest."""

from linkmgr.checks import Finding
from linkmgr.errors import LinkmgrError
from linkmgr.events import Event, EventKind, Events
from linkmgr.manager import LinkManager, Outcome
from linkmgr.model import (
    Connection,
    LinkState,
    Network,
    Nic,
    NicRef,
    NicState,
    Notify,
    Port,
)
from linkmgr.wirings import hub_args

__all__ = [  # noqa: RUF022 - the most important first
    "LinkManager",
    "hub_args",
    "Outcome",
    "Nic",
    "NicRef",
    "NicState",
    "LinkState",
    "Notify",
    "Network",
    "Port",
    "Connection",
    "Event",
    "EventKind",
    "Events",
    "Finding",
    "LinkmgrError",
]
