"""Asking the kernel what there is, through pyroute2."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from linkmgr.errors import HostError
from linkmgr.host.links import Link
from linkmgr.host.names import check_ifname
from linkmgr.host.trouble import Refused, as_error, missing

# linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h
_DUMP, _INTERRUPTED = 0x301, 0x10
_RTM_GETLINK, _RTM_GETNEIGH = 18, 30
_NO_STATS = 8  # RTEXT_FILTER_SKIP_STATS: they cost most of an answer
_AF_BRIDGE = 7
_NUD_PERMANENT = 0x80  # of a bridge: local, frames go up into this host
_NTF_SELF = 0x02  # of the device, not of the bridge
_ATTEMPTS = 10


class Reader:
    """Reads from the network namespace of the thread that makes it, in one event loop."""

    def __init__(self) -> None:
        self._ipr = AsyncIPRoute(ext_ack=True)

    async def open(self) -> None:
        """Connect; before the first request."""
        # pyroute2 does this in each request that finds it undone: two at once would do it twice.
        await self._ipr.setup_endpoint()

    async def close(self) -> None:
        """Close the socket."""
        self._ipr.close()
        await asyncio.sleep(0)  # its transport closes the socket one turn of the loop later

    async def find_link(self, name: int | str) -> Link | None:
        """Return a device, by its name or index, or ``None``."""
        who = {"index": name} if isinstance(name, int) else {"ifname": check_ifname(name)}
        try:
            (message,) = await self._ipr.link("get", ext_mask=_NO_STATS, **who)
        except NetlinkError as error:
            if error.code in {errno.ENODEV, errno.ENXIO}:
                return None
            raise _error(error, f"read {name}") from error
        return Link.from_message(message)

    async def link(self, name: int | str, what_for: str | None = None) -> Link:
        """Return a device, by its name or index.

        :raise LinkMissing: when there is none; it says what it is needed for.
        """
        if (link := await self.find_link(name)) is None:
            raise missing(name, what_for)
        return link

    async def links(self) -> list[Link]:
        """Return all devices."""
        request = ifinfmsg()
        request["attrs"] = [["IFLA_EXT_MASK", _NO_STATS]]
        messages = await self._dump(request, _RTM_GETLINK, "list the network devices")
        return [Link.from_message(message) for message in messages]

    async def name_of(self, index: int | None) -> str:
        """Return the name of a device for a sentence, whether or not it is still there."""
        link = None if index is None else await self.find_link(index)
        return link.name if link else f"the device with index {index}"

    async def forwarding(self, bridge: int, port: int) -> set[str]:
        """Return the addresses that a bridge forwards to this port: learned and static ones."""
        # The kernel selects by port only if it is asked in the words of before 4.12 (rtnl_fdb_dump
        # in net/core/rtnetlink.c), or with strict checking, which changes all other dumps too.
        request = ifinfmsg()
        request["family"], request["index"] = _AF_BRIDGE, port
        request["attrs"] = [["IFLA_MASTER", bridge]]
        return {
            str(entry.get_attr("NDA_LLADDR"))
            for entry in await self._dump(request, _RTM_GETNEIGH, "read a bridge's addresses")
            if entry["ifindex"] == port
            and not entry["state"] & _NUD_PERMANENT
            and not entry["flags"] & _NTF_SELF
        }

    async def _dump(self, request: Any, kind: int, doing: str) -> list[Any]:
        """Return a complete list, also while devices come and go.

        :raise HostError: when there was no quiet moment for it.
        """
        for _ in range(_ATTEMPTS):
            try:
                messages = [
                    message async for message in await self._ipr.nlm_request(request, kind, _DUMP)
                ]
            except NetlinkError as error:
                raise _error(error, doing) from error
            if not any(message["header"]["flags"] & _INTERRUPTED for message in messages):
                return messages
            # The kernel says that something may be missing: whoever believes it deletes too much.
            await asyncio.sleep(0.001)
        raise HostError(
            f"cannot {doing}: they change all the time", hint="try again when the host is calmer"
        )


def _error(error: NetlinkError, doing: str) -> HostError:
    words = str(error.args[1]) if len(error.args) > 1 else None
    return as_error(Refused(error.code, doing, words), "this host")
