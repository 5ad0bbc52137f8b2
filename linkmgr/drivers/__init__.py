"""The network side. It makes endpoints ready and knows no hypervisor.

A driver is found by its name in the entry point group ``linkmgr.drivers``.
"""

from linkmgr.drivers.base import Attachment, NetworkDriver
from linkmgr.drivers.registry import find_driver, known_drivers

__all__ = ["Attachment", "NetworkDriver", "find_driver", "known_drivers"]
