"""The NIC side: how a guest's NIC is held so that its cable can change. Knows no network driver."""

from linkmgr.wirings.args import hub_args
from linkmgr.wirings.base import Cable, Wiring
from linkmgr.wirings.hub import HubWiring

__all__ = ["Cable", "HubWiring", "Wiring", "hub_args"]
