"""Events of NICs, VMs and networks, and the bus that publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

from linkmgr.aio.broadcast import Broadcast, Subscription

SUBSCRIPTION_LIMIT = 1000  #: events that wait for one slow subscriber before the oldest are dropped


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
    NETWORK_REMOVED = "network-removed"
    PORT_REMOVED = "port-removed"
    NOT_APPLIED = "not-applied"  #: what a domain's XML asks for is not so; the details say why
    FAILED = "failed"  #: a verb failed; the details have its code
    LINK = "link"
    REFUSED = "refused"  #: the guest asked for frames that its port does not give it
    NIC_GONE = "nic-gone"  #: somebody hot-unplugged the NIC
    DRIFT = "drift"  #: a cable is not any more what it should be
    REPAIRED = "repaired"  #: and was plugged again
    OVERFLOW = "overflow"  #: this subscriber was too slow and has missed events
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


class EventSubscription(Subscription[Event]):
    """One subscriber's events, from the moment it was made; ends when the manager closes."""

    def __init__(self) -> None:
        super().__init__(
            SUBSCRIPTION_LIMIT, lambda lost: Event(EventKind.OVERFLOW, "", {"lost": lost})
        )


class EventBus:
    """Publishes every event to every subscriber."""

    def __init__(self) -> None:
        self._broadcast: Broadcast[Event] = Broadcast()

    def subscribe(self) -> EventSubscription:
        """Subscribe from now on."""
        subscription = EventSubscription()
        self._broadcast.add(subscription)
        return subscription

    def publish(self, kind: EventKind, subject: object, **details: object) -> None:
        """Give an event to every subscriber."""
        self._broadcast.publish(Event(kind, str(subject), MappingProxyType(details)))

    def close(self) -> None:
        """End every subscriber's iteration."""
        self._broadcast.close()
