"""What happens to NICs, told to whoever listens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

LIMIT = 1000  #: events that wait for one slow listener before the oldest are dropped


class EventKind(StrEnum):
    """What happened."""

    VM_ADDED = "vm-added"
    VM_REMOVED = "vm-removed"
    VM_GONE = "vm-gone"  #: QEMU has ended
    VM_UNKNOWN = "vm-unknown"  #: QEMU does not answer
    VM_ANSWERS = "vm-answers"  #: QEMU answers again, and what was left undone is done
    VM_RESUMED = "vm-resumed"  #: its processors run
    VM_PAUSED = "vm-paused"  #: its processors stand still
    VM_SHUT_DOWN = "vm-shut-down"  #: its guest has ended; its QEMU ends too, or was told to stay
    PLUGGED = "plugged"
    REPLUGGED = "replugged"
    UNPLUGGED = "unplugged"
    NETWORK_ADDED = "network-added"
    PORT_ADDED = "port-added"
    NOT_APPLIED = "not-applied"  #: what a domain's XML asks for is not so; the details say why
    FAILED = "failed"  #: a verb failed; the details have its code
    LINK = "link"
    REFUSED = "refused"  #: the guest asked for frames that its port does not give it
    NIC_GONE = "nic-gone"  #: somebody hot-unplugged the NIC
    DRIFT = "drift"  #: a cable is not any more what it should be
    REPAIRED = "repaired"  #: and was plugged again
    OVERFLOW = "overflow"  #: this listener was too slow and has missed events
    RESET = "reset"  #: events may have been missed while the service was away: look at everything


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    :param subject: a VM, a NIC as ``VM/ALIAS``, a network, or a port as ``NETWORK:PORT``.
    """

    kind: EventKind
    subject: str
    details: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Events:
    """One listener's events, from the moment it was made; ends when the manager closes."""

    def __init__(self, hub: Switchboard) -> None:
        self._hub = hub
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._wake = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return Event(EventKind.OVERFLOW, "", {"lost": lost})
        return self._waiting.popleft()

    def put(self, event: Event) -> None:
        """Add an event; the oldest goes when there are too many."""
        if len(self._waiting) >= LIMIT:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(event)
        self._wake.set()

    def close(self) -> None:
        """Stop listening. What waits can still be read."""
        self._closed = True
        self._hub.listeners.discard(self)
        self._wake.set()


class Switchboard:
    """Tells every listener of every event."""

    def __init__(self) -> None:
        self.listeners: set[Events] = set()

    def listen(self) -> Events:
        """Begin to listen now."""
        events = Events(self)
        self.listeners.add(events)
        return events

    def tell(self, kind: EventKind, subject: object, **details: object) -> None:
        """Tell every listener."""
        event = Event(kind, str(subject), MappingProxyType(details))
        for listener in self.listeners:
            listener.put(event)

    def close(self) -> None:
        """End every listener's iteration."""
        for listener in list(self.listeners):
            listener.close()
