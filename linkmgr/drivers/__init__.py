"""The network side. It makes endpoints ready and knows no hypervisor.

`base` is what a driver implements, `bridge` the one to begin reading with. A driver is found by its
name in the entry point group ``linkmgr.drivers``. Imports `host`, `text` and the words.
"""

from linkmgr.drivers.base import Attachment, NetworkDriver
from linkmgr.drivers.registry import find_driver, known_drivers

__all__ = ["Attachment", "NetworkDriver", "find_driver", "known_drivers"]
