"""linkmgr plugs, unplugs and exchanges the network cable of a running QEMU guest.

The words, which every folder but `aio` and `text` may import, are the modules beside the folders:
`model`, `errors`, `events`, `naming`, `api`, `paths`. docs/design.md says where to begin reading.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from linkmgr.api import EventStream, LibvirtLinkApi, LinkApi
    from linkmgr.client import Client
    from linkmgr.errors import LinkmgrError
    from linkmgr.events import Event, EventKind
    from linkmgr.manager.manager import LinkManager
    from linkmgr.model import (
        Affects,
        Connection,
        DomainInfo,
        DomainNicInfo,
        Finding,
        LinkState,
        MonitorTransport,
        Network,
        Nic,
        NicRef,
        NicState,
        NotifyMode,
        OrphanDevice,
        Outcome,
        Port,
        VmInfo,
    )
    from linkmgr.wirings import hub_args

__all__ = [  # noqa: RUF022 - the most important first
    "LinkManager",
    "Client",
    "LinkApi",
    "LibvirtLinkApi",
    "hub_args",
    "Outcome",
    "Nic",
    "NicRef",
    "NicState",
    "LinkState",
    "NotifyMode",
    "Affects",
    "Network",
    "Port",
    "Connection",
    "VmInfo",
    "MonitorTransport",
    "DomainInfo",
    "DomainNicInfo",
    "Event",
    "EventKind",
    "EventStream",
    "Finding",
    "OrphanDevice",
    "LinkmgrError",
]

# Loaded when they are asked for: a client needs neither netlink nor QMP, the service no client.
_HOMES = {
    "LinkManager": "manager.manager",
    "Client": "client",
    "LinkApi": "api",
    "LibvirtLinkApi": "api",
    "hub_args": "wirings.hub.qemu_args",
    "LinkmgrError": "errors",
    "Event": "events",
    "EventKind": "events",
    "EventStream": "api",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"linkmgr.{_HOMES.get(name, 'model')}"), name)
