"""What happens to libvirt's domains, and how it reaches whoever listens."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

LIMIT = 1000  #: events that wait for one slow listener


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
    2: ("booted", "migrated", "restored", "from-snapshot", "wakeup", "recovered"),
    3: ("paused", "migrated", "ioerror", "watchdog", "restored", "from-snapshot", "api-error",
        "postcopy", "postcopy-failed"),
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


class DomainEvents:
    """One listener's events, from the moment it was made: an async iterator.

    A listener that is `LIMIT` events behind has them exchanged for one `CONNECTED`, which means the
    same: compare everything now.
    """

    def __init__(self, hub: DomainHub) -> None:
        self._hub = hub
        self._waiting: deque[DomainEvent] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, event: DomainEvent) -> None:
        """Add an event."""
        if len(self._waiting) >= LIMIT:
            lost = any(each.kind is DomainEventKind.LOST for each in self._waiting)
            self._waiting.clear()
            if lost:
                self._waiting.append(DomainEvent(DomainEventKind.LOST))
            self._waiting.append(_CONNECTED)
        self._waiting.append(event)
        self._wake.set()

    def close(self) -> None:
        """Stop listening: iteration ends, after what waits already. Idempotent."""
        self._closed = True
        self._hub.listeners.discard(self)
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DomainEvent:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popleft()


class DomainHub:
    """Tells every listener of every event."""

    def __init__(self) -> None:
        self.listeners: set[DomainEvents] = set()

    def listen(self, *, connected: bool) -> DomainEvents:
        """Begin to listen now.

        :param connected: whether there is a connection; then `CONNECTED` is the first event.
        """
        events = DomainEvents(self)
        if connected:
            events.put(_CONNECTED)
        self.listeners.add(events)
        return events

    def tell(self, event: DomainEvent) -> None:
        """Tell every listener."""
        for listener in list(self.listeners):
            listener.put(event)

    def close(self) -> None:
        """End every listener's iteration."""
        for listener in list(self.listeners):
            listener.close()
