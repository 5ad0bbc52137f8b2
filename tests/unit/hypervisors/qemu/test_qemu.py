"""A QEMU that connects to us: its monitor comes back by itself, and its end is its process's."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr.errors import BadOption, BadRequest, MonitorUnreachable
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp import Monitor
from linkmgr.hypervisors.qemu.qmp.connector import (
    SocketConnector,
    address_of,
    socket_connector,
    transport_of,
)
from linkmgr.model import MonitorTransport
from tests.unit.qmp_peer import FakeMonitor, nothing_left_behind

__all__ = ["nothing_left_behind"]

UUID = "e4575ab2-7cba-58df-aac2-669e6faac4ef"


class Calls:
    """A connector whose calls come when the test says so."""

    address, transport = f"inbound:{UUID}", MonitorTransport.INBOUND

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.waits = 0
        self._coming: asyncio.Queue[Monitor] = asyncio.Queue()
        self.peers: list[FakeMonitor] = []

    async def connect(self, name: str, timeout: float) -> Monitor:
        self.waits += 1
        try:
            async with asyncio.timeout(timeout):
                return await self._coming.get()
        except TimeoutError as error:
            raise MonitorUnreachable("nobody connected") from error
        finally:
            self.waits -= 1

    def proves_absence(self, error: Exception) -> bool:
        return isinstance(error.__cause__, TimeoutError)

    async def come(self, pid: int | None = None) -> FakeMonitor:
        """QEMU connects."""
        sock, peer = FakeMonitor.pair()
        self.peers.append(peer)
        shaking = asyncio.create_task(peer.handshake())
        monitor = await Monitor.from_socket(sock, name="web1")
        await shaking
        monitor._session.pid = self.pid if pid is None else pid
        peer.serve(lambda command: [] if command.name.startswith("query-qmp") else None)
        self._coming.put_nowait(monitor)
        return peer


class Guest:
    """A process, what it connects with, and what is told of it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sleep", "60"])
        self.calls = Calls(self.process.pid)
        self.told: list[str] = []
        self.qemu: QemuProcess

    async def connect(self, timeout: float = 5.0) -> FakeMonitor:
        peer = await self.calls.come()
        self.qemu = await QemuProcess.connect(
            self.calls, name="VM web1", timeout=timeout,
            handler=lambda event: self.told.append(event.name),
        )  # fmt: skip
        return peer

    async def tells(self, *events: str, within: float = 1.0) -> None:
        async with asyncio.timeout(within):
            while self.told != list(events):  # noqa: ASYNC110 - it is told by a callback
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        await self.qemu.close()
        self.process.kill()
        self.process.wait()
        for peer in self.calls.peers:
            await peer.close()
        while not self.calls._coming.empty():
            await self.calls._coming.get_nowait().close()


@pytest.fixture
async def guest(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guest]:
    async def probed(_: Monitor) -> None:
        return None

    monkeypatch.setattr("linkmgr.hypervisors.qemu.process.probe_features", probed)
    made = Guest()
    yield made
    await made.end()


async def test_a_lost_monitor_is_waited_for_and_goes_on(guest: Guest) -> None:
    peer = await guest.connect()
    assert (guest.qemu.address, guest.qemu.transport) == (
        f"inbound:{UUID}",
        MonitorTransport.INBOUND,
    )
    peer.hang_up()
    await guest.tells("DISCONNECTED")
    assert guest.qemu.alive
    await guest.calls.come()
    await guest.tells("DISCONNECTED", "RECONNECTED")
    await guest.qemu.execute("query-status")


async def test_one_that_hangs_up_again_and_again_is_connected_ever_more_seldom(
    guest: Guest,
) -> None:
    peer = await guest.connect()
    pauses = []
    for number in range(3):
        peer.hang_up()
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(3):
            while not guest.calls.waits:  # noqa: ASYNC110 - a number
                await asyncio.sleep(0.005)
        pauses.append(asyncio.get_running_loop().time() - began)
        peer = await guest.calls.come()
        await guest.tells(*["DISCONNECTED", "RECONNECTED"] * (number + 1))
    assert pauses[0] < 0.2, "one that was lost once"
    assert pauses[1] > 0.7
    assert pauses[2] > 1.5


async def test_one_that_ends_while_it_is_waited_for_is_dead_at_once(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await guest.connect()
    peer.hang_up()
    await guest.tells("DISCONNECTED")
    await asyncio.sleep(0.05)
    assert guest.calls.waits == 1
    guest.process.kill()
    await guest.tells("DISCONNECTED", "DEAD", within=0.5)
    assert await guest.qemu.confirm_exit()
    assert guest.calls.waits == 0
    assert "cannot connect" not in caplog.text


async def test_one_that_ends_before_its_connection_does_is_dead_when_that_ends(
    guest: Guest,
) -> None:
    peer = await guest.connect()
    guest.process.kill()
    await asyncio.sleep(0.05)
    assert guest.qemu.alive  # it may have an answer on its way
    peer.hang_up()
    await guest.tells("DISCONNECTED", "DEAD", within=0.5)


async def test_one_that_is_slow_to_connect_is_waited_for_again(guest: Guest) -> None:
    peer = await guest.connect(timeout=0.1)
    peer.hang_up()
    await asyncio.sleep(1.0)
    assert guest.told == ["DISCONNECTED"]
    assert guest.qemu.alive
    await guest.calls.come()
    await guest.tells("DISCONNECTED", "RECONNECTED")


async def test_another_process_that_connects_in_its_place_means_that_it_is_dead(
    guest: Guest,
) -> None:
    peer = await guest.connect()
    peer.hang_up()
    await guest.tells("DISCONNECTED")
    await guest.calls.come(pid=os.getpid())
    await guest.tells("DISCONNECTED", "DEAD")


async def test_letting_go_ends_the_waiting(guest: Guest) -> None:
    peer = await guest.connect()
    peer.hang_up()
    await guest.tells("DISCONNECTED")
    await guest.qemu.close()
    assert guest.calls.waits == 0


@pytest.mark.parametrize(
    ("address", "transport"),
    [
        ("/run/web1.qmp", MonitorTransport.SOCKET),
        (f"inbound:{UUID}", MonitorTransport.INBOUND),
        (f"libvirt:{UUID}", MonitorTransport.LIBVIRT),
        ("inboundsome", MonitorTransport.SOCKET),
    ],
)
def test_an_address_says_how_its_qemu_is_reached(address: str, transport: MonitorTransport) -> None:
    assert transport_of(address) is transport
    assert address_of(address) == address


def test_an_address_has_one_spelling() -> None:
    assert address_of("/run//x/./web1.qmp") == "/run/x/web1.qmp"
    file = address_of(Path("libvirt:web1"))
    assert (file, transport_of(file)) == ("./libvirt:web1", MonitorTransport.SOCKET)
    assert address_of(file) == file
    assert address_of(f"inbound:{UUID.upper().replace('-', '')}") == f"inbound:{UUID}"
    with pytest.raises(BadRequest, match="'web1' is not a uuid"):
        address_of("inbound:web1")


@pytest.mark.parametrize("nothing", [None, "", 5, b"/run/web1.qmp"])
def test_what_is_no_address_is_refused_in_a_sentence(nothing: Any) -> None:
    with pytest.raises(BadOption, match=r"is not the address of a monitor\. To do: give"):
        address_of(nothing)


def test_without_a_listener_only_sockets_can_be_reached() -> None:
    assert isinstance(socket_connector("/run/web1.qmp"), SocketConnector)
    for address, said in (
        (f"inbound:{UUID}", "no QEMU can connect"),
        ("libvirt:web1", "not asked"),
    ):
        with pytest.raises(MonitorUnreachable, match=said):
            socket_connector(address)
