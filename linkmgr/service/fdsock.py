"""The socket on which callers leave fds, to plug them as ``fd:NAME`` afterwards.

A second socket beside the HTTP one, because HTTP carries no descriptors: SOCK_SEQPACKET, so that a
packet is a request and the fd that came with it (SCM_RIGHTS, unix(7)) belongs to that request and
to no other. docs/fd.md has the protocol.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from linkmgr.errors import AlreadyExists, BadRequest, HostError, LinkmgrError
from linkmgr.host import Fd
from linkmgr.host.shelf import FdShelf, close_all
from linkmgr.jsonform import Form, FormError
from linkmgr.service.peers import Peer, peer_of
from linkmgr.service.problems import Refused, problem

log = logging.getLogger(__name__)

DEFAULT_PATH = Path("/run/linkmgr/fd.sock")
PACKET_MAX = 4096  #: bytes of a request
IDLE_SECONDS = 10.0  #: how long a connection may say nothing
PER_UID = 8  #: connections of one user at once
IN_ALL = 64  #: connections at once
_FDS_MAX = 8  # that are taken in, only to be closed; of more the kernel keeps the rest
_FORM = 'send one packet {"name": "NAME"} with exactly one fd; see docs/fd.md'


@dataclass
class _Packet:
    """What one packet brought. It owns the fds."""

    data: bytes
    fds: list[Fd] = field(default_factory=list)
    too_long: bool = False
    fds_lost: bool = False


def everyone(_peer: Peer) -> None:
    """The rule that lets every local user leave fds. Plugging them is another matter."""


def bind(path: Path) -> socket.socket:
    """Make the socket, for every local user to connect to. A file that a dead one left goes.

    :raise AlreadyExists: when somebody listens there, or the file is no socket.
    :raise HostError: when the directory does not allow it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        _remove_stale(path)
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(IN_ALL)
    except OSError as error:
        sock.close()
        raise HostError(
            f"cannot listen on {path}: {error.strerror or error}",
            hint="look at the directory and its owner, or name another path",
        ) from error
    except BaseException:
        sock.close()
        raise
    return sock


class FdSocket:
    """Serves the socket. ``async with`` owns it and everything that is connected.

    :param shelf: where the fds go.
    :param listening: made by `bind` or by systemd; closed at the end.
    :param path: removed at the end, when it is still that socket; for one of systemd's ``None``.
    :param allow: raises `Forbidden` for those who may not leave fds.
    :param idle: seconds that a connection may say nothing.
    """

    def __init__(
        self,
        shelf: FdShelf,
        listening: socket.socket,
        *,
        path: Path | None = None,
        allow: Callable[[Peer], None] = everyone,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self._shelf = shelf
        self._listening = listening
        self._path = path
        self._inode = path.lstat().st_ino if path else None
        self._allow = allow
        self._idle = idle
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: Counter[int] = Counter()  # by uid

    async def __aenter__(self) -> Self:
        self._listening.setblocking(False)
        self._start(self._accept(), "fd socket")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._path.lstat().st_ino == self._inode:
                    self._path.unlink()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listening.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listening)
            except OSError as error:  # no fd is free just now, or the peer has gone again
                log.warning("fd socket: cannot take a connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            sock.setblocking(False)
            self._start(self._serve(sock), "fd socket peer")

    async def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):  # whatever it is, only this peer is concerned
            peer = peer_of(sock)
            full = self._connections[peer.uid] >= PER_UID or self._connections.total() >= IN_ALL
            if full and peer.uid not in {0, os.geteuid()}:
                busy = Refused(
                    "too-many", "there are too many connections to the fd socket", "try again"
                )
                _answer(sock, problem(busy))
                return
            self._connections[peer.uid] += 1
            try:
                while await self._one(sock, peer):
                    pass
            finally:
                self._connections -= Counter([peer.uid])

    async def _one(self, sock: socket.socket, peer: Peer) -> bool:
        """Serve one packet; false at the end of the connection."""
        try:
            async with asyncio.timeout(self._idle):
                packet = await _receive(sock)
        except TimeoutError:
            return False
        if not packet.data and not packet.fds:
            return False
        try:
            expires = await self._leave(packet, peer)
            answer = {"ok": True, "expires": expires}
        except Exception as error:  # noqa: BLE001 - whatever it is, the peer is told
            if isinstance(error, LinkmgrError):
                log.info("fd socket: %s: %s", peer, error)
            answer = {"ok": False, **problem(error)}
        finally:
            await close_all(packet.fds)  # those that nobody took
        _answer(sock, answer)
        return True

    async def _leave(self, packet: _Packet, peer: Peer) -> float:
        self._allow(peer)
        name = _name(packet)
        if packet.fds_lost or len(packet.fds) != 1:
            many = "more than one fd" if packet.fds else "no fd that could be taken in"
            had = many if packet.fds_lost else f"{len(packet.fds) or 'no'} fds"
            raise BadRequest(f"the packet for {name} came with {had}", hint=_FORM)
        expires = await self._shelf.leave(peer.uid, name, packet.fds.pop())
        log.info("fd socket: %s left an fd as %s", peer, name)
        return expires

    def _start(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _name(packet: _Packet) -> str:
    if packet.too_long:
        raise BadRequest(f"the packet is longer than {PACKET_MAX} bytes", hint=_FORM)
    try:
        document = json.loads(packet.data)
        name = Form(document).text("name")
    except FormError as error:
        raise BadRequest(f"the packet is not of the right form: {error}", hint=_FORM) from error
    except (ValueError, RecursionError) as error:
        raise BadRequest("the packet is not JSON", hint=_FORM) from error
    if unknown := sorted(set(document) - {"name"}):
        raise BadRequest(f"the packet has an unknown member {ascii(unknown[0])[:43]}", hint=_FORM)
    return name


async def _receive(sock: socket.socket) -> _Packet:
    """Receive one packet; one without anything when the peer has hung up."""
    room = socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
    while True:
        await _readable(sock)
        with contextlib.suppress(BlockingIOError):
            data, controls, flags, _ = sock.recvmsg(PACKET_MAX, room, socket.MSG_CMSG_CLOEXEC)
            break
    fds = array.array("i")
    for level, kind, payload in controls:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return _Packet(
        data,
        [Fd(number) for number in fds],
        too_long=bool(flags & socket.MSG_TRUNC),
        fds_lost=bool(flags & socket.MSG_CTRUNC),
    )


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def _answer(sock: socket.socket, document: dict[str, Any]) -> None:
    """Send an answer. Who does not read answers until no more fit is hung up on.

    :raise OSError: the peer is gone, or does not read.
    """
    sock.send(json.dumps(document).encode("ascii"))


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise AlreadyExists(f"{path} exists and is no socket", hint="name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # it listens, and its backlog is full
    raise AlreadyExists(f"somebody listens on {path} already", hint="end that one first")
