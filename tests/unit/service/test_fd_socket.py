"""The fd socket: each packet gets one answer, and no fd is ever left without an owner."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from linkmgr.errors import AlreadyExists, Forbidden, HostError, UnknownPort
from linkmgr.host.fds.inspect import TapFdInfo
from linkmgr.host.fds.receive import PACKET_MAX
from linkmgr.host.fds.registry import FdRegistry
from linkmgr.model import NicRef
from linkmgr.service import fd_socket
from linkmgr.service.auth.peer import Peer
from linkmgr.service.fd_socket import FdSocket, bind, everyone
from linkmgr.testing.process import until

NIC = NicRef("web1", "net0")


def found(_fd: int, _name: str) -> TapFdInfo:
    return TapFdInfo("tap0", vnet_hdr=False)


def open_fds() -> set[int]:
    def is_open(number: int) -> bool:
        try:
            os.fstat(number)
        except OSError:
            return False
        return True

    return {number for number in range(1024) if is_open(number)}


@asynccontextmanager
async def serving(
    path: Path,
    *,
    allow: Callable[[Peer], None] = everyone,
    idle: float = 5,
    registry: FdRegistry | None = None,
) -> AsyncIterator[FdRegistry]:
    """Serve for the block; nothing may be open afterwards that was not before."""
    before = open_fds()
    registry = registry or FdRegistry(inspect=found)
    async with FdSocket(registry, bind(path), path=path, allow=allow, idle=idle):
        yield registry
    await registry.close()
    assert open_fds() - before == set()


class Caller:
    """A local process that speaks to the socket."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(path))
        self.sock.setblocking(False)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        socket.send_fds(self.sock, [data], list(fds))

    async def answer(self) -> dict[str, Any]:
        document = json.loads(await asyncio.get_running_loop().sock_recv(self.sock, 65536))
        assert isinstance(document, dict)
        return document

    async def ask(self, data: bytes, fds: Sequence[int] = ()) -> dict[str, Any]:
        self.send(data, fds)
        return await self.answer()

    async def hung_up(self) -> bool:
        async with asyncio.timeout(5):
            try:
                return await asyncio.get_running_loop().sock_recv(self.sock, 1) == b""
            except ConnectionResetError:
                return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fd.sock"


@pytest.fixture
def tap() -> Any:
    """What no device is attached to yet; nothing else is passed on by the receiver."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    yield fd
    os.close(fd)


async def test_an_fd_is_left_under_a_name_of_the_uid_that_connected(path: Path, tap: int) -> None:
    async with serving(path) as registry:
        with Caller(path) as caller:
            answer = await caller.ask(b'{"name": "uplink"}', [tap])
        assert answer == {"ok": True, "expires": 60.0}
        await registry.claim(f"{os.getuid()}.uplink", "aaaa0001", NIC)
        with registry.dup("aaaa0001") as copy:
            assert os.fstat(copy.number).st_rdev == os.fstat(tap).st_rdev
            assert not os.get_inheritable(copy.number)


async def test_several_are_left_on_one_connection_also_after_a_mistake(
    path: Path, tap: int
) -> None:
    async with serving(path) as registry:
        with Caller(path) as caller:
            assert (await caller.ask(b'{"name": "a"}', [tap]))["ok"]
            assert not (await caller.ask(b"nonsense", [tap]))["ok"]
            assert (await caller.ask(b'{"name": "b"}', [tap]))["ok"]
        for name in ("a", "b"):
            await registry.claim(f"{os.getuid()}.{name}", f"aaaa000{name}", NIC)


@pytest.mark.parametrize(
    ("data", "fds", "code", "complaint"),
    [
        (b"nonsense", 1, "bad-request", "not JSON"),
        (b"\xff\xfe", 1, "bad-request", "not JSON"),
        (b"[" * 4000, 1, "bad-request", "not JSON"),
        (b'["uplink"]', 1, "bad-request", "should be an object, not a list"),
        (b"{}", 1, "bad-request", "the right form: name: should be a text, not missing"),
        (b'{"name": 7}', 1, "bad-request", "name: should be a text"),
        (b'{"name": "a", "colour": "blue"}', 1, "bad-request", "unknown member 'colour'"),
        (b'{"name": "../x"}', 1, "bad-name", "'../x' cannot be the name"),
        (b'{"name": "0.uplink"}', 1, "bad-name", "0.uplink cannot be the name"),
        (b'{"name": "a"}', 0, "bad-request", "came with no fds"),
        (b'{"name": "a"}', 2, "bad-request", "came with 2 fds"),
        (b'{"name": "a"}', 200, "bad-request", "came with 200 fds"),
        (b"", 1, "bad-request", "not JSON"),
        (b'{"name": "' + b"a" * PACKET_MAX + b'"}', 1, "bad-request", "longer than 4096"),
    ],
)
async def test_a_packet_of_the_wrong_form_is_told_what_is_wrong_and_its_fds_are_closed(
    path: Path, tap: int, data: bytes, fds: int, code: str, complaint: str
) -> None:
    async with serving(path) as registry:
        with Caller(path) as caller:
            await caller.ask(b"nonsense")  # the service has its end now
            before = open_fds()
            answer = await caller.ask(data, [tap] * fds)
            assert open_fds() == before
        assert answer["ok"] is False
        assert (answer["code"], answer["type"]) == (code, f"urn:linkmgr:error:{code}")
        assert complaint in answer["what"]
        assert answer["hint"]
        assert answer["status"] == 400
        assert {"title", "detail", "nic", "state"} <= answer.keys()
        with pytest.raises(UnknownPort):
            await registry.claim(f"{os.getuid()}.a", "aaaa0001", NIC)


async def test_what_is_no_tap_is_a_bad_fd(path: Path) -> None:
    async with serving(path, registry=FdRegistry()):
        with Caller(path) as caller, open(os.devnull, "rb+") as null:  # noqa: ASYNC230, PTH123
            answer = await caller.ask(b'{"name": "uplink"}', [null.fileno()])
    assert (answer["ok"], answer["code"], answer["status"]) == (False, "bad-fd", 400)
    assert "the character device 1:3, not a tap" in answer["what"]


async def test_a_caller_may_hang_up_at_any_time(path: Path, tap: int) -> None:
    async with serving(path) as registry:
        with Caller(path):
            pass
        with Caller(path) as caller:  # before its answer, and the fd is there all the same
            caller.send(b'{"name": "uplink"}', [tap])

        async def there() -> bool:
            try:
                await registry.claim(f"{os.getuid()}.uplink", "aaaa0001", NIC)
            except UnknownPort:
                return False
            return True

        await until(there, timeout=5, what="the fd is left")
        with Caller(path) as caller:
            assert (await caller.ask(b'{"name": "b"}', [tap]))["ok"]


async def test_who_says_nothing_is_hung_up_on(path: Path) -> None:
    async with serving(path, idle=0.1):
        with Caller(path) as caller:
            assert await caller.hung_up()


async def test_who_reads_no_answers_is_hung_up_on(path: Path) -> None:
    async with serving(path):
        with Caller(path) as caller:

            def send_for_ever() -> None:
                caller.sock.setblocking(True)
                for _ in range(100_000):
                    caller.sock.send(b"nonsense")

            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await asyncio.to_thread(send_for_ever)


async def test_who_may_not_leave_fds_is_told_so(path: Path, tap: int) -> None:
    def nobody(peer: Peer) -> None:
        raise Forbidden(f"uid {peer.uid} may not leave fds", hint="ask somebody who may")

    async with serving(path, allow=nobody):
        with Caller(path) as caller:
            answer = await caller.ask(b'{"name": "uplink"}', [tap])
    assert (answer["code"], answer["status"]) == ("forbidden", 403)


async def test_one_user_cannot_have_all_connections(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fd_socket, "peer_of", lambda _: Peer(1000, 1000, 1, frozenset()))
    async with serving(path):
        callers = [Caller(path) for _ in range(fd_socket.MAX_CONNECTIONS_PER_UID)]
        for caller in callers:
            assert not (await caller.ask(b"nonsense"))["ok"]
        with Caller(path) as one_more:
            assert (await one_more.answer())["code"] == "too-many"
            assert await one_more.hung_up()
        callers[0].sock.close()

        async def free() -> bool:
            with Caller(path) as again:
                try:
                    again.send(b"nonsense")
                    return bool((await again.answer())["code"] == "bad-request")
                except OSError:
                    return False

        await until(free, timeout=5, what="a connection is free")
        for caller in callers:
            caller.sock.close()


async def test_closing_hangs_up_on_everybody_and_removes_the_socket(path: Path) -> None:
    async with FdSocket(FdRegistry(), bind(path), path=path):
        caller = Caller(path)
        await caller.ask(b"nonsense")
    with caller:
        assert await caller.hung_up()
    assert not path.exists()


async def test_a_dead_ones_socket_is_replaced_a_living_ones_is_not(path: Path) -> None:
    bind(path).close()
    assert path.is_socket()
    async with serving(path):
        assert path.stat().st_mode & 0o777 == 0o666
        with pytest.raises(AlreadyExists, match="somebody listens"):
            bind(path)
    path.write_text("precious")
    with pytest.raises(AlreadyExists, match="is no socket"):
        bind(path)
    assert path.read_text() == "precious"
    with pytest.raises(HostError, match="No such file or directory"):
        bind(path.parent / "no" / "fd.sock")


async def test_the_socket_of_a_successor_is_left_alone(path: Path) -> None:
    async with FdSocket(FdRegistry(), bind(path), path=path):
        path.unlink()
        other = bind(path)
    assert path.is_socket()
    other.close()
