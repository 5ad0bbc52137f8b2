"""The socket that QEMUs dial: who gets which call, and what slow, silent and forged ones do."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from linkmgr.aio.unix_sockets import UnixSocket
from linkmgr.errors import MonitorGone, MonitorUnreachable, StateError
from linkmgr.hypervisors.qemu.qmp import Monitor
from linkmgr.libvirt.monitor import listener as module
from linkmgr.libvirt.monitor.listener import MonitorListener
from linkmgr.libvirt.monitor.peer_identity import ConnectedQemu, UntrustedPeer
from linkmgr.model import MonitorTransport
from tests.unit.qmp_peer import GREETING, FakeMonitor, Received, nothing_left_behind, opened

__all__ = ["nothing_left_behind"]

WEB1 = ConnectedQemu("web1", "e4575ab2-7cba-58df-aac2-669e6faac4ef", os.getpid())
WEB2 = ConnectedQemu("web2", "1677ef29-849e-56f6-805e-cf6ae55a62f6", os.getpid())


class Lab:
    """A listener, those who dial it, and what becomes of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, ConnectedQemu | Exception] = {}  #: by the address that they dial from
        self.looked_at: list[str] = []
        self.offered: list[ConnectedQemu] = []
        self.refusal: Exception | None = None
        self.peers: list[FakeMonitor] = []
        sock = UnixSocket.make()
        sock.bind(str(path))
        sock.listen()
        self.listener = MonitorListener(sock, self._identify, self._on_unclaimed, timeout=0.5)

    def _identify(self, sock: socket.socket) -> ConnectedQemu:
        address = sock.getpeername()
        self.looked_at.append(address)
        who = self.known[address]
        if isinstance(who, Exception):
            raise who
        return who

    async def _on_unclaimed(self, who: ConnectedQemu) -> None:
        self.offered.append(who)
        if self.refusal:
            raise self.refusal

    async def connect(self, who: ConnectedQemu | Exception = WEB1) -> FakeMonitor:
        """Dial, and say nothing."""
        sock = socket.socket(socket.AF_UNIX)
        address = str(self.path.with_name(f"peer{len(self.peers)}"))
        self.known[address] = who
        sock.bind(address)
        sock.connect(str(self.path))
        self.peers.append(FakeMonitor(sock))
        return self.peers[-1]

    async def dial(
        self, who: ConnectedQemu = WEB1, *, claims: ConnectedQemu | None = None
    ) -> FakeMonitor:
        """Dial as QEMU does."""
        peer = await self.connect(who)
        await peer.handshake()
        peer.serve(lambda command: says(command, claims or who))
        return peer

    async def take(self, who: ConnectedQemu = WEB1, timeout: float = 2.0) -> Monitor:
        return await self.listener.connector(f"inbound:{who.uuid}").connect(
            f"of VM {who.name}", timeout
        )


def says(command: Received, who: ConnectedQemu) -> object:
    """What the QEMU of a domain answers."""
    match command.name:
        case "query-uuid":
            return {"UUID": who.uuid.upper()}
        case "query-name":
            return {"name": who.name}
    return None


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    monkeypatch.setattr(module, "ANNOUNCE_INTERVAL_S", 0.05)
    monkeypatch.setattr(module, "REFUSED_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "REFUSED_GRACE_S", 0.3)
    made = Lab(tmp_path / "qmp.sock")
    async with made.listener:
        yield made
    for peer in made.peers:
        await peer.close()
    await until(lambda: not made.listener._tasks)
    assert not made.listener._guests


async def until(what: Callable[[], bool], timeout: float = 2.0) -> None:
    async with asyncio.timeout(timeout):
        while not what():  # noqa: ASYNC110 - of many
            await asyncio.sleep(0.005)


async def hung_up(peer: FakeMonitor) -> None:
    """Wait until the listener has closed the connection."""
    await until(lambda: has_hung_up(peer))


def has_hung_up(peer: FakeMonitor) -> bool:
    try:
        return not peer.sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


async def test_a_guest_that_dials_is_offered_and_taken_with_all_its_commands(lab: Lab) -> None:
    peer = await lab.dial()
    await until(lambda: bool(lab.offered))
    assert lab.offered[0] == WEB1
    monitor = await lab.take()
    with opened() as null:
        await monitor.execute("netdev_add", fds={"lm": null})
    assert peer.timeline[-3:] == ["fd", "getfd lm", "netdev_add"]
    assert monitor.pid == os.getpid()
    count = len(lab.offered)
    await asyncio.sleep(0.15)
    assert len(lab.offered) == count, "it was offered after it had been taken"
    await monitor.close()


async def test_the_connector_says_what_it_is(lab: Lab) -> None:
    connector = lab.listener.connector(f"inbound:{WEB1.uuid}")
    assert (connector.address, connector.transport) == (
        f"inbound:{WEB1.uuid}",
        MonitorTransport.INBOUND,
    )


async def test_who_waits_for_a_guest_gets_its_call_and_nobody_is_asked(lab: Lab) -> None:
    waiting = asyncio.create_task(lab.take())
    other = asyncio.create_task(lab.take(WEB2))
    await asyncio.sleep(0)
    await lab.dial()
    monitor = await waiting
    assert (monitor.name, lab.offered) == ("of VM web1", [])
    assert not other.done()
    await lab.dial(WEB2)
    assert (await other).name == "of VM web2"
    await (await other).close()
    await monitor.close()


async def test_two_who_wait_get_one_call_each_in_their_order(lab: Lab) -> None:
    first, second = (asyncio.create_task(lab.take()) for _ in range(2))
    await asyncio.sleep(0)
    await lab.dial()
    monitor = await first
    assert not second.done()
    await lab.dial()
    await monitor.close()
    await (await second).close()


async def test_a_call_that_nobody_takes_is_kept_and_offered_again(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.refusal = StateError("the disk is full", hint="make room")
    await lab.dial()
    await until(lambda: len(lab.offered) >= 4)
    assert caplog.text.count("the disk is full. To do: make room") == 1
    await (await lab.take()).close()


async def test_a_fault_of_who_is_asked_does_not_end_it(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.refusal = ZeroDivisionError()
    await lab.dial()
    await until(lambda: len(lab.offered) >= 2)
    assert "a fault while it was added" in caplog.text
    await (await lab.take()).close()


async def test_nobody_dials_in_time(lab: Lab) -> None:
    connector = lab.listener.connector(f"inbound:{WEB1.uuid}")
    with pytest.raises(
        MonitorUnreachable, match=r"the QEMU of VM web1 has not dialled within 0\.05 s"
    ) as info:
        await connector.connect("of VM web1", 0.05)
    assert "linkmgr prepare" in (info.value.hint or "")
    assert connector.proves_absence(info.value)
    assert not connector.proves_absence(MonitorUnreachable("something else"))


async def test_a_stranger_is_hung_up_on_unheard_and_told_of_once(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        peer = await lab.connect(UntrustedPeer("its pid is in no file"))
        peer.send(GREETING)
        await hung_up(peer)
        assert peer.timeline == []
    assert caplog.text.count("was refused") == 1
    assert f"pid {os.getpid()} was refused: its pid is in no file" in caplog.text
    assert lab.offered == []


async def test_a_stranger_that_dials_without_a_pause_is_not_even_looked_at(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFUSED_PAUSE_S", 10.0)
    await hung_up(await lab.connect(UntrustedPeer("no")))
    await hung_up(await lab.connect())
    assert len(lab.looked_at) == 1


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        (ConnectedQemu("web1", WEB2.uuid, 1), f"says that its uuid is '{WEB2.uuid.upper()}'"),
        (ConnectedQemu("web2", WEB1.uuid, 1), "says that its name is 'web2'"),
    ],
)
async def test_a_qemu_that_claims_to_be_another_guest_is_refused(
    lab: Lab, caplog: pytest.LogCaptureFixture, claims: ConnectedQemu, said: str
) -> None:
    waiting = asyncio.create_task(lab.take(WEB2, 0.3))
    peer = await lab.dial(claims=claims)
    await hung_up(peer)
    assert f"it is the QEMU of domain web1, and {said}" in caplog.text
    assert lab.offered == []
    with pytest.raises(MonitorUnreachable):
        await waiting


async def test_a_qemu_that_lies_anew_each_time_does_not_fill_the_log(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(module.MAX_LOGGED_REFUSALS + 3):
        await hung_up(await lab.dial(claims=ConnectedQemu("web1", f"{number}", 1)))
    assert caplog.text.count("was refused") == module.MAX_LOGGED_REFUSALS


async def test_a_guest_that_greets_late_keeps_nobody_waiting_and_is_not_hung_up_on(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """A QEMU that allocates its memory would end by SIGSEGV."""
    slow = await lab.connect()
    await lab.dial(WEB2)
    await until(lambda: lab.offered == [WEB2], 0.4)
    await until(lambda: "domain web1 has dialled and says nothing yet" in caplog.text)
    await asyncio.sleep(0.2)
    assert not has_hung_up(slow)
    await slow.handshake()
    slow.serve(lambda command: says(command, WEB1))
    await until(lambda: WEB1 in lab.offered)


async def test_a_greeting_that_does_not_end_is_hung_up_on_in_time(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    slow = await lab.connect()
    slow.raw(b"{")
    await hung_up(slow)
    said = "domain web1: the monitor of VM web1 sent no greeting within 0.5 s"
    await until(lambda: said in caplog.text)


async def test_a_refused_process_is_not_hung_up_on_while_it_may_be_a_qemu_that_starts(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFUSED_GRACE_S", 10.0)
    first = await lab.connect(UntrustedPeer("no"))
    await until(lambda: bool(lab.listener._kept_open))
    await hung_up(await lab.connect(UntrustedPeer("no")))  # a QEMU has one
    await asyncio.sleep(0.2)
    assert not has_hung_up(first)
    first.send(GREETING)
    await hung_up(first)


async def test_a_refused_process_that_stays_silent_is_hung_up_on_in_the_end(lab: Lab) -> None:
    await hung_up(await lab.connect(UntrustedPeer("no")))


async def test_no_more_refused_connections_are_kept_than_the_bound(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFUSED_GRACE_S", 10.0)
    monkeypatch.setattr(module, "MAX_REFUSED", 0)
    async with asyncio.timeout(1):
        await hung_up(await lab.connect(UntrustedPeer("no")))


# Dials as another user from as many processes, which say nothing.
DIAL_SILENTLY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for _ in range(int(sys.argv[2])):
    if not os.fork():
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(sys.argv[1])
        sock.recv(1)
        os._exit(0)
while True:
    os.wait()
"""


async def test_silent_processes_of_one_user_take_no_protection_from_another_users_qemu(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFUSED_GRACE_S", 30.0)
    for folder in (lab.path.parent, *lab.path.parent.parents[:2]):
        folder.chmod(0o755)
    lab.path.chmod(0o666)
    lab.known[""] = UntrustedPeer("no")  # has no address
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DIAL_SILENTLY, str(lab.path), str(module.MAX_REFUSED),
        start_new_session=True, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await until(lambda: lab.looked_at.count("") == module.MAX_REFUSED, timeout=20)
        starting = await lab.connect(UntrustedPeer("no"))
        await until(lambda: len(lab.looked_at) > module.MAX_REFUSED)
        await asyncio.sleep(0.2)
        assert not has_hung_up(starting)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_a_process_that_dials_without_end_is_looked_at_once_a_second(lab: Lab) -> None:
    began = asyncio.get_running_loop().time()
    for _ in range(60):
        peer = await lab.connect()
        peer.hang_up()
    await lab.connect(WEB2)
    await asyncio.sleep(0.2)
    elapsed = asyncio.get_running_loop().time() - began
    assert len(lab.looked_at) <= module.PROCESS_CONNECTIONS_BURST + elapsed + 1


async def test_of_one_process_only_two_calls_may_be_silent_at_once(lab: Lab) -> None:
    silent = [await lab.connect() for _ in range(2)]
    await until(lambda: lab.listener._negotiating[os.getpid()] == 2)
    third = await lab.connect()  # one of those that were refused is kept
    await until(lambda: bool(lab.listener._kept_open))
    await hung_up(await lab.connect())
    for peer in (*silent, third):
        peer.hang_up()
    await until(lambda: not lab.listener._negotiating)


async def test_garbage_is_refused(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    peer = await lab.connect()
    peer.raw(b"\x16\x03\x01 not QMP\n")
    await hung_up(peer)
    await until(lambda: "does not speak QMP" in caplog.text)
    peer = await lab.connect()
    await peer.handshake()
    peer.answer(await peer.next("query-uuid"), ["no", "object"])
    peer.answer(await peer.next("query-name"), {})
    await hung_up(peer)
    assert "says that its uuid is None" in caplog.text


STATES: dict[str, Callable[[FakeMonitor], object]] = {
    "before its greeting": lambda peer: None,
    "after its greeting": lambda peer: peer.send(GREETING),
    "after the negotiation": lambda peer: peer.handshake(),
}


@pytest.mark.parametrize("state", STATES)
async def test_a_guest_that_hangs_up_early_leaves_nothing_and_may_dial_again(
    lab: Lab, state: str
) -> None:
    peer = await lab.connect()
    doing = STATES[state](peer)
    if asyncio.iscoroutine(doing):
        await doing
    peer.hang_up()
    await until(lambda: not lab.listener._negotiating)
    assert lab.offered == []
    await lab.dial()
    await (await lab.take()).close()


async def test_a_call_that_ends_while_it_is_offered_is_not_handed_out(lab: Lab) -> None:
    peer = await lab.dial()
    await until(lambda: bool(lab.offered))
    await peer.close()
    await until(lambda: not lab.listener._guests)
    waiting = asyncio.create_task(lab.take())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await lab.dial()
    await (await waiting).close()


async def test_a_new_call_takes_the_place_of_one_that_nobody_has_taken(lab: Lab) -> None:
    old = await lab.dial()
    await until(lambda: bool(lab.offered))
    new = await lab.dial()
    await hung_up(old)
    monitor = await lab.take()
    await monitor.execute("query-status")
    assert new.timeline[-1] == "query-status"
    await monitor.close()


async def test_a_second_monitor_of_a_guest_in_use_is_offered_to_nobody_until_the_first_ends(
    lab: Lab,
) -> None:
    first = await lab.dial()
    monitor = await lab.take()
    lab.offered.clear()
    await lab.dial()
    await asyncio.sleep(0.2)
    assert lab.offered == []
    await first.close()
    await monitor.wait_closed()
    await (await lab.take()).close()


async def test_who_stops_waiting_does_not_get_the_call(lab: Lab) -> None:
    leaving, staying = (asyncio.create_task(lab.take()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await lab.dial()
    await (await staying).close()


async def test_who_leaves_in_the_very_moment_loses_nothing_but_the_call(lab: Lab) -> None:
    for turns in range(12):
        waiting = asyncio.create_task(lab.take())
        await asyncio.sleep(0)
        await lab.dial()
        await until(lambda: bool(lab.listener._guests))
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        (got,) = await asyncio.gather(waiting, return_exceptions=True)
        if isinstance(got, Monitor):
            await got.close()
    lab.offered.clear()


async def test_the_end_hangs_up_on_all_that_nobody_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path / "qmp.sock")
    async with lab.listener:
        taken = await lab.dial()
        monitor = await lab.take()
        offered = await lab.dial(WEB2)
        silent = await lab.connect()
        await until(lambda: WEB2 in lab.offered)
    for peer in (offered, silent):
        await hung_up(peer)
    await monitor.execute("query-status")  # what was taken is not the listener's any more
    await taken.close()
    await monitor.wait_closed()
    with pytest.raises(MonitorGone):
        await monitor.execute("query-status")
    for peer in lab.peers:
        await peer.close()
