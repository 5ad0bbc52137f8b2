"""Garbage collection of orphan devices: ours, and not recorded anywhere.

Most carry our tag; see `linkmgr.host.untagged` for the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from linkmgr.errors import LinkmgrError
from linkmgr.host import Host, NetDevice, fd_holders
from linkmgr.host.devices.macvtap import remove_stale_nodes
from linkmgr.host.fds.holders import UNSEEN_HOLDER
from linkmgr.host.untagged import untagged
from linkmgr.model import OrphanDevice, OwnerTag

log = logging.getLogger(__name__)


#: Seconds that a device without a tag must have been seen for: a linkmgr that runs may be about to
#: tag it, which takes it milliseconds, or as long as the machine does not let it run.
UNTAGGED_MIN_AGE_S = 0.5
_UNTAGGED = OwnerTag("unknown", "unmarked")  # what a device without a tag counts as


class OrphanCollector:
    """Finds orphan devices, and removes those that are old enough.

    The kernel does not tell how old a device is, so its age counts from when it was first seen.

    :param bridges: gives the names of the bridges that networks may have made.
    :param clock: seconds that never go back.
    """

    def __init__(
        self,
        host: Host,
        bridges: Callable[[], Collection[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._bridges = bridges
        self._clock = clock
        self._seen: dict[tuple[int, OwnerTag], float] = {}

    async def find(self, known: Collection[OwnerTag], busy: Collection[str]) -> list[OrphanDevice]:
        """Find orphans, but perhaps none of those that come or go meanwhile.

        :param known: tags of what is recorded.
        :param busy: owners (NICs, ``network:NAME``) at whose devices nobody may look now.
        """
        return [orphan for orphan, _ in await self._find(known, busy, consistent=False)]

    async def remove(
        self,
        recorded: Callable[[], tuple[Collection[OwnerTag], Collection[str]]],
        *,
        older_than: float,
        dry_run: bool,
    ) -> list[OrphanDevice]:
        """Remove orphans, each as far as it can be; after a failure the next one is tried.

        A device that a process has open is left alone: it may be a running guest's cable.

        :param recorded: gives `known` and `busy` of `find`, as they are when it is called.
        :param older_than: seconds that it must have been seen for.
        """
        found = []
        for orphan, device in await self._find_twice(*recorded()):
            removed, error = False, None
            holders = await fd_holders(device)
            if orphan.owner_tag == _UNTAGGED and holders == [UNSEEN_HOLDER]:
                holders = []  # it was never given to a guest
            known, busy = recorded()
            if (
                orphan.owner_tag in known
                or orphan.owner in busy
                or not await self._is_as_seen(device)
            ):
                continue  # a verb has begun meanwhile
            if orphan.seen < older_than:
                error = f"first seen {orphan.seen:.0f} s ago, and {older_than:g} s are asked for"
            elif holders:
                error = f"in use by {', '.join(holders)}"
            elif not dry_run:
                try:
                    removed = await self._host.delete_device(device.index)
                except LinkmgrError as refused:
                    error = str(refused)
            found.append(replace(orphan, removed=removed, error=error))
        return found

    async def remove_untagged(self) -> None:
        """Remove what a linkmgr that was killed had made and not tagged yet."""
        for orphan, device in await self._find_twice((), ()):
            if orphan.owner_tag == _UNTAGGED and await self._is_as_seen(device):
                try:
                    await self._host.delete_device(device.index)
                    log.info("removed %s, which was made and never tagged", device.name)
                except LinkmgrError as error:
                    log.warning(
                        "%s, which was made and never tagged, stays: %s", device.name, error
                    )
        for folder in await asyncio.to_thread(remove_stale_nodes):
            log.info("removed %s, where a device node was left", folder)

    async def _is_as_seen(self, device: NetDevice) -> bool:
        now = await self._host.find_device(device.index)
        return now is not None and now.alias == device.alias and (device.up or not now.up)

    async def _find_twice(
        self, known: Collection[OwnerTag], busy: Collection[str]
    ) -> list[tuple[OrphanDevice, NetDevice]]:
        """As `_find`; once more after a while if there is a device without a tag."""
        found = await self._find(known, busy, consistent=True)
        if any(each.owner_tag == _UNTAGGED and each.seen < UNTAGGED_MIN_AGE_S for each, _ in found):
            await asyncio.sleep(UNTAGGED_MIN_AGE_S)
            found = await self._find(known, busy, consistent=True)
        return found

    async def _find(
        self, known: Collection[OwnerTag], busy: Collection[str], *, consistent: bool
    ) -> list[tuple[OrphanDevice, NetDevice]]:
        now = self._clock()
        devices = await self._host.list_devices(consistent=consistent)
        users = {each for device in devices for each in (device.master, device.parent) if each}
        seen: dict[tuple[int, OwnerTag], float] = {}
        found = []
        bare = {device.index for device in untagged(devices, self._bridges())}
        for device in devices:
            tag = _UNTAGGED if device.index in bare else device.owner_tag
            if tag is None or tag in known or tag.owner in busy or device.index in users:
                continue
            key = (device.index, tag)
            seen[key] = self._seen.get(key, now)
            age = now - seen[key]
            found.append((OrphanDevice(device.name, tag.owner, tag.id, age, removed=False), device))
        # A list that is not consistent may lack one that is as old as ever.
        self._seen = seen if consistent else {**self._seen, **seen}
        return found
