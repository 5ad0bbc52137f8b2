"""Events reach every listener, and a slow one harms nobody."""

import gc
import weakref

from linkmgr.events import SUBSCRIPTION_LIMIT, EventBus, EventKind


async def test_a_listener_hears_what_happens_after_it_began() -> None:
    bus = EventBus()
    bus.publish(EventKind.VM_ADDED, "before")
    events = bus.subscribe()
    bus.publish(EventKind.PLUGGED, "web1/net0", port="blue")
    bus.close()
    heard = [event async for event in events]
    assert [(event.kind, event.subject, event.details["port"]) for event in heard] == [
        (EventKind.PLUGGED, "web1/net0", "blue")
    ]


async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many() -> None:
    bus = EventBus()
    events = bus.subscribe()
    for number in range(SUBSCRIPTION_LIMIT + 5):
        bus.publish(EventKind.LINK, f"vm/{number}")
    first = await anext(events)
    assert (first.kind, first.details) == (EventKind.OVERFLOW, {"lost": 5})
    assert (await anext(events)).subject == "vm/5"


async def test_a_listener_that_closes_hears_no_more_and_is_freed() -> None:
    bus = EventBus()
    events, dropped = bus.subscribe(), bus.subscribe()
    events.close()
    bus.publish(EventKind.VM_ADDED, "web1")
    assert [event async for event in events] == []
    freed = [weakref.ref(events), weakref.ref(dropped)]
    del events, dropped
    gc.collect()
    assert [each() for each in freed] == [None, None]
