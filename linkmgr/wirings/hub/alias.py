"""The alias of a NIC whose id in QEMU cannot be one."""

from __future__ import annotations

import re
import zlib

from linkmgr.errors import BadName, UnusableNicId
from linkmgr.model import check_name
from linkmgr.text.untrusted import printable

_MAX_KEPT_CHARS = 54  # characters of the id in its alias, which has 63 at most


def alias_of(ident: str) -> str:
    """The alias of the NIC with this id of QEMU: the id, or one made from it that can be a name.

    The one that is made only shows the NIC: nothing is ever asked of QEMU by it.
    """
    try:
        return check_name("NIC", ident)
    except BadName:
        start = re.sub("[^A-Za-z0-9._-]", "_", ident[:_MAX_KEPT_CHARS])
        start = start if start[:1].isalnum() else f"x{start[1:]}"
        return f"{start}-{zlib.crc32(ident.encode(errors='surrogatepass')):08x}"


def unusable_id_error(ident: str) -> UnusableNicId:
    """Make the error for a NIC whose id cannot be a name."""
    return UnusableNicId(
        f"its id in QEMU, {printable(ident, 80)!r}, cannot be the name of a NIC",
        hint="start the guest with an id of at most 63 letters, digits, '.', '_' and '-' for it",
    )
