"""The socket on which callers leave fds, to plug them as ``fd:NAME`` afterwards.

A second socket beside the HTTP one, because HTTP carries no descriptors: SOCK_SEQPACKET, so that a
packet is a request and the fd that came with it (SCM_RIGHTS, unix(7)) belongs to that request and
to no other. docs/fd.md has the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from linkmgr.aio.fd_discard import drain
from linkmgr.aio.log_limit import LogLimit
from linkmgr.aio.unix_sockets import UnixSocket, accept_connections, wait_readable
from linkmgr.errors import AlreadyExists, BadRequest, HostError, LinkmgrError
from linkmgr.host.fds.inspect import not_a_tap_error
from linkmgr.host.fds.receive import PACKET_MAX
from linkmgr.host.fds.registry import FdRegistry
from linkmgr.service.auth.peer import Peer, peer_of
from linkmgr.service.auth.quota import Quota, Rank
from linkmgr.service.fd_receiver import Packet, Receivers
from linkmgr.service.problems import ServiceProblem, problem
from linkmgr.state.codec import DecodeError, JsonReader

DEFAULT_PATH = Path("/run/linkmgr/fd.sock")
IDLE_TIMEOUT_S = 10.0  #: how long a connection may say nothing
MAX_CONNECTIONS_PER_UID = 8  #: connections of one user at once
MAX_CONNECTIONS = 64  #: connections at once
#: Seconds to read an answer in, where its packet stays unread: with that the kernel drops it.
_LAST_ANSWER_S = 0.5
_FORM = 'send one packet {"name": "NAME"} with exactly one fd; see docs/fd.md'


def everyone(_peer: Peer) -> None:
    """The rule that lets every local user leave fds. Plugging them is another matter."""


def only_root(peer: Peer) -> Rank:
    """The ranks without a configuration: root and this process's own user, and strangers."""
    return Rank.PRIVILEGED if peer.uid in {0, os.geteuid()} else Rank.STRANGER


def bind(path: Path) -> UnixSocket:
    """Make the socket, for every local user to connect to. A file that a dead one left goes.

    :raise AlreadyExists: when somebody listens there, or the file is no socket.
    :raise HostError: when the directory does not allow it.
    """
    sock = UnixSocket.make(socket.SOCK_SEQPACKET)
    try:
        _remove_stale(path)
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(MAX_CONNECTIONS)
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

    :param registry: where the fds go.
    :param listening: made by `bind` or by systemd; closed at the end.
    :param path: removed at the end, when it is still that socket; for one of systemd's ``None``.
    :param allow: raises `Forbidden` for those who may not leave fds.
    :param idle: seconds that a connection may say nothing.
    :param rank: of a user, see `Quota`.
    """

    def __init__(
        self,
        registry: FdRegistry,
        listening: UnixSocket,
        *,
        path: Path | None = None,
        allow: Callable[[Peer], None] = everyone,
        idle: float = IDLE_TIMEOUT_S,
        rank: Callable[[Peer], Rank] = only_root,
    ) -> None:
        self._registry = registry
        self._listening = listening
        self._path = path
        self._inode = path.lstat().st_ino if path else None
        self._allow = allow
        self._idle = idle
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = Quota(lambda: MAX_CONNECTIONS, rank, lambda: MAX_CONNECTIONS_PER_UID)
        self._receivers = Receivers()
        self._limit = LogLimit(__name__)

    async def __aenter__(self) -> Self:
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
        await self._receivers.close()
        await drain()

    async def _accept(self) -> None:
        async for sock in accept_connections(self._listening):
            self._start(self._serve(sock), "fd socket peer")

    async def _serve(self, sock: UnixSocket) -> None:
        with sock, contextlib.suppress(OSError):  # whatever it is, only this peer is concerned
            peer = peer_of(sock)
            if why := self._places.refusal(peer):
                what = f"no more connections to the fd socket now: {why}"
                _answer(sock, problem(ServiceProblem("too-many", what, "try again")))
                return
            leave = self._places.enter(peer)
            try:
                while await self._one(sock, peer):
                    pass
            finally:
                leave()

    async def _one(self, sock: UnixSocket, peer: Peer) -> bool:
        """Serve one packet; false at the end of the connection."""
        try:
            async with asyncio.timeout(self._idle):
                brings_fds = await _look(sock)
        except TimeoutError:
            return False
        packet = None
        try:
            if brings_fds:
                self._allow(peer)  # before a process is made for it
                packet = await self._receivers.receive(sock, peer.uid)
            else:
                packet = _plain(sock)
                if not packet.data:
                    return False
                self._allow(peer)
            expires = await self._leave(packet, peer)
            answer = {"ok": True, "expires": expires}
        except Exception as error:  # noqa: BLE001 - whatever it is, the peer is told
            if isinstance(error, LinkmgrError):
                self._limit.log(logging.INFO, f"uid {peer.uid}", "fd socket: %s: %s", peer, error)
            answer = {"ok": False, **problem(error)}
        finally:
            if packet is not None and packet.fd is not None:  # nobody took it
                await packet.fd.close_in_thread()
        _answer(sock, answer)
        if packet is None:  # it still is what would be read next
            await asyncio.sleep(_LAST_ANSWER_S)
        return packet is not None

    async def _leave(self, packet: Packet, peer: Peer) -> float:
        name = _name(packet)
        if packet.lost or packet.count != 1:
            had = "no fd that could be taken in" if packet.lost else f"{packet.count or 'no'} fds"
            raise BadRequest(f"the packet for {name} came with {had}", hint=_FORM)
        if packet.fd is None:
            raise not_a_tap_error(*packet.kind, name)
        fd, packet.fd = packet.fd, None
        expires = await self._registry.deposit(peer.uid, name, fd)
        about = "fd socket: %s left an fd as %s"
        self._limit.log(logging.INFO, f"uid {peer.uid}", about, peer, name)
        return expires

    def _start(self, coroutine: Any, name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _name(packet: Packet) -> str:
    if packet.too_long:
        raise BadRequest(f"the packet is longer than {PACKET_MAX} bytes", hint=_FORM)
    try:
        document = json.loads(packet.data)
        name = JsonReader(document).text("name")
    except DecodeError as error:
        raise BadRequest(f"the packet is not of the right form: {error}", hint=_FORM) from error
    except (ValueError, RecursionError) as error:
        raise BadRequest("the packet is not JSON", hint=_FORM) from error
    if unknown := sorted(set(document) - {"name"}):
        raise BadRequest(f"the packet has an unknown member {ascii(unknown[0])[:43]}", hint=_FORM)
    return name


async def _look(sock: UnixSocket) -> bool:
    """Wait for a packet; return whether it brings descriptors, which stay where they are."""
    while True:
        await wait_readable(sock)
        with contextlib.suppress(BlockingIOError):
            flags = sock.recvmsg(1, 0, socket.MSG_PEEK)[2]
            return bool(flags & socket.MSG_CTRUNC)


def _plain(sock: UnixSocket) -> Packet:
    """Receive a packet that brings no descriptors; one without anything at the end."""
    data, _, flags, _ = sock.recvmsg(PACKET_MAX)
    return Packet(data, too_long=bool(flags & socket.MSG_TRUNC))


def _answer(sock: UnixSocket, document: dict[str, Any]) -> None:
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
