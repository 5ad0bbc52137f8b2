"""A NIC's carrier as linkmgr sets it, changed slowly enough for a guest to see it."""

from __future__ import annotations

import asyncio
import time

from linkmgr.model import NicRef
from linkmgr.wirings import Wiring

#: Minimum time for which a carrier stays down, so that a guest that polls sees it.
MIN_DOWN_S = 0.1
#: Interval at which Linux looks at carriers that went down (net/core/link_watch.c). A carrier
#: that is back before the next look has never been away.
LINKWATCH_INTERVAL_S = 1.0
#: Seconds, because the guest's clock starts when its driver handles the interrupt.
LINKWATCH_MARGIN_S = 0.1


class CarrierClock:
    """The times at which carriers of one guest changed, by the monotonic clock.

    Linux looks once a second for all its interfaces together, so a change of one NIC can put off
    the look at another.
    """

    def __init__(self) -> None:
        self._changes: dict[NicRef, float] = {}

    def changed(self, nic: NicRef) -> None:
        """Note that the carrier of a NIC changes now."""
        self._changes[nic] = time.monotonic()

    def noticed_at(self, nic: NicRef) -> float:
        """The time by which the guest must have noticed a carrier that goes down now."""
        now = time.monotonic()
        look = LINKWATCH_INTERVAL_S + LINKWATCH_MARGIN_S
        ready = max(now + MIN_DOWN_S, self._changes.get(nic, -look) + look)
        others = (at for other, at in self._changes.items() if other != nic)
        return now + look if any(at > now - look for at in others) else ready


class Carrier:
    """The carrier of one NIC: set it, flap it, know it.

    QEMU has no command that reads a carrier back, so `up` is what was last set, ``None`` before.
    Another monitor may have set it since, and nobody is told.

    :param clock: shared by the NICs of a guest.
    """

    def __init__(self, wiring: Wiring, nic: NicRef, clock: CarrierClock) -> None:
        self._wiring = wiring
        self._nic = nic
        self._clock = clock
        self._noticed_at = float("-inf")
        self.up: bool | None = None
        self.changes = 0  #: how often it went up or down, or may have

    async def set(self, *, up: bool, hold_down: bool = True, force: bool = False) -> None:
        """Set the carrier if it is not so already.

        :param hold_down: keep it down until the guest must have noticed, before it goes up.
        :param force: set it also if it was last set so.
        :raise MonitorError: when QEMU did not confirm; then `up` is ``None``.
        """
        if self.up is up and not force:
            return
        if up and hold_down:
            await asyncio.sleep(max(0.0, self._noticed_at - time.monotonic()))
        before, self.up = self.up, None
        await self._wiring.set_link(self._nic, up=up)
        self.up = up
        self.changes += before is not up
        if not up:
            self._noticed_at = self._clock.noticed_at(self._nic)
        self._clock.changed(self._nic)

    def invalidate(self) -> None:
        """Invalidate the cached carrier: another monitor or a loaded state may have set it."""
        self.up = None
        self._noticed_at = float("-inf")

    async def flap(self) -> None:
        """Take the carrier down and up again so that the guest notices; up to 1.1 s.

        :raise MonitorError: when QEMU did not confirm; the carrier may then be down.
        """
        await self.set(up=False)
        await self.set(up=True)
