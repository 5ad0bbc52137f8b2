"""Names and addresses for our devices: always valid, never somebody else's."""

from __future__ import annotations

import os
import re
import secrets

from linkmgr.errors import BadName
from linkmgr.text.untrusted import quoted

IFNAME_MAX = 15  #: bytes; IFNAMSIZ of linux/if.h without the final NUL
ALTNAME_MAX = 127  #: bytes; ALTIFNAMSIZ of linux/if.h without the final NUL
_IDENT = re.compile(r"[0-9a-f]{8}")
CABLE_PREFIX = "lm"  #: of the names that linkmgr gives to the devices of cables
#: The name of a cable's device that nobody asked to have another one.
CABLE_NAME = re.compile(CABLE_PREFIX + _IDENT.pattern)


def check_ifname(name: str) -> str:
    """Return `name` if it can name a network device.

    The kernel's own rule (``dev_valid_name``), and no ``%``, which the kernel would fill in.

    :raise BadName: otherwise. The error shows a shortened, escaped form of the name.
    """
    return _checked(name, IFNAME_MAX)


def check_any_name(name: str) -> str:
    """Return `name` if a network device that exists can go by it: its name or an altname.

    :raise BadName: otherwise, as `check_ifname`.
    """
    return _checked(name, ALTNAME_MAX)


def _checked(name: str, at_most: int) -> str:
    if (
        isinstance(name, str)
        and 0 < len(os.fsencode(name)) <= at_most
        and name not in {".", ".."}
        and not any(char in "/:%" or char.isspace() or not char.isprintable() for char in name)
    ):
        return name
    shown = quoted(name)
    raise BadName(
        f"{shown} cannot be the name of a network device",
        hint=f"use 1 to {at_most} bytes without '/', ':', '%' or white space",
    )


def new_id() -> str:
    """Return 8 random hexadecimal digits."""
    return secrets.token_hex(4)


def device_name(prefix: str, ident: str) -> str:
    """Return a device name for an attachment: ``device_name("lm", "3f9a1c2e")`` is ``lm3f9a1c2e``.

    Two attachments never share one, because the whole id is in it.

    :param prefix: at most 7 bytes.
    :param ident: 8 lower-case hexadecimal digits, as from `new_id`.
    :raise BadName: when these do not make a valid name.
    """
    if not _IDENT.fullmatch(ident):
        raise BadName(
            f"{ascii(ident)[:43]} is not the id of an attachment",
            hint="use 8 lower-case hexadecimal digits",
        )
    return check_ifname(prefix + ident)


def private_mac() -> str:
    """Return a random unicast address, locally administered (IEEE 802, second-lowest bit)."""
    first, *rest = secrets.token_bytes(6)
    return _text((first & 0xFC) | 0x02, rest)


def tap_mac() -> str:
    """Return a random address for the host's end of a tap, beginning with ``fe:``.

    A bridge whose address nobody set takes the lowest of its ports: hardly ever this one while it
    has a port of another kind. For one that has none see
    `linkmgr.host.devices.bridge.pin_bridge_mac`.
    """
    return _text(0xFE, list(secrets.token_bytes(5)))


def _text(first: int, rest: list[int]) -> str:
    return ":".join(f"{byte:02x}" for byte in (first, *rest))
