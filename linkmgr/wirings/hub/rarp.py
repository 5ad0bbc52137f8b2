"""The frame by which a network learns where an address is (RFC 903), as QEMU sends it."""

from __future__ import annotations

import struct

_LAYOUT = struct.Struct("!6s6sH HHBBH 6s4s6s4s 18x")  # padded to the least that Ethernet carries
_BROADCAST, _NO_IP = b"\xff" * 6, bytes(4)
_RARP, _ETHERNET, _IPV4, _REQUEST_REVERSE = 0x8035, 1, 0x0800, 3


def rarp(mac: str) -> bytes:
    """Return the frame for an address; switches learn from it, and no station answers it."""
    own = bytes.fromhex(mac.replace(":", ""))
    return _LAYOUT.pack(
        _BROADCAST, own, _RARP, _ETHERNET, _IPV4, 6, 4, _REQUEST_REVERSE, own, _NO_IP, own, _NO_IP
    )
