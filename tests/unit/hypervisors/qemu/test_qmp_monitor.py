"""Commands, batches and descriptors, as a QEMU at the other end sees them."""

from __future__ import annotations

import asyncio
import os
import socket
from types import MappingProxyType

import pytest

from linkmgr.errors import BadRequest, CommandFailed, MonitorError, MonitorTimeout
from linkmgr.hypervisors.qemu.qmp import Monitor, QmpCommand
from linkmgr.hypervisors.qemu.qmp.transport import QmpTransport
from tests.unit.qmp_peer import (
    FakeMonitor,
    Received,
    Refusal,
    connected,
    nothing_left_behind,
    open_fds,
    opened,
)

__all__ = ["nothing_left_behind"]


def _socket_of(monitor: Monitor) -> socket.socket:
    assert isinstance(monitor._session, QmpTransport)
    return monitor._session._sock


async def test_a_command_returns_what_qemu_returns() -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("query-status"))
        peer.answer(await peer.next("query-status"), {"running": True})
        assert await asking == {"running": True}


async def test_arguments_arrive_as_they_are() -> None:
    async with connected() as (monitor, peer):
        arguments = MappingProxyType({"name": "net0 äöü", "up": False, "n": [1, {"a": None}]})
        asking = asyncio.create_task(monitor.execute("set_link", arguments))
        command = await peer.next()
        assert command.arguments == dict(arguments)
        peer.answer(command)
        await asking


async def test_an_error_of_qemu_becomes_command_failed() -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.execute("netdev_del", {"id": "x"}))
        peer.refuse(await peer.next(), "Device 'x' not found", "DeviceNotFound")
        with pytest.raises(CommandFailed, match="refused netdev_del: Device 'x' not found") as info:
            await asking
        assert (info.value.command, info.value.error_class) == ("netdev_del", "DeviceNotFound")
        assert not monitor.closed


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}, "\ud800", b"bytes"])
async def test_arguments_without_a_json_form_are_refused_and_the_monitor_lives(
    value: object,
) -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        with pytest.raises(BadRequest, match="netdev_add have no JSON form"):
            await monitor.execute("netdev_add", {"id": value})
        with pytest.raises(BadRequest):
            await monitor.batch([QmpCommand("stop"), QmpCommand("netdev_add", {"id": value})])
        await monitor.execute("cont")
        assert peer.timeline == ["cont"]


async def test_a_line_of_the_human_monitor_returns_its_text() -> None:
    async with connected() as (monitor, peer):
        asking = asyncio.create_task(monitor.hmp("info network"))
        command = await peer.next("human-monitor-command")
        assert command.arguments == {"command-line": "info network"}
        peer.answer(command, "hub 1\r\n")
        assert await asking == "hub 1\r\n"
        asking = asyncio.create_task(monitor.hmp("info network"))
        peer.answer(await peer.next(), {"not": "text"})
        with pytest.raises(MonitorError):
            await asking


async def test_the_pid_is_that_of_the_other_end() -> None:
    async with connected() as (monitor, _):
        assert monitor.pid == os.getpid()


async def test_a_batch_is_written_before_the_first_answer() -> None:
    async with connected() as (monitor, peer):
        commands = [QmpCommand(f"c{number}") for number in range(20)]
        running = asyncio.create_task(monitor.batch(commands))
        received = [await peer.next() for _ in commands]
        assert peer.timeline == [command.name for command in commands]
        for command in received:
            peer.answer(command, {"of": command.name})
        assert await running == [{"of": command.name} for command in commands]


async def test_a_batch_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write wakes a QEMU that sleeps, and that takes longer than a command."""
    async with connected() as (monitor, peer):
        peer.serve()
        assert isinstance(monitor._session, QmpTransport)
        writer = monitor._session._client._writer
        assert writer is not None
        written: list[bytes] = []
        write = writer.write

        def noted(data: bytes) -> None:
            written.append(data)
            write(data)

        monkeypatch.setattr(writer, "write", noted)
        await monitor.batch([QmpCommand("a"), QmpCommand("b"), QmpCommand("c")])
        await monitor.execute("d")
        assert [data.count(b'"execute"') for data in written] == [3, 1]


async def test_a_batch_has_its_results_in_order_with_failures_in_place() -> None:
    async with connected() as (monitor, peer):
        running = asyncio.create_task(
            monitor.batch([QmpCommand("a"), QmpCommand("b"), QmpCommand("c", {"x": 1})])
        )
        a, b, c = [await peer.next() for _ in range(3)]
        peer.answer(c, "third")  # QEMU answers in order; the ids decide all the same
        peer.refuse(b, "no b")
        peer.answer(a, "first")
        first, second, third = await running
        assert (first, third) == ("first", "third")
        assert isinstance(second, CommandFailed)
        assert second.command == "b"


async def test_an_empty_batch_sends_nothing() -> None:
    async with connected() as (monitor, peer):
        assert await monitor.batch([]) == []
        assert peer.timeline == []


async def test_a_batch_that_times_out_says_that_it_was_sent() -> None:
    async with connected() as (monitor, peer):
        with pytest.raises(MonitorTimeout) as info:
            await monitor.batch([QmpCommand("a"), QmpCommand("b")], timeout=0.05)
        assert info.value.sent
        assert peer.timeline == ["a", "b"]


async def test_calls_run_one_after_another() -> None:
    async with connected() as (monitor, peer):
        first = asyncio.create_task(monitor.execute("a"))
        second = asyncio.create_task(monitor.batch([QmpCommand("b"), QmpCommand("c")]))
        third = asyncio.create_task(monitor.execute("d"))
        a = await peer.next("a")
        await peer.quiet()
        peer.answer(a)
        b, c = await peer.next("b"), await peer.next("c")
        peer.answer(b)
        await peer.quiet()
        peer.answer(c)
        peer.answer(await peer.next("d"))
        await asyncio.gather(first, second, third)


async def test_descriptors_arrive_before_their_getfd_and_in_order() -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        with opened() as null, opened("/dev/zero") as zero:
            fds = {"lm-a": null, "lm-b": zero}
            await monitor.execute("netdev_add", {"id": "t", "fds": "lm-a:lm-b"}, fds=fds)
        assert peer.timeline == ["fd", "getfd lm-a", "fd", "getfd lm-b", "netdev_add"]
        assert open_fds()[peer.named["lm-a"]] == "/dev/null"
        assert open_fds()[peer.named["lm-b"]] == "/dev/zero"


async def test_the_caller_may_close_its_descriptor_at_once() -> None:
    async with connected() as (monitor, peer):
        blocker = asyncio.create_task(monitor.execute("slow"))
        slow = await peer.next("slow")
        null = os.open("/dev/null", os.O_RDONLY)
        adding = asyncio.create_task(monitor.execute("netdev_add", {}, fds={"lm": null}))
        await asyncio.sleep(0)
        os.close(null)
        peer.answer(slow)
        peer.serve()
        await asyncio.gather(blocker, adding)
        assert open_fds()[peer.named["lm"]] == "/dev/null"


async def test_nothing_comes_between_a_descriptor_and_its_getfd() -> None:
    async with connected() as (monitor, peer):
        peer.serve()
        with opened() as null:

            async def one(number: int) -> None:
                if number % 3 == 0:
                    await monitor.batch([QmpCommand(f"plain{number}")] * 3)
                else:
                    fds = {f"lm-{number}-{each}": null for each in range(number % 3)}
                    await monitor.execute(f"use{number}", fds=fds)

            await asyncio.gather(*(one(number) for number in range(50)))
        names = iter(peer.timeline)
        for name in names:
            if name == "fd":
                number = next(names).removeprefix("getfd lm-").split("-")[0]
                rest = [next(names) for _ in range(2 * (int(number) % 3) - 1)]
                assert rest[-1] == f"use{number}"
        assert len(peer.timeline) == 17 * 3 + 17 * 3 + 16 * 5


async def test_a_refused_getfd_means_that_the_command_is_not_sent() -> None:
    def script(command: Received) -> object:
        if str(command) == "getfd lm-b":
            raise Refusal("out of names")
        return None

    async with connected() as (monitor, peer):
        peer.serve(script)
        with opened() as null:
            fds = dict.fromkeys(["lm-a", "lm-b", "lm-c"], null)
            with pytest.raises(CommandFailed, match="out of names") as info:
                await monitor.execute("netdev_add", fds=fds)
        assert info.value.command == "getfd"
        assert peer.timeline == [
            *["fd", "getfd lm-a", "fd", "getfd lm-b"],
            *["closefd lm-a", "closefd lm-b"],
        ]
        assert peer.named == {}


@pytest.mark.parametrize("consumes", [True, False])
async def test_a_refused_command_has_its_descriptors_closed_in_qemu(consumes: bool) -> None:
    async with connected() as (monitor, peer):

        def script(command: Received) -> object:
            if command.name == "netdev_add":
                if consumes:
                    os.close(peer.named.pop("lm-a"))
                raise Refusal("no such hub")
            return None

        peer.serve(script)
        with opened() as null, pytest.raises(CommandFailed, match="no such hub") as info:
            await monitor.execute("netdev_add", fds={"lm-a": null})
        assert info.value.command == "netdev_add"
        assert peer.timeline[-1] == "closefd lm-a"
        assert peer.named == {}


async def test_a_descriptor_that_is_not_open_is_a_bad_request() -> None:
    async with connected() as (monitor, peer):
        said = "descriptor 99999 for lm-b cannot be sent"
        with opened() as null, pytest.raises(BadRequest, match=said):
            await monitor.execute("x", fds={"lm-a": null, "lm-b": 99999})
        assert peer.timeline == []


def fill(peer: FakeMonitor, sock: socket.socket) -> None:
    """Fill the way to a peer that does not read, with blanks that mean nothing in JSON."""
    peer.stop()
    while True:
        try:
            sock.send(b" " * 4096)
        except BlockingIOError:
            try:
                sock.send(b" ")
            except BlockingIOError:
                return


async def test_a_full_socket_is_waited_for() -> None:
    async with connected() as (monitor, peer):
        fill(peer, _socket_of(monitor))
        with opened() as null:
            adding = asyncio.create_task(monitor.execute("netdev_add", fds={"lm": null}))
            await asyncio.sleep(0.05)
            peer.serve()
            peer.resume()
            await adding
        assert peer.timeline == ["fd", "getfd lm", "netdev_add"]


async def test_a_socket_that_stays_full_means_that_nothing_was_sent() -> None:
    async with connected() as (monitor, peer):
        fill(peer, _socket_of(monitor))
        with opened() as null, pytest.raises(MonitorTimeout) as info:
            await monitor.execute("netdev_add", fds={"lm": null}, timeout=0.05)
        assert not info.value.sent
        peer.serve()
        peer.resume()
        await monitor.execute("query-status")
        assert peer.timeline == ["query-status"]


async def test_closing_does_not_wait_for_a_peer_that_does_not_read() -> None:
    async with connected() as (monitor, peer):
        fill(peer, _socket_of(monitor))
        with pytest.raises(MonitorTimeout) as info:
            await monitor.execute("query-status", timeout=0.02)
        assert info.value.sent  # it is queued here and goes out when the peer reads
        async with asyncio.timeout(0.5):
            await monitor.close()
        assert monitor.closed


async def test_answering_waits_until_everything_sent_is_answered() -> None:
    async with connected(timeout=0.02) as (monitor, peer):
        with pytest.raises(MonitorTimeout):
            await monitor.execute("slow")
        waiting = asyncio.create_task(monitor.wait_responsive())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        peer.answer(await peer.next("slow"))
        status = await peer.next("query-status")
        await asyncio.sleep(0.1)
        assert not waiting.done()
        peer.refuse(status, "busy, but alive")
        await waiting


async def test_the_default_time_limit_is_that_of_the_monitor() -> None:
    async with connected(timeout=0.05) as (monitor, peer):
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(MonitorTimeout, match=r"within 0.05 s.*QEMU does not answer"):
            await monitor.execute("query-status")
        assert loop.time() - start < 1
        peer.answer(await peer.next())
        with pytest.raises(MonitorTimeout):
            await monitor.execute("query-status", timeout=0)
        await peer.quiet()
