"""What happens to libvirt's domains, and how it reaches subscribers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from linkmgr.aio.broadcast import Broadcast, Subscription

MAX_PENDING_EVENTS = 1000  #: of one slow subscriber


class DomainEventKind(StrEnum):
    """What happened."""

    CONNECTED = "connected"  #: to libvirt; whatever happened before was not seen: compare
    LOST = "lost"  #: the connection to libvirt
    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    STOPPED = "stopped"
    CRASHED = "crashed"
    REBOOTED = "rebooted"
    METADATA = "metadata"
    DEVICE_REMOVED = "device-removed"


@dataclass(frozen=True)
class DomainEvent:
    """One thing that happened to a domain.

    :param uuid: of the domain; empty for `CONNECTED` and `LOST`.
    :param detail: for lifecycle events libvirt's reason, such as ``destroyed``; for `METADATA` the
        namespace, empty for title and description; for `DEVICE_REMOVED` the alias.
    """

    kind: DomainEventKind
    uuid: str = ""
    name: str = ""
    detail: str = ""


_CONNECTED = DomainEvent(DomainEventKind.CONNECTED)

_KINDS = {
    0: DomainEventKind.DEFINED,
    1: DomainEventKind.UNDEFINED,
    2: DomainEventKind.STARTED,
    3: DomainEventKind.SUSPENDED,
    4: DomainEventKind.RESUMED,
    5: DomainEventKind.STOPPED,
    # 6: a guest has shut itself down; STOPPED follows
    7: DomainEventKind.SUSPENDED,
    8: DomainEventKind.CRASHED,
}

#: VIR_DOMAIN_EVENT_* -> its details, in libvirt's order.
_DETAILS = {
    0: ("added", "updated", "renamed", "from-snapshot"),
    1: ("removed", "renamed"),
    2: ("booted", "migrated", "restored", "from-snapshot", "wakeup", "recreated"),
    3: ("paused", "migrated", "ioerror", "watchdog", "restored", "from-snapshot", "api-error",
        "postcopy", "postcopy-failed", "guest-shutdown"),
    4: ("unpaused", "migrated", "from-snapshot", "postcopy", "postcopy-failed"),
    5: ("shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from-snapshot",
        "recreated"),
    7: ("pm-memory", "pm-disk"),
    8: ("panicked", "crashloaded"),
}  # fmt: skip


def lifecycle(event: int, detail: int) -> tuple[DomainEventKind, str] | None:
    """Name a lifecycle event of libvirt and its detail; ``None`` for one that says nothing here.

    A detail that a newer libvirt added is its number.
    """
    kind = _KINDS.get(event)
    if kind is None:
        return None
    known = _DETAILS[event]
    return kind, known[detail] if 0 <= detail < len(known) else str(detail)


class DomainEventSubscription(Subscription[DomainEvent]):
    """One subscriber's events from now on: an async iterator.

    A subscriber that is `MAX_PENDING_EVENTS` events behind loses the oldest ones. It gets
    `CONNECTED` instead, which means the same: compare everything now.
    """

    def __init__(self) -> None:
        super().__init__(MAX_PENDING_EVENTS, lambda _: _CONNECTED)


class DomainEventBroadcast(Broadcast[DomainEvent]):
    """Sends every event to every subscriber."""

    def subscribe(self, *, connected: bool) -> DomainEventSubscription:
        """Make a subscription that begins now.

        :param connected: whether there is a connection; then `CONNECTED` is the first event.
        """
        events = DomainEventSubscription()
        if connected:
            events.put(_CONNECTED)
        self.add(events)
        return events
