"""Whose monitor a socket is: the connected socket says so, whatever its path is by then."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkmgr.errors import Forbidden, MonitorReplaced, MonitorUnreachable
from linkmgr.hypervisors.qemu.qmp import Monitor
from linkmgr.hypervisors.qemu.qmp.admission import Admission, PeerCredentials, peer_credentials
from linkmgr.hypervisors.qemu.qmp.connector import SocketConnector
from linkmgr.hypervisors.qemu.qmp.transport import connect_socket

ME = PeerCredentials(os.getpid(), os.geteuid())
PATH = "/run/web1.qmp"


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Path]:
    """A socket that takes connections and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen()
        yield tmp_path / "qmp"


def test_the_kernel_says_who_listens(monitor: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(monitor))
        assert peer_credentials(sock) == ME
    with socket.socket(socket.AF_INET) as sock:
        assert peer_credentials(sock) in (None, PeerCredentials(None, 0xFFFFFFFF))


def test_the_first_listener_must_be_of_a_user_whose_monitors_may_be_used() -> None:
    admit = Admission(may_use=lambda uid: uid == 1001)
    for other in (PeerCredentials(1, 0), PeerCredentials(1, None), None):
        with pytest.raises(Forbidden, match="the caller may not add"):
            admit(PATH, other)
    assert admit.peer is None
    admit(PATH, PeerCredentials(7, 1001))
    assert admit.peer == PeerCredentials(7, 1001)


def test_the_owner_of_the_file_that_was_connected_to_may_add_what_root_made_and_gave_away() -> None:
    admit = Admission(may_use=lambda uid: uid == 1001)
    with pytest.raises(Forbidden):
        admit(PATH, PeerCredentials(7, 0), owner=0)
    admit(PATH, PeerCredentials(7, 0), owner=1001)
    with pytest.raises(MonitorReplaced):
        admit(PATH, PeerCredentials(8, 1001), owner=1001)


async def test_the_owner_is_that_of_the_file_and_not_of_a_link_to_it(
    monitor: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(monitor)
    if os.geteuid() == 0:
        os.chown(monitor, 1001, 1001)
        os.chown(link, 1002, 1002, follow_symlinks=False)
    for path in (monitor, link):
        sock, file = await connect_socket(path, "of VM web1", 5)
        with sock:
            assert peer_credentials(sock) == ME
            assert file is not None
            assert file.owner == monitor.stat().st_uid


async def test_a_monitor_that_is_not_there_is_told_by_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        with pytest.raises(MonitorUnreachable, match=str(tmp_path / name)):
            await connect_socket(tmp_path / name, "of VM web1", 5)


@pytest.mark.parametrize(
    ("known", "found", "same"),
    [
        (PeerCredentials(7, 1001), PeerCredentials(7, 1001), True),
        (PeerCredentials(7, 1001), PeerCredentials(7, 0), False),
        (PeerCredentials(7, 1001), PeerCredentials(8, 1001), False),
        (PeerCredentials(None, 1001), PeerCredentials(None, 1001), True),
        (PeerCredentials(None, 1001), PeerCredentials(None, 0), False),
        (PeerCredentials(7, None), PeerCredentials(7, 0), True),
        (PeerCredentials(7, None), PeerCredentials(8, 0), False),
        (PeerCredentials(7, 1001), None, False),
    ],
)
def test_each_later_listener_must_be_the_first_one(
    known: PeerCredentials, found: PeerCredentials | None, same: bool
) -> None:
    """Also where any user's monitor could be added."""
    admit = Admission(may_use=lambda _: True, known=known)
    if same:
        admit(PATH, found)
        assert admit.peer == found
    else:
        with pytest.raises(MonitorReplaced, match="another process listens at"):
            admit(PATH, found)
        assert admit.peer == known


async def test_nothing_is_sent_to_a_monitor_that_is_not_admitted(tmp_path: Path) -> None:
    got: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen()

        def serve() -> None:
            taken, _ = listener.accept()
            with taken:
                got.append(taken.recv(1000))

        thread = threading.Thread(target=serve)
        thread.start()
        connector = SocketConnector(tmp_path / "qmp", Admission(may_use=lambda _: False))
        with pytest.raises(Forbidden):
            await connector.connect("of VM web1", 5)
        thread.join(5)
    assert got == [b""], "the connection ended without a word"


async def test_a_replaced_monitor_is_told_as_one_where_the_vm_is_not(monitor: Path) -> None:
    connector = SocketConnector(
        monitor, Admission(known=PeerCredentials(1, 0 if os.geteuid() else 1))
    )
    with pytest.raises(MonitorReplaced) as caught:
        await connector.connect("of VM web1", 5)
    assert connector.proves_absence(caught.value)
    assert caught.value.hint


async def test_a_monitor_may_be_connected_without_a_check(monitor: Path) -> None:
    """Who is not asked about is anybody: for a program that connects with its own rights."""
    with pytest.raises(MonitorUnreachable, match="greeting"):
        await Monitor.connect(monitor, timeout=0.1)
