"""`Libvirt` without a daemon: over libvirt's own test driver, and what only a faked call shows."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from linkmgr.errors import LibvirtRefused, LibvirtUnreachable
from linkmgr.libvirt.client import api_calls, connection, libvirt_python, pool
from linkmgr.libvirt.client.connection import Libvirt, default_run_dir
from linkmgr.libvirt.client.eventloop import READABLE, WRITABLE, EventLoop
from linkmgr.libvirt.client.events import (
    MAX_PENDING_EVENTS,
    DomainEvent,
    DomainEventBroadcast,
    DomainEventKind,
    lifecycle,
)
from linkmgr.libvirt.client.handle import LibvirtConnection
from linkmgr.libvirt.client.pool import HELD_AFTER_S, MAX_RUNNING, ConnectionPool
from linkmgr.libvirt.client.worker import NoResultError, WorkerThread
from tests.own_time import own_time

URI = "test:///default"
K = DomainEventKind


@asynccontextmanager
async def running(uri: str = URI) -> AsyncIterator[Libvirt]:
    libvirt = Libvirt(uri)
    task = asyncio.create_task(libvirt.run())
    try:
        yield libvirt
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)  # what libvirt wants freed is freed in the loop


async def held(
    libvirt: Libvirt, seconds: float, timeout: float = 5.0, domain: str = "web1"
) -> None:
    """A call that libvirt holds for so long."""
    await libvirt._call("sleeping", domain, lambda _api, _made: time.sleep(seconds), timeout)


# --- events ---------------------------------------------------------------------------------------
async def test_a_listener_hears_of_the_connection_first_whenever_it_comes() -> None:
    async with running() as libvirt:
        early = libvirt.events()
        assert (await anext(early)).kind is K.CONNECTED
        assert (await anext(libvirt.events())).kind is K.CONNECTED
        (view,) = await libvirt.domains()
        assert (view.name, view.state, view.active, view.pid) == ("test", "running", True, None)
        await libvirt._call(
            "a rest", "test", lambda _, made: made.lookupByName("test").suspend(), timeout=5
        )
        async with asyncio.timeout(5):
            event = await anext(early)
        assert event == DomainEvent(K.SUSPENDED, view.uuid, "test", "paused")
    async with asyncio.timeout(1):
        assert [each async for each in early] == []  # it ends with `run`
    assert not libvirt.connected
    with pytest.raises(LibvirtUnreachable, match="there is no connection"):
        await libvirt.domains()


#: Of the libvirts whose details were looked up. What a newer one adds is told as its number.
NEWEST = 12_008_000


def test_a_detail_that_the_libvirt_of_debian_12_does_not_have_yet_has_its_name() -> None:
    assert lifecycle(2, 5) == (K.STARTED, "recreated")
    assert lifecycle(5, 7) == (K.STOPPED, "recreated")
    assert lifecycle(3, 9) == (K.SUSPENDED, "guest-shutdown")


@pytest.mark.newer_debian
def test_every_lifecycle_event_and_detail_of_libvirt_has_its_name(
    differs: Callable[[str, str], None],
) -> None:
    libvirt = libvirt_python.load_libvirt_python().libvirt
    names = {
        "DEFINED": K.DEFINED, "UNDEFINED": K.UNDEFINED, "STARTED": K.STARTED,
        "SUSPENDED": K.SUSPENDED, "RESUMED": K.RESUMED, "STOPPED": K.STOPPED,
        "PMSUSPENDED": K.SUSPENDED, "CRASHED": K.CRASHED,
    }  # fmt: skip
    for word, kind in names.items():
        event = getattr(libvirt, f"VIR_DOMAIN_EVENT_{word}")
        prefix = f"VIR_DOMAIN_EVENT_{word}_"
        details = {value: name.removeprefix(prefix).lower().replace("_", "-")
                   for name, value in vars(libvirt).items() if name.startswith(prefix)}  # fmt: skip
        if word == "PMSUSPENDED":
            details = {0: "pm-memory", 1: "pm-disk"}
        for number, detail in details.items():
            said = lifecycle(event, number)
            if said != (kind, str(number)) or libvirt.getVersion() <= NEWEST:
                assert said == (kind, detail), word
        assert lifecycle(event, 99) == (kind, "99")
    assert lifecycle(libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, 0) is None
    recreated = hasattr(libvirt, "VIR_DOMAIN_EVENT_STARTED_RECREATED")
    differs("event of a guest that libvirt recreates", "recreated" if recreated else "none")
    assert lifecycle(99, 0) is None


async def test_a_listener_that_is_too_slow_is_told_to_compare_instead() -> None:
    broadcast = DomainEventBroadcast()
    slow = broadcast.subscribe(connected=True)
    broadcast.publish(DomainEvent(K.LOST))
    for number in range(MAX_PENDING_EVENTS):
        broadcast.publish(DomainEvent(K.STARTED, str(number)))
    broadcast.close()
    broadcast.close()
    kinds = [event.kind async for event in slow]
    assert kinds == [K.CONNECTED] + MAX_PENDING_EVENTS * [K.STARTED]


# --- calls ----------------------------------------------------------------------------------------
async def test_eight_domains_that_hang_delay_no_ninth_and_are_busy_themselves() -> None:
    """Each of them came at once: none waits until the one before is seen to hang."""
    before = threading.active_count()
    async with running() as libvirt:
        await libvirt.wait_connected(timeout=5)
        hung = [f"hung{number}" for number in range(8)]
        stuck = [asyncio.create_task(held(libvirt, 2.0, domain=each)) for each in hung]
        await asyncio.sleep(0)
        began = own_time(os.getpid())
        assert (await libvirt.domain("test")).name == "test"
        assert own_time(os.getpid()) - began < HELD_AFTER_S
        await asyncio.sleep(2 * HELD_AFTER_S)
        threads = threading.active_count()
        for each in hung:
            began = own_time(os.getpid())
            with pytest.raises(LibvirtUnreachable, match="busy with it") as busy:
                await libvirt.domain(each)
            assert own_time(os.getpid()) - began < HELD_AFTER_S
            assert not busy.value.sent
        assert threading.active_count() == threads
        for _ in range(20):
            began = own_time(os.getpid())
            await libvirt.domain("test")
            assert own_time(os.getpid()) - began < HELD_AFTER_S
        await asyncio.gather(*stuck)  # and their callers have their answers, in the end
    for _ in range(40):
        if threading.active_count() <= before:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(threading.enumerate())


async def test_more_domains_than_may_be_asked_at_once_hang_and_delay_the_next_only_once() -> None:
    async with running() as libvirt:
        await libvirt.wait_connected(timeout=5)
        names = [f"hung{number}" for number in range(MAX_RUNNING + 4)]
        stuck = [
            asyncio.create_task(held(libvirt, 3 * HELD_AFTER_S, domain=each)) for each in names
        ]
        await asyncio.sleep(0)
        began = own_time(os.getpid())
        await libvirt.domain("test")
        assert own_time(os.getpid()) - began < 3 * HELD_AFTER_S
        await asyncio.gather(*stuck)
        # Again, as of a guest that is stopped and goes on: now it is known whose calls are held.
        stuck = [asyncio.create_task(held(libvirt, 2.0, domain=each)) for each in names]
        await asyncio.sleep(0)
        began = own_time(os.getpid())
        await libvirt.domain("test")
        assert own_time(os.getpid()) - began < HELD_AFTER_S
        await asyncio.gather(*stuck)


async def test_of_one_domain_one_call_is_under_way_and_the_next_waits_for_a_short_one() -> None:
    async with running() as libvirt:
        await libvirt.wait_connected(timeout=5)
        under_way, most = 0, 0

        def work(*_: object) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            time.sleep(0.01)
            under_way -= 1

        await asyncio.gather(*(libvirt._call("work", "test", work, 5) for _ in range(10)))
        assert most == 1


async def test_whoever_leaves_a_call_that_hangs_leaves_it_held_all_the_same() -> None:
    async with running() as libvirt:
        await libvirt.wait_connected(timeout=5)
        stuck = asyncio.create_task(held(libvirt, 1.5, domain="test"))
        await asyncio.sleep(0.05)
        stuck.cancel()
        await asyncio.wait({stuck})
        await asyncio.sleep(HELD_AFTER_S)
        with pytest.raises(LibvirtUnreachable, match="busy with it"):
            await libvirt.domain("test")
        await asyncio.sleep(1.5)
        assert (await libvirt.domain("test")).active


async def test_the_caller_of_a_held_call_leaves_in_time_and_knows_that_it_was_asked() -> None:
    async with running() as libvirt:
        await libvirt.wait_connected(timeout=5)
        with pytest.raises(LibvirtUnreachable, match="was asked, but did not answer") as late:
            await held(libvirt, 0.6, timeout=0.2)
        assert late.value.sent


async def test_with_too_many_held_calls_the_next_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "MAX_HELD", 3)
    async with running() as libvirt:
        await libvirt.wait_connected(timeout=5)
        stuck = [asyncio.create_task(held(libvirt, 1.0, domain=f"hung{n}")) for n in range(3)]
        await asyncio.sleep(2 * HELD_AFTER_S)
        began = own_time(os.getpid())
        with pytest.raises(LibvirtUnreachable, match="holds 3 calls") as refused:
            await libvirt.domain("test")
        assert own_time(os.getpid()) - began < HELD_AFTER_S
        assert not refused.value.sent
        await asyncio.gather(*stuck)
        assert len(await libvirt.domains()) == 1  # when they have ended, all is as before


async def test_however_many_calls_wait_for_a_libvirt_that_is_stopped_it_is_dialled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on, dialled = threading.Event(), list[LibvirtConnection]()
    connect = LibvirtConnection._connect

    def stopped(connection: LibvirtConnection, *arguments: Any) -> None:
        dialled.append(connection)
        goes_on.wait(5)
        connect(connection, *arguments)

    async with running() as libvirt:
        await libvirt.wait_connected(timeout=5)
        monkeypatch.setattr(LibvirtConnection, "_connect", stopped)
        stuck = asyncio.create_task(libvirt._call("waiting", "a", lambda *_: goes_on.wait(5), 5))
        await asyncio.sleep(0.02)
        for _ in range(5):  # one after another, each with time of its own
            with pytest.raises(LibvirtUnreachable, match="was not asked within"):
                await libvirt.domains(timeout=0.1)
        assert len(dialled) == 1
        goes_on.set()
        assert len(await libvirt.domains()) == 1
        assert await stuck
    assert len(dialled) == 1


def test_a_domain_that_libvirt_refuses_to_speak_of_hides_no_other() -> None:
    api = libvirt_python.load_libvirt_python().libvirt

    def domain(name: str, error: int = 0) -> Any:
        def state() -> list[int]:
            if error:
                refused = api.libvirtError("no")
                refused.err = (error, 0, "no", 0, "", None, None, 0, 0)
                raise refused
            return [1, 0]

        return SimpleNamespace(
            state=state, name=lambda: name, UUIDString=lambda: f"uuid-{name}",
            isActive=lambda: 1, isPersistent=lambda: 1,
        )  # fmt: skip

    made = [domain("web1"), domain("gone", 42), domain("odd", 38), domain("web2")]
    there = SimpleNamespace(listAllDomains=lambda: made, isAlive=lambda: 1)
    found = api_calls.domains(SimpleNamespace(libvirt=api), there, Path("/nowhere"))
    assert [(each.name, each.state) for each in found] == [
        ("odd", "no state"), ("web1", "running"), ("web2", "running")
    ]  # fmt: skip
    there.isAlive = lambda: 0  # of all of them it says nothing: that is no list
    with pytest.raises(api.libvirtError):
        api_calls.domains(SimpleNamespace(libvirt=api), there, Path("/nowhere"))


async def test_a_refusal_has_libvirts_number_and_text() -> None:
    async with running() as libvirt:
        await libvirt.wait_connected(timeout=5)
        with pytest.raises(LibvirtRefused, match="domain nobody: libvirt refused: ") as refused:
            await libvirt.domain("nobody")
        assert refused.value.no_domain
        assert refused.value.__context__ is None or refused.value.__suppress_context__
        with pytest.raises(LibvirtRefused) as refused:
            await libvirt.set_metadata("test", "urn:x", "x", "<a>", live=True, config=False)
        assert not refused.value.no_domain


async def test_metadata_is_written_read_and_removed() -> None:
    async with running() as libvirt:
        events = libvirt.events()
        await anext(events)
        await libvirt.set_metadata("test", "urn:x", "x", "<a b='1'/>", live=True, config=False)
        async with asyncio.timeout(5):
            assert (await anext(events)).kind is K.METADATA
        assert await libvirt.metadata("test", "urn:x", live=True) == '<a b="1"/>'
        await libvirt.set_metadata("test", "urn:x", "x", None, live=True, config=False)
        assert await libvirt.metadata("test", "urn:x", live=True) is None


# --- no libvirt -----------------------------------------------------------------------------------
async def test_without_a_daemon_it_is_tried_again_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "RECONNECT_INTERVAL_S", 0.02)
    async with running("qemu+unix:///system?socket=/nonexistent/sock") as libvirt:
        with pytest.raises(LibvirtUnreachable, match="there is no connection"):
            await libvirt.wait_connected(timeout=0.3)
        assert "/nonexistent/sock" in str(libvirt.problem)
        with pytest.raises(LibvirtUnreachable) as raised:
            await libvirt.domain("web1")
        text = str(raised.value)
        assert text.startswith("domain web1: there is no connection to libvirt: cannot connect to")
        assert (text.count("To do: "), text.count(libvirt.uri)) == (1, 1)
        assert "systemctl start libvirtd.socket" in text
    assert len([each for each in caplog.records if "no libvirt at" in each.message]) == 1


async def test_a_host_without_libvirt_is_told_from_one_where_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection, "CONFIG_DIR", tmp_path / "qemu")
    assert not Libvirt("qemu:///system").installed
    assert Libvirt("qemu:///session").installed, "somebody has configured it"
    (tmp_path / "qemu").mkdir()
    assert Libvirt("qemu:///system").installed


async def test_libvirt_python_is_not_loaded_before_there_is_a_daemon(tmp_path: Path) -> None:
    look = (
        "import asyncio, sys, linkmgr.service.main\n"
        "from linkmgr.libvirt.client import connection\n"
        "from pathlib import Path\n"
        f"connection.SOCKET_DIR = Path({str(tmp_path)!r})\n"
        "async def main():\n"
        "    libvirt = connection.Libvirt('qemu:///system')\n"
        "    task = asyncio.create_task(libvirt.run())\n"
        "    await asyncio.sleep(0.1)\n"
        "    task.cancel()\n"
        "    print('libvirt' in sys.modules, libvirt.problem)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", look, stdout=asyncio.subprocess.PIPE
    )
    said = (await process.communicate())[0].decode()
    assert said.startswith(f"False no daemon of libvirt listens in {tmp_path}")


@pytest.fixture
def no_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host where libvirt-python is not installed."""
    for name in ("libvirt", "libvirt_qemu"):
        monkeypatch.setitem(sys.modules, name, None)


async def test_without_libvirt_python_it_says_what_to_install(no_binding: None) -> None:
    with pytest.raises(LibvirtUnreachable, match="apt install python3-libvirt"):
        libvirt_python.load_libvirt_python()
    async with running() as libvirt:
        with pytest.raises(LibvirtUnreachable, match="libvirt-python cannot be used"):
            await libvirt.wait_connected(timeout=0.2)


def test_only_libvirt_python_is_taken_from_the_distributions_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def find_spec(name: str, path: list[str]) -> None:
        asked.append((name, path))

    monkeypatch.setattr(PathFinder, "find_spec", find_spec)
    for name in ("apt", "libvirtmod", "libvirt.more", "yaml"):
        assert libvirt_python._Finder.find_spec(name) is None
    assert asked == [("libvirtmod", [libvirt_python.SYSTEM_PACKAGES])]


def test_the_run_directory_is_that_of_the_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert str(default_run_dir("qemu:///system")) == "/run/libvirt/qemu"
    assert str(default_run_dir("qemu+unix:///session?socket=/x/system")) == (
        "/run/user/7/libvirt/qemu/run"
    )
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(default_run_dir("qemu:///session")).endswith("/.cache/libvirt/qemu/run")


# --- the thread and the loop ----------------------------------------------------------------------
async def test_calls_run_in_order_and_one_whose_caller_left_does_not_run() -> None:
    worker, ran = WorkerThread("a test"), list[int]()
    release = threading.Event()
    first = asyncio.create_task(worker.call(lambda: release.wait(5)))
    async with asyncio.timeout(5):
        while not worker.busy:  # noqa: ASYNC110 - a thread tells no event
            await asyncio.sleep(0.001)
    with pytest.raises(NoResultError):
        await worker.call(lambda: ran.append(1), timeout=0.05)
    gone = asyncio.create_task(worker.call(lambda: ran.append(2)))
    rest = [asyncio.create_task(worker.call(lambda n=n: ran.append(n))) for n in (3, 4)]  # type: ignore[misc]
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    release.set()
    assert await first
    await asyncio.gather(*rest)
    assert ran == [3, 4]
    ended = worker.finish(lambda: ran.append(5))
    with pytest.raises(NoResultError):
        await worker.call(lambda: ran.append(6))
    await asyncio.wait_for(ended, 2)
    assert ran == [3, 4, 5]


async def test_a_connection_that_is_made_too_late_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = threading.Event()
    leave = LibvirtConnection._disconnect

    def slow(connection: LibvirtConnection, *_: object) -> None:
        time.sleep(0.3)

    def noted(connection: LibvirtConnection) -> None:
        leave(connection)
        closed.set()

    monkeypatch.setattr(LibvirtConnection, "_disconnect", noted)
    with pytest.raises(LibvirtUnreachable, match="did not answer within"):
        await LibvirtConnection.open(URI, slow, timeout=0.1)
    assert await asyncio.to_thread(closed.wait, 2)
    await asyncio.sleep(0.05)


async def test_the_last_word_holds_whichever_thread_had_it() -> None:
    events = EventLoop()
    events._libvirt = type("Api", (), {"virEventInvokeFreeCallback": staticmethod(freed.append)})
    events.use()
    freed.clear()
    ours, theirs = os.pipe()
    heard: list[int] = []
    try:
        number = await asyncio.to_thread(
            events._add_watch, ours, 0, lambda _n, _fd, event, _o: heard.append(event), "opaque"
        )
        os.write(theirs, b"x")
        await asyncio.sleep(0.05)
        assert heard == []  # it was not asked for
        # Asked for in another thread, and not any more in this one, before the loop looks.
        await asyncio.get_running_loop().run_in_executor(
            None, events._update_watch, number, READABLE | WRITABLE
        )
        events._update_watch(number, 0)
        heard.clear()
        await asyncio.sleep(0.05)
        assert heard == []
        await asyncio.to_thread(events._update_watch, number, READABLE)
        await asyncio.sleep(0.05)
        assert set(heard) == {READABLE}
        assert await asyncio.to_thread(events._remove_watch, number) == 0
        assert events._remove_watch(number) == -1
        await asyncio.sleep(0.02)
        assert freed == ["opaque"]
        heard.clear()
        await asyncio.sleep(0.05)
        assert heard == []
    finally:
        os.close(ours)
        os.close(theirs)


freed: list[object] = []


async def test_a_timer_rings_until_it_is_told_otherwise_from_any_thread() -> None:
    events = EventLoop()
    events._libvirt = type("Api", (), {"virEventInvokeFreeCallback": staticmethod(freed.append)})
    events.use()
    freed.clear()
    rings: list[int] = []
    number = await asyncio.to_thread(events._add_timer, -1, lambda n, _: rings.append(n), "o")
    await asyncio.sleep(0.03)
    assert rings == []
    await asyncio.to_thread(events._update_timer, number, 10)
    await asyncio.sleep(0.1)
    assert len(rings) >= 3
    assert await asyncio.to_thread(events._remove_timer, number) == 0
    await asyncio.sleep(0.02)
    count = len(rings)
    await asyncio.sleep(0.05)
    assert (len(rings), freed) == (count, ["o"])
    assert events._remove_timer(number) == -1
    events._update_timer(number, 0)


async def test_a_connection_of_the_pool_that_is_lost_alone_is_replaced() -> None:
    first = await LibvirtConnection.open(URI)
    made = ConnectionPool(first)
    other = await LibvirtConnection.open(URI)
    other.lost.set()
    made._idle.append(other)
    assert await made.call("a name", "", lambda _, made: made.getHostname(), 2.0)
    made.close()
    await first.close()
    await asyncio.sleep(0.05)
