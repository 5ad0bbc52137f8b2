"""Devices that carry our mark and that nothing recorded: found, watched for a while, removed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from linkmgr.errors import LinkmgrError
from linkmgr.host import Host, Link, held_by
from linkmgr.model import Mark, Stray


class Strays:
    """Knows since when each device has been a stray.

    The kernel does not tell how old a device is, so its age counts from when it was first seen.

    :param clock: seconds that never go back.
    """

    def __init__(self, host: Host, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._clock = clock
        self._seen: dict[tuple[int, Mark], float] = {}

    async def look(self, known: Collection[Mark], busy: Collection[str]) -> list[Stray]:
        """Find strays.

        :param known: marks of what is recorded.
        :param busy: owners (NICs, ``network:NAME``) at whose devices nobody may look now.
        """
        return [stray for stray, _ in await self._look(known, busy)]

    async def remove(
        self,
        recorded: Callable[[], tuple[Collection[Mark], Collection[str]]],
        *,
        older_than: float,
        dry_run: bool,
    ) -> list[Stray]:
        """Remove strays, each as far as it can be; what fails is told and the next one is tried.

        A device that a process has open is left alone: it may be a running guest's cable.

        :param recorded: gives `known` and `busy` of `look`, as they are when it is called.
        :param older_than: seconds that it must have been seen for.
        """
        found = []
        for stray, link in await self._look(*recorded()):
            removed, error = False, None
            holders = await asyncio.to_thread(held_by, link)
            known, busy = recorded()
            if stray.mark in known or stray.owner in busy:
                continue  # a verb has begun meanwhile
            if stray.seen < older_than:
                error = f"first seen {stray.seen:.0f} s ago, and {older_than:g} s are asked for"
            elif holders:
                error = f"in use by {', '.join(holders)}"
            elif not dry_run:
                try:
                    removed = await self._host.delete_link(link.index)
                except LinkmgrError as refused:
                    error = str(refused)
            found.append(replace(stray, removed=removed, error=error))
        return found

    async def _look(
        self, known: Collection[Mark], busy: Collection[str]
    ) -> list[tuple[Stray, Link]]:
        now = self._clock()
        links = await self._host.links()
        users = {each for link in links for each in (link.master, link.parent) if each}
        seen: dict[tuple[int, Mark], float] = {}
        found = []
        for link in links:
            mark = link.mark
            if mark is None or mark in known or mark.owner in busy or link.index in users:
                continue
            key = (link.index, mark)
            seen[key] = self._seen.get(key, now)
            age = now - seen[key]
            found.append((Stray(link.name, mark.owner, mark.id, age, removed=False), link))
        self._seen = seen
        return found
