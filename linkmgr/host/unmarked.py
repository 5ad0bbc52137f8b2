"""Devices that a crash of linkmgr left between their creation and their mark.

The kernel takes no interface alias in the message that makes a device. So the mark comes one
message later, and a kill -9 may come between the two. The group (ip-link(8)) is taken in the first.
Being in it proves nothing by itself, for an operator may use any number: a device that is removed
also has the shape in which linkmgr makes it, and is down and unused. Taps need none of this: they
are gone with the process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from linkmgr.host.links import DEVICE_GROUP, Link
from linkmgr.host.names import CABLE_NAME


def unmarked(links: Iterable[Link], bridges: Collection[str]) -> list[Link]:
    """Find the devices that linkmgr made and did not mark.

    :param links: all devices of this host.
    :param bridges: names of the bridges that linkmgr may have been about to make.
    """
    links = list(links)
    used = {index for link in links for index in (link.master, link.parent) if index}
    return [link for link in links if _is_unmarked(link, bridges) and link.index not in used]


def _is_unmarked(link: Link, bridges: Collection[str]) -> bool:
    if link.group != DEVICE_GROUP or link.alias or link.up or link.master:
        return False
    match link.kind:
        case "macvtap":
            return CABLE_NAME.fullmatch(link.name) is not None
        case "bridge":
            return link.name in bridges and not link.snooping
        case _:
            return False
