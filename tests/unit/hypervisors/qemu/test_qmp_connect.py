"""Reaching a monitor, and what is said when it cannot be reached."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from linkmgr.aio.file_threads import PER_USER_MAX, run_in_file_thread
from linkmgr.errors import MonitorUnreachable
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp import Monitor
from linkmgr.hypervisors.qemu.qmp.connector import SocketConnector
from linkmgr.hypervisors.qemu.qmp.transport import connect_socket
from tests.unit.qmp_peer import GREETING, FakeMonitor, nothing_left_behind

__all__ = ["nothing_left_behind"]


async def refused(path: str | Path, said: str, timeout: float = 0.1) -> MonitorUnreachable:
    with pytest.raises(MonitorUnreachable, match=said) as info:
        async with asyncio.timeout(3):
            await Monitor.connect(path, name="web1", timeout=timeout)
    assert info.value.hint
    assert "web1" in info.value.what
    return info.value


async def test_a_path_without_a_socket(tmp_path: Path) -> None:
    error = await refused(tmp_path / "qmp", "there is no monitor socket")
    assert str(tmp_path / "qmp") in error.what


async def test_the_monitor_of_a_vm_is_called_so(tmp_path: Path) -> None:
    def nothing(*_: object) -> None:
        """Nothing is heard of a QEMU that is not there."""

    connector = SocketConnector(tmp_path / "qmp")
    with pytest.raises(MonitorUnreachable) as info:
        await QemuProcess.connect(connector, name="VM web1", timeout=0.1, handler=nothing)
    path = tmp_path / "qmp"
    assert info.value.what == f"there is no monitor socket of VM web1 ({path})"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        with pytest.raises(MonitorUnreachable) as info:
            await QemuProcess.connect(connector, name="VM web1", timeout=0.1, handler=nothing)
    assert info.value.what == "the monitor of VM web1 sent no greeting within 0.1 s"


async def test_what_to_do_is_no_question_so_that_a_sentence_can_end_behind_it(
    tmp_path: Path,
) -> None:
    error = await refused(tmp_path / "qmp", "there is no monitor socket")
    assert str(error)[-1].isalnum()


async def test_a_socket_that_nobody_listens_at(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "qmp"))
    await refused(tmp_path / "qmp", "nobody listens")


async def test_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "qmp").write_text("")
    await refused(tmp_path / "qmp", "nobody listens")


async def test_no_permission(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "qmp"))
        sock.listen()
        (tmp_path / "qmp").chmod(0)
        uid = os.geteuid()
        if uid == 0:
            os.seteuid(65534)
        try:
            await refused(tmp_path / "qmp", "no permission")
        finally:
            os.seteuid(uid)


async def test_a_path_that_is_longer_than_an_address_can_be(tmp_path: Path) -> None:
    """The file is connected to and not the name, so it may be any file's."""
    await refused("/" + "x" * 200, "there is no monitor socket")
    await refused("/" + "x" * 300, "cannot connect to the monitor socket .*: File name too long")
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        with contextlib.chdir(folder):
            sock.bind("qmp")
        sock.listen()
        await refused(folder / "qmp", "sent no greeting")


async def test_a_socket_of_another_type(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "qmp"))
        await refused(tmp_path / "qmp", "Protocol wrong type for socket")


async def test_a_monitor_that_serves_another_client(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "qmp"))
        sock.listen(1)
        error = await refused(tmp_path / "qmp", "sent no greeting within 0.1 s")
        assert "one client at a time" in (error.hint or "")
        while True:  # until the backlog is full, too
            with pytest.raises(MonitorUnreachable) as info:
                await Monitor.connect(tmp_path / "qmp", timeout=0.1)
            if "took no connection within 0.1 s" in info.value.what:
                break


async def test_a_place_in_the_backlog_is_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(tmp_path / "qmp"))
            connecting = asyncio.create_task(Monitor.connect(tmp_path / "qmp", timeout=2))
            await asyncio.sleep(0.05)
            listener.accept()[0].close()
        while not connecting.done():
            sock, _ = await asyncio.to_thread(listener.accept)
            peer = FakeMonitor(sock)
            await peer.handshake()
            async with await connecting as monitor:
                assert monitor.name == str(tmp_path / "qmp")
            await peer.close()


async def test_busy_monitors_of_a_user_hold_up_no_other_of_his(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for name in [*(f"busy{number}" for number in range(PER_USER_MAX + 1)), "free"]:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(tmp_path / name))
            listener.listen(0)
            if name != "free":
                stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / name))
        busy = [
            asyncio.create_task(connect_socket(tmp_path / f"busy{number}", "of a VM", 1, uid=4711))
            for number in range(PER_USER_MAX + 1)
        ]
        await asyncio.sleep(0.1)
        sock, _ = await connect_socket(tmp_path / "free", "of VM web6", 0.5, uid=4711)
        sock.close()
        for error in await asyncio.gather(*busy, return_exceptions=True):
            assert isinstance(error, MonitorUnreachable)
            assert "took no connection within 1 s" in error.what


async def test_a_user_without_a_free_thread_reads_so(tmp_path: Path) -> None:
    stuck = threading.Event()
    calls = [run_in_file_thread(4712, stuck.wait, timeout=0.05) for _ in range(PER_USER_MAX)]
    await asyncio.gather(*calls, return_exceptions=True)
    try:
        with pytest.raises(MonitorUnreachable, match=r"was not looked at within 0\.05 s: its user"):
            await connect_socket(tmp_path / "qmp", "of VM web1", 0.05, uid=4712)
    finally:
        stuck.set()


async def test_no_answer_to_the_negotiation() -> None:
    sock, peer = FakeMonitor.pair()
    peer.send(GREETING)
    with pytest.raises(MonitorUnreachable, match="sent no answer to the negotiation"):
        await Monitor.from_socket(sock, timeout=0.05)
    await peer.close()


async def test_a_refused_negotiation() -> None:
    sock, peer = FakeMonitor.pair()
    peer.send(GREETING)
    connecting = asyncio.create_task(Monitor.from_socket(sock, name="web1"))
    peer.refuse(await peer.next("qmp_capabilities"))
    with pytest.raises(MonitorUnreachable):
        await connecting
    await peer.close()


@pytest.mark.parametrize("greeting", [b"QEMU 7.2.22 monitor - type 'help'\r\n(qemu) ", b"{}\r\n"])
async def test_something_that_is_no_control_monitor(greeting: bytes) -> None:
    sock, peer = FakeMonitor.pair()
    peer.raw(greeting)
    said = "what answers as the monitor web1 does not speak QMP"
    with pytest.raises(MonitorUnreachable, match=said) as info:
        await Monitor.from_socket(sock, name="web1", timeout=1)
    assert "control mode" in (info.value.hint or "")
    await peer.close()


STALE: dict[str, dict[str, object]] = {
    "an answer": {"return": {}, "id": "__qmp#00003"},
    "a refusal": {"error": {"class": "GenericError", "desc": "no"}, "id": "x"},
    "of a shell": {"return": "hub 0"},
}


@pytest.mark.parametrize("greeted", [False, True])
@pytest.mark.parametrize("stale", STALE.values(), ids=STALE)
async def test_an_answer_to_the_client_before_us_is_not_taken_for_ours(
    stale: dict[str, object], greeted: bool
) -> None:
    """QEMU writes it to whoever is connected when it is through with the command."""
    sock, peer = FakeMonitor.pair()
    connecting = asyncio.create_task(Monitor.from_socket(sock, name="web1"))
    if not greeted:
        peer.send(stale)
    peer.send(GREETING)
    command = await peer.next("qmp_capabilities")
    if greeted:
        peer.send(stale)
    peer.answer(command)
    async with await connecting as monitor:
        asking = asyncio.create_task(monitor.execute("query-status"))
        peer.answer(await peer.next("query-status"), {"status": "running"})
        assert await asking == {"status": "running"}
    await peer.close()


@pytest.mark.parametrize("greeted", [False, True])
async def test_leaving_while_connecting_leaves_nothing(greeted: bool) -> None:
    sock, peer = FakeMonitor.pair()
    if greeted:
        peer.send(GREETING)
    connecting = asyncio.create_task(Monitor.from_socket(sock))
    await asyncio.sleep(0.02)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert sock.fileno() == -1
    await peer.close()


async def test_leaving_at_any_moment_of_connecting_leaves_nothing() -> None:
    for turns in range(1, 40):  # at 0 it has not begun, and owns nothing
        sock, peer = FakeMonitor.pair()
        shaking = asyncio.create_task(peer.handshake())
        connecting = asyncio.create_task(Monitor.from_socket(sock))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        done = (await asyncio.gather(connecting, return_exceptions=True))[0]
        if isinstance(done, Monitor):
            await done.close()
        else:
            assert isinstance(done, asyncio.CancelledError)
        assert sock.fileno() == -1
        shaking.cancel()
        await asyncio.gather(shaking, return_exceptions=True)
        await peer.close()
