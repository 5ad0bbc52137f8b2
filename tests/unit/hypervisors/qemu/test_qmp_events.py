"""Events, fast and slow subscribers, and the last event of all."""

from __future__ import annotations

import asyncio
import gc

import pytest

from linkmgr.hypervisors.qemu.qmp import Monitor, MonitorEvent
from linkmgr.hypervisors.qemu.qmp.transport import QmpTransport
from tests.unit.qmp_peer import connected, nothing_left_behind

__all__ = ["nothing_left_behind"]

DISCONNECTED = MonitorEvent("DISCONNECTED", {})


async def settle(monitor: Monitor) -> None:
    """Wait until everything that the peer sent so far has been read."""
    await monitor.execute("query-status")


async def test_events_come_in_order_with_their_data() -> None:
    async with connected() as (monitor, peer), monitor.events() as events:
        peer.event("STOP")
        peer.event("NIC_RX_FILTER_CHANGED", name="net0", path="/machine/peripheral/net0")
        assert await anext(events) == MonitorEvent("STOP", {})
        event = await anext(events)
        assert event.name == "NIC_RX_FILTER_CHANGED"
        assert event.data["name"] == "net0"


async def test_events_between_subscribing_and_looking_are_kept() -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        peer.event("STOP")
        await settle(monitor)
        events = monitor.events()
        peer.event("RESUME")
        await settle(monitor)
        assert (await anext(events)).name == "RESUME"


async def test_each_subscriber_sees_each_event_and_the_end_once() -> None:
    async with connected() as (monitor, peer):
        streams = [monitor.events() for _ in range(3)]
        peer.event("STOP")
        peer.event("RESUME")
        peer.hang_up()
        for stream in streams:
            assert [event.name async for event in stream] == ["STOP", "RESUME", "DISCONNECTED"]
            assert [event async for event in stream] == []


async def test_who_subscribes_after_the_end_is_told_once() -> None:
    async with connected() as (monitor, peer):
        peer.hang_up()
        await monitor.wait_closed()
        for _ in range(2):
            assert [event async for event in monitor.events()] == [DISCONNECTED]
        await monitor.close()
        assert [event async for event in monitor.events()] == [DISCONNECTED]


async def test_our_own_closing_is_told_too() -> None:
    async with connected() as (monitor, _):
        stream = monitor.events()
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        await monitor.close()
        assert await waiting == DISCONNECTED


async def test_a_slow_subscriber_loses_the_oldest_and_is_told_how_many() -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        slow, fast = monitor.events(limit=3), monitor.events()
        for number in range(10):
            peer.event("DEVICE_DELETED", device=f"e{number}")
        await settle(monitor)  # the monitor itself is not held up
        assert await anext(slow) == MonitorEvent("OVERFLOW", {"lost": 7})
        assert [(await anext(slow)).data["device"] for _ in range(3)] == ["e7", "e8", "e9"]
        for number in range(5):
            peer.event("DEVICE_DELETED", device=f"f{number}")
        await settle(monitor)
        peer.hang_up()
        assert [event.data.get("device", event.name) async for event in slow] == [
            "OVERFLOW",
            "f2",
            "f3",
            "f4",
            "DISCONNECTED",
        ]
        assert len([event async for event in fast]) == 16


async def test_a_stream_that_is_left_gets_nothing_more() -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        async with monitor.events() as events:
            peer.event("STOP")
            async for _ in events:
                break
        peer.event("RESUME")
        await settle(monitor)
        peer.hang_up()
        await monitor.wait_closed()
        assert [event async for event in events] == []


async def test_a_stream_that_is_dropped_is_freed() -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        for _ in range(5):
            monitor.events()
        kept = monitor.events()
        gc.collect()
        assert list(monitor._broadcast._subscriptions) == [kept]


async def test_no_event_is_kept_for_nobody() -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        for _ in range(10):
            peer.event("STOP")
        await settle(monitor)
        assert isinstance(monitor._session, QmpTransport)
        listener = monitor._session._client.events
        assert listener.empty()
        assert listener.history == ()


async def test_waiting_for_an_event_can_be_cancelled() -> None:
    async with connected() as (monitor, peer):
        stream = monitor.events()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.02)
        peer.event("STOP")
        assert (await anext(stream)).name == "STOP"
