"""A NIC's carrier as linkmgr sets it, changed slowly enough for a guest to see it."""

from __future__ import annotations

import asyncio
import time

from linkmgr.model import NicRef
from linkmgr.wirings import Wiring

#: Seconds that a carrier stays down at least, so that a guest that polls sees it.
HOLD = 0.1
#: Seconds between two looks of Linux at carriers that went away (net/core/link_watch.c). A carrier
#: that is back before the next look has never been away.
LOOK = 1.0
#: Seconds, because the guest's clock starts when its driver handles the interrupt.
MARGIN = 0.1


class LinkWatch:
    """When carriers of one guest changed, by the monotonic clock.

    Linux looks once a second for all its interfaces together, so a change of one NIC can put off
    the look at another.
    """

    def __init__(self) -> None:
        self._changes: dict[NicRef, float] = {}

    def changed(self, nic: NicRef) -> None:
        """Note that the carrier of a NIC changes now."""
        self._changes[nic] = time.monotonic()

    def seen_at(self, nic: NicRef) -> float:
        """When the guest must have seen a carrier that goes away now."""
        now = time.monotonic()
        look = LOOK + MARGIN
        ready = max(now + HOLD, self._changes.get(nic, -look) + look)
        others = (at for other, at in self._changes.items() if other != nic)
        return now + look if any(at > now - look for at in others) else ready


class Carrier:
    """The carrier of one NIC: set it, flap it, know it.

    QEMU has no command that reads a carrier back, so `up` is what was last set, ``None`` before.
    Another monitor may have set it since, and nobody is told.

    :param watch: shared by the NICs of a guest.
    """

    def __init__(self, wiring: Wiring, nic: NicRef, watch: LinkWatch) -> None:
        self._wiring = wiring
        self._nic = nic
        self._watch = watch
        self._seen_at = float("-inf")
        self.up: bool | None = None
        self.changes = 0  #: how often it went up or down, or may have

    async def set(self, *, up: bool, seen: bool = True, anew: bool = False) -> None:
        """Set the carrier if it is not so already.

        :param seen: hold it down until the guest must have noticed, before it goes up.
        :param anew: set it also if it was last set so.
        :raise MonitorError: when QEMU did not confirm; then `up` is ``None``.
        """
        if self.up is up and not anew:
            return
        if up and seen:
            await asyncio.sleep(max(0.0, self._seen_at - time.monotonic()))
        before, self.up = self.up, None
        await self._wiring.set_link(self._nic, up=up)
        self.up = up
        self.changes += before is not up
        if not up:
            self._seen_at = self._watch.seen_at(self._nic)
        self._watch.changed(self._nic)

    def forget(self) -> None:
        """Believe no more what was last set: somebody else may have set it, or loaded a state."""
        self.up = None
        self._seen_at = float("-inf")

    async def flap(self) -> None:
        """Take the carrier down and up again so that the guest notices; up to 1.1 s.

        :raise MonitorError: when QEMU did not confirm; the carrier may then be down.
        """
        await self.set(up=False)
        await self.set(up=True)
