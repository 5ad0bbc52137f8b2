"""Descriptors that a stranger sends stop nobody, however long it takes to close them.

The last close of a TCP socket with SO_LINGER waits until its peer has read, here for half a minute.
Its sender has closed his own, so whoever lets go of the message waits.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from linkmgr import Client
from linkmgr.errors import MonitorError
from linkmgr.testing.process import Child, until
from tests.integration import portable_service
from tests.integration.cli.test_cli import Host
from tests.integration.lab import Lab
from tests.integration.service.test_hostile import STRANGER, serving

LINGER = 30  #: seconds that closing one takes
ANSWER_TIMEOUT_S = 3.0  #: seconds in which others are answered
WAYS = {"kernel": "linkmgr serve", "portable": portable_service.command()}

# Connects as another user, sends slow descriptors in many ways, and keeps all open. Prints how many
# messages were taken and how many the kernel refused.
ATTACK = """
import os, socket, struct, sys, threading, time
path, uid, kind, linger, serves = sys.argv[1:6]
"".encode("idna")  # its module may be in a directory of root's
os.setgroups([]); os.setgid(int(uid)); os.setuid(int(uid))
kept = []

def slow():
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1)
    ours = socket.create_connection(listening.getsockname())
    kept.append((listening, listening.accept()))
    ours.setblocking(False)
    try:
        while True:
            ours.send(bytes(65536))
    except BlockingIOError:
        pass
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, int(linger)))
    return ours

taken = refused = 0
def send(sock, data, fds=1, flags=0):
    global taken, refused
    doomed = [slow() for _ in range(fds)]  # takes a while, so before connecting: it may be short
    sock = sock() if callable(sock) else sock
    try:
        socket.send_fds(sock, [data], [each.fileno() for each in doomed], flags)
        taken += 1
        closing = [threading.Thread(target=each.close, daemon=True) for each in doomed]
        for each in closing:
            each.start()
        for each in closing:
            each.join(1)  # where the other side was quicker, ours is the last and waits
        return
    except PermissionError:
        refused += 1
    except OSError:
        pass  # hung up on already
    kept.extend(doomed)  # closing them would wait here

def plain(sock, data):
    try:
        sock.send(data)
    except OSError:
        pass

def connect():
    sock = socket.socket(socket.AF_UNIX, getattr(socket, kind))
    sock.connect(path)
    kept.append(sock)
    return sock

if serves == "serves":  # as the monitor of a QEMU
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(5)
    print("listens", flush=True)
    for _ in range(2):
        sock, _ = listening.accept()
        kept.append(sock)
        send(sock, b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, ')
        send(sock, b"nonsense}}}\\n")
elif kind == "SOCK_SEQPACKET":
    send(connect, b'{"name": "one"}')
    send(connect, b'{"name": "two"}', 3)
    send(connect, b"")
    send(connect, b"nonsense")
    send(connect, b"x" * 9000)
    both = connect()
    send(both, b'{"name": "one"}')
    send(both, b'{"name": "one"}')
    for _ in range(12):  # more than one may have: hung up on, whatever lies there
        send(connect, b'{"name": "many"}')
else:
    send(connect, b"GET /healthz HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    send(connect, b"\\0")
    second = connect()
    plain(second, b"GET /healthz HT")
    time.sleep(0.2)
    send(second, b"TP/1.1\\r\\n")
    oob = connect()
    plain(oob, b"GET ")
    send(oob, b"/", 1, socket.MSG_OOB)
    plain(oob, b"healthz HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    large = connect()
    plain(large, b"POST /v1/networks HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 99999\\r\\n\\r\\n")
    send(large, b"x" * 1000)
    ends = connect()
    send(ends, b"GET /healthz HTTP/1.1\\r\\n")
    ends.close()
    for _ in range(8):  # more than one may have
        send(connect, b"GET /healthz HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
print(taken, refused, flush=True)
time.sleep(60)
"""


class Attacker:
    """The attack, while it goes on.

    :param output: of its process.
    """

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output

    def said(self) -> str:
        """What it has printed."""
        return os.pread(self._output.fileno(), 1 << 16, 0).decode()

    async def listens(self) -> None:
        """Wait until it can be dialled."""

        async def told() -> bool:
            return "listens" in self.said()

        await until(told, timeout=20, what="it listens")

    async def counts(self) -> tuple[int, int]:
        """Wait until it has sent all; return how many messages were taken and how many refused."""

        async def told() -> bool:
            return self.said().endswith("\n") and self.said().split()[-1] != "listens"

        await until(told, timeout=30, what=f"it has sent all: {self.said()}")
        numbers = re.search(r"^(\d+) (\d+)$", self.said(), re.MULTILINE)
        assert numbers, self.said()
        return int(numbers[1]), int(numbers[2])


@asynccontextmanager
async def attacker(path: Path, kind: str, serves: str = "") -> AsyncIterator[Attacker]:
    """Run the attack for the block; nothing of it is left afterwards."""
    command = [sys.executable, "-c", ATTACK, str(path), str(STRANGER), kind, str(LINGER), serves]
    with tempfile.TemporaryFile() as output:
        child = Child(command, output=output)
        try:
            yield Attacker(output)
        finally:
            await child.end(0)


@dataclass
class Attacked:
    """A service, and whether it was made to do without the kernel's option."""

    host: Host
    portable: bool


@pytest.fixture(params=WAYS)
async def attacked(
    request: pytest.FixtureRequest, tmp_path: Path, lab: Lab
) -> AsyncIterator[Attacked]:
    (tmp_path / "libvirt").mkdir()
    await lab.sh("ip link set lo up")
    config = (
        "[limits]\nconnections = 6\nrequest_seconds = 1.5\n"
        f'[libvirt]\nuri = ""\nrun_dir = "{tmp_path}/libvirt"\n'
        f"[[access.rules]]\nuser = {STRANGER}\nnics = ['*']\nnetworks = ['*']\n"
    )
    async with serving(tmp_path, config, WAYS[request.param]) as made:
        yield Attacked(made, request.param == "portable")
        began = time.monotonic()
        assert await made.stop() == 0
        assert time.monotonic() - began < 8, "and it ends as fast as ever"


async def others_are_served(host: Host, seconds: float) -> None:
    """Look, and write to the disk, as somebody else, for some time."""
    until_then = time.monotonic() + seconds
    async with Client(host.socket) as links:
        while time.monotonic() < until_then:
            began = time.monotonic()
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await links.create_network("blue", "bridge", bridge="br-blue")
                await links.delete_network("blue")
                await links.nics()
            assert time.monotonic() - began < ANSWER_TIMEOUT_S


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lm.sock", "SOCK_STREAM"), ("qmp.sock", "SOCK_STREAM"), ("fd.sock", "SOCK_SEQPACKET")],
)
async def test_a_stranger_who_sends_slow_descriptors_holds_nobody_up(
    attacked: Attacked, name: str, kind: str
) -> None:
    async with attacker(attacked.host.folder / name, kind) as child:
        await others_are_served(attacked.host, 3)
        taken, refused = await child.counts()
        if attacked.portable or kind == "SOCK_SEQPACKET":
            assert (taken >= 5, refused) == (True, 0), "the attack has arrived"
        else:
            assert (taken, refused >= 5) == (0, True)


async def test_a_qemu_that_sends_slow_descriptors_to_who_dials_it_holds_nobody_up(
    attacked: Attacked,
) -> None:
    host = attacked.host
    folder = host.folder / "mine"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    path = folder / "qmp"
    async with attacker(path, "SOCK_STREAM", "serves") as child:
        await child.listens()
        serving_others = asyncio.create_task(others_are_served(host, 3))
        async with Client(host.socket) as links:
            for _ in range(2):
                with pytest.raises(MonitorError):
                    await links.add_vm("web1", path)
        await serving_others
        taken, refused = await child.counts()
        assert bool(taken) is attacked.portable
        assert taken + refused >= 1


async def test_processes_that_closed_descriptors_are_gone_afterwards(attacked: Attacked) -> None:
    service = attacked.host.child
    assert service
    async with attacker(attacked.host.folder / "fd.sock", "SOCK_SEQPACKET") as child:
        await child.counts()

    async def none() -> bool:
        tasks = Path(f"/proc/{service.pid}/task").iterdir()
        return not any((each / "children").read_text() for each in tasks)

    await until(none, timeout=10, what="they have ended")
