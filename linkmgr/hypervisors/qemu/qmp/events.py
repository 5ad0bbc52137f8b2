"""Events of a monitor, fanned out to subscribers that may be slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

from linkmgr.aio.broadcast import Broadcast, Subscription

#: Events that a subscriber may be behind before the oldest are dropped.
DEFAULT_QUEUE_LENGTH = 256

#: Events of QEMU that linkmgr does something about, and what of their data it needs. All others are
#: dropped where they come in.
HANDLED_EVENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "STOP": (),
        "RESUME": (),
        "SHUTDOWN": ("guest", "reason"),
        "NIC_RX_FILTER_CHANGED": ("name",),
        "DEVICE_DELETED": ("device",),
    }
)

#: Members of them that are ids of QEMU, and so are kept as they are.
ID_MEMBERS = frozenset({"name", "device"})
#: Characters of an id of QEMU, which has no bound of its own.
MAX_ID_CHARS = 1024

DISCONNECTED = "DISCONNECTED"
OVERFLOW = "OVERFLOW"


@dataclass(frozen=True)
class MonitorEvent:
    """An event of `HANDLED_EVENTS` as QEMU names it, or one of the two that linkmgr adds.

    ``DISCONNECTED`` (no data) ends every subscription. ``OVERFLOW`` (``lost``: how many)
    stands where events were dropped because the subscriber was too slow or QEMU sent too many.
    """

    name: str
    data: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


_FAREWELL = MonitorEvent(DISCONNECTED)


class MonitorEvents(Subscription[MonitorEvent]):
    """One subscriber's events, oldest first: an async iterator, and a context that ends it.

    It is subscribed from the moment that it exists, so nothing is lost between the call and the
    first iteration. Iteration ends after ``DISCONNECTED``.

    :param limit: events kept for a subscriber that is behind.
    """

    def __init__(self, limit: int = DEFAULT_QUEUE_LENGTH) -> None:
        super().__init__(limit, lambda lost: MonitorEvent(OVERFLOW, {"lost": lost}))

    async def aclose(self) -> None:
        """Unsubscribe: iteration ends at once, without ``DISCONNECTED``. Idempotent."""
        self.drop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.drop()


class EventBroadcast(Broadcast[MonitorEvent]):
    """Hands every event to every subscriber without ever waiting for one."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = False

    def subscribe(self, limit: int = DEFAULT_QUEUE_LENGTH) -> MonitorEvents:
        """Make a subscription; after the end it yields only ``DISCONNECTED``."""
        events = MonitorEvents(limit)
        if self._ended:
            events.close(_FAREWELL)
        self.add(events)
        return events

    def end(self) -> None:
        """Publish ``DISCONNECTED`` to every subscription, once. Idempotent."""
        self._ended = True
        self.close(_FAREWELL)
