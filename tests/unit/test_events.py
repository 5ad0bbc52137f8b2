"""Events reach every listener, and a slow one harms nobody."""

import gc
import weakref

from linkmgr.events import LIMIT, EventKind, Switchboard


async def test_a_listener_hears_what_happens_after_it_began() -> None:
    board = Switchboard()
    board.tell(EventKind.VM_ADDED, "before")
    events = board.listen()
    board.tell(EventKind.PLUGGED, "web1/net0", port="blue")
    board.close()
    heard = [event async for event in events]
    assert [(event.kind, event.subject, event.details["port"]) for event in heard] == [
        (EventKind.PLUGGED, "web1/net0", "blue")
    ]


async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many() -> None:
    board = Switchboard()
    events = board.listen()
    for number in range(LIMIT + 5):
        board.tell(EventKind.LINK, f"vm/{number}")
    first = await anext(events)
    assert (first.kind, first.details) == (EventKind.OVERFLOW, {"lost": 5})
    assert (await anext(events)).subject == "vm/5"


async def test_a_listener_that_closes_hears_no_more_and_is_freed() -> None:
    board = Switchboard()
    events, dropped = board.listen(), board.listen()
    events.close()
    board.tell(EventKind.VM_ADDED, "web1")
    assert [event async for event in events] == []
    freed = [weakref.ref(events), weakref.ref(dropped)]
    del events, dropped
    gc.collect()
    assert [each() for each in freed] == [None, None]
