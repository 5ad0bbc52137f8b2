"""systemd is told what happens, and nothing waits for it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import pytest

from linkmgr.service.systemd import notify
from linkmgr.service.systemd.notify import (
    SystemdNotifier,
    extend_start_loop,
    watchdog_interval,
    watchdog_loop,
)
from tests.unit.notify_lab import FakeServiceManager, manager, notifier

__all__ = ["manager", "notifier"]  # fixtures


def test_each_state_is_told_in_systemds_words(
    manager: FakeServiceManager, notifier: SystemdNotifier
) -> None:
    notifier.ready("3 VMs")
    notifier.reloading()
    notifier.status("two\nlines")
    notifier.watchdog()
    notifier.stopping("bye")
    ready, reloading, *rest = manager.heard()
    assert ready == "READY=1\nSTATUS=3 VMs"
    word, _, usec = reloading.partition("\nMONOTONIC_USEC=")
    assert word == "RELOADING=1"
    assert usec.isdecimal()
    assert rest == ["STATUS=two lines", "WATCHDOG=1", "STOPPING=1\nSTATUS=bye"]


def test_the_address_is_taken_out_of_the_environment(manager: FakeServiceManager) -> None:
    environ = {"NOTIFY_SOCKET": manager.path, "HOME": "/"}
    notifier = SystemdNotifier.from_environment(environ)
    assert environ == {"HOME": "/"}
    assert notifier.connected
    notifier.close()


def test_an_abstract_socket_is_reached() -> None:
    name = f"linkmgr-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(5)
        notifier = SystemdNotifier(f"@{name}")
        notifier.ready()
        notifier.close()
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_without_a_service_manager_nothing_is_sent(address: str | None) -> None:
    notifier = SystemdNotifier(address)
    assert not notifier.connected
    notifier.ready()
    notifier.close()


def test_a_service_manager_that_is_gone_is_logged_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = SystemdNotifier(str(tmp_path / "nobody"))
    with caplog.at_level(logging.WARNING):
        notifier.ready()
    assert "cannot tell systemd ['READY=1']" in caplog.text
    notifier.close()


def fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def fill(notifier: SystemdNotifier) -> int:
    """Send until the queue of the service manager is full; return how many it took."""
    for count in range(10_000):
        notifier.send(f"X={count}")
        if notifier._waiting:
            return count
    raise AssertionError("its queue never filled up")


def test_what_finds_no_room_is_sent_later_and_in_order(
    manager: FakeServiceManager, notifier: SystemdNotifier
) -> None:
    taken = fill(notifier)
    with Path(os.devnull).open() as file:
        notifier.send("FDSTORE=1", fds=[file.fileno()])  # closed here before it is sent
    assert len(manager.heard()) == taken
    notifier.watchdog()
    assert manager.received() == [(f"X={taken}", 0), ("FDSTORE=1", 1), ("WATCHDOG=1", 0)]


def test_what_waits_when_all_ends_leaves_no_fd(manager: FakeServiceManager) -> None:
    before = fds()
    notifier = SystemdNotifier(manager.path)
    fill(notifier)
    with Path(os.devnull).open() as file:
        notifier.send("FDSTORE=1", fds=[file.fileno()])
    notifier.close()
    notifier.close()
    notifier.ready()  # after the end: nothing
    assert fds() == before


def test_a_service_manager_that_never_reads_costs_a_bounded_number_of_messages(
    manager: FakeServiceManager, notifier: SystemdNotifier, caplog: pytest.LogCaptureFixture
) -> None:
    fill(notifier)
    for _ in range(2000):
        notifier.watchdog()
    assert len(notifier._waiting) <= 256
    assert "systemd takes no messages" in caplog.text


def test_the_watchdog_is_fed_twice_in_its_time() -> None:
    environ = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert watchdog_interval(environ) == 15.0
    assert environ == {}
    assert watchdog_interval(environ) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "often"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_watchdog_of_ours_is_not_fed(environ: dict[str, str]) -> None:
    assert watchdog_interval(environ) is None


async def test_it_beats_until_it_is_cancelled(
    manager: FakeServiceManager, notifier: SystemdNotifier
) -> None:
    beating = asyncio.create_task(watchdog_loop(notifier, 0.01))
    await asyncio.sleep(0.1)
    beating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beating
    heard = manager.heard()
    assert set(heard) == {"WATCHDOG=1"}
    assert len(heard) >= 3


async def test_a_start_that_takes_long_asks_for_more_time_but_not_for_ever(
    manager: FakeServiceManager, notifier: SystemdNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_EXTEND_INTERVAL_S", 0.01)
    monkeypatch.setattr(notify, "MAX_START_S", 0.05)
    async with asyncio.timeout(5):
        await extend_start_loop(notifier)
    heard = manager.heard()
    assert set(heard) == {"EXTEND_TIMEOUT_USEC=30000000"}
    assert 1 <= len(heard) <= 5
