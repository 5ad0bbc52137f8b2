"""Where descriptors wait under a name until a NIC is plugged into them.

Like the names of QMP's ``getfd``, but for callers of linkmgr. A name belongs to the uid that left
it. It is free, waiting (until it expires, is left again or is claimed) or in use by a NIC.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from linkmgr.errors import BadFd, BadName, Conflict, PortInUse, UnknownPort
from linkmgr.host.fds import Fd
from linkmgr.host.handed import TapFdInfo, inspect_tap_fd
from linkmgr.host.threads import run_in_thread
from linkmgr.model import NicRef, check_name

LIFETIME = 60.0  #: seconds that an fd waits for its NIC
PER_UID = 16  #: fds that may wait of one uid
IN_ALL = 256  #: fds that may wait
NAME_MAX = 52  #: with a uid and a dot before it, it still is the name of a port
_QUALIFIED = re.compile(r"(\d+)\.(.*)")


@dataclass
class _Waiting:
    uid: int
    fd: Fd
    found: TapFdInfo
    until: float  # in the clock's seconds


@dataclass
class _Claimed:
    """In use. Without `waited` it outlived a restart of linkmgr, and only QEMU has the fd."""

    key: str
    nic: NicRef
    waited: _Waiting | None
    spent: bool = False  #: not to be given back


class FdShelf:
    """The descriptors that callers have left. It owns them all. Close it at the end.

    :param lifetime: seconds that one waits.
    :param clock: seconds that only ever grow.
    :param look: checks one, in a thread.
    """

    def __init__(
        self,
        *,
        lifetime: float = LIFETIME,
        per_uid: int = PER_UID,
        in_all: int = IN_ALL,
        clock: Callable[[], float] = time.monotonic,
        look: Callable[[int, str], TapFdInfo] = inspect_tap_fd,
    ) -> None:
        self.lifetime = lifetime
        self._per_uid = per_uid
        self._in_all = in_all
        self._clock = clock
        self._look = look
        self._waiting: dict[str, _Waiting] = {}
        self._claims: dict[str, _Claimed] = {}  # by the id of the attachment
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def leave(self, uid: int, name: str, fd: Fd) -> float:
        """Put a descriptor under a name, in place of one that waits there.

        :param fd: owned by the shelf from here on, closed on every error.
        :return: seconds until it expires.
        :raise BadName: when it cannot be a name.
        :raise BadFd: when a NIC cannot use it.
        :raise PortInUse: when a NIC is plugged into the one that was left there before.
        :raise Conflict: when too many wait.
        """
        doomed = [fd]
        try:
            key = _key(uid, name)
            found = await run_in_thread(self._look, fd.number, name)
            doomed += self._expired()
            if self._closed:
                raise BadFd(f"fd {name} was left while linkmgr ends", hint="leave it again later")
            for claim in self._claims.values():
                if claim.key == key:
                    raise PortInUse(
                        f"the fd that was left as {name} before is in use by {claim.nic}",
                        hint="unplug that NIC first, or leave this one under another name",
                    )
            before = self._waiting.pop(key, None)
            if before is None:
                self._check_room(uid)
            else:
                doomed.append(before.fd)
            self._waiting[key] = _Waiting(uid, fd, found, self._clock() + self.lifetime)
            doomed.remove(fd)
            self._sweep_later()
            return self.lifetime
        finally:
            await close_all(doomed)

    async def claim(self, key: str, ident: str, nic: NicRef) -> None:
        """Take a descriptor for a NIC.

        :param key: ``UID.NAME``, as `port_name` makes it.
        :param ident: of the attachment that it is for.
        :raise UnknownPort: when nothing waits there.
        :raise PortInUse: when another NIC is plugged into the same device.
        """
        await close_all(self._expired())
        waiting = self._waiting.get(key)
        if waiting is None:
            uid, _, name = key.partition(".")
            raise UnknownPort(
                f"uid {uid} has left no fd under the name {name}, or not lately",
                hint=f"leave it, and plug within {self.lifetime:g} s",
            )
        for claim in self._claims.values():
            same = claim.waited and claim.waited.found.identity
            if same is not None and same == waiting.found.identity:
                raise PortInUse(
                    f"device {waiting.found.device}, fd {key}, is in use by {claim.nic} already",
                    hint="open a device for each NIC",
                )
        self._claims[ident] = _Claimed(key, nic, self._waiting.pop(key))

    def adopt(self, key: str, ident: str, nic: NicRef) -> None:
        """Note a name that has been in use since before linkmgr was started."""
        self._claims[ident] = _Claimed(key, nic, None, spent=True)

    async def look(self, ident: str) -> TapFdInfo | None:
        """Look once more at a descriptor that was claimed.

        :return: ``None`` when it was claimed before linkmgr was started: we do not have it.
        :raise BadFd: when it is of no use any more.
        """
        claim = self._claims[ident]
        if claim.waited is None:
            return None
        try:
            return await run_in_thread(self._look, claim.waited.fd.number, claim.key)
        except BadFd:
            claim.spent = True
            raise

    def copy(self, ident: str) -> Fd:
        """Return a duplicate of a descriptor that was claimed, for the caller to own.

        :raise BadFd: when it was claimed before linkmgr was started: we do not have it.
        """
        claim = self._claims[ident]
        if claim.waited is None:
            raise BadFd(
                f"fd {claim.key} was lost when linkmgr was started again", hint="leave it again"
            )
        return claim.waited.fd.dup()

    def use(self, ident: str) -> None:
        """Note that the NIC is on it now: it is not given back any more."""
        self._claims[ident].spent = True

    async def end(self, ident: str) -> None:
        """End a claim. What no NIC was on waits again; the rest is closed. Repeats freely."""
        claim = self._claims.pop(ident, None)
        if claim is None or claim.waited is None:
            return
        if claim.spent or self._closed:
            await claim.waited.fd.close_in_thread()
        else:
            claim.waited.until = self._clock() + self.lifetime
            self._waiting[claim.key] = claim.waited
            self._sweep_later()

    async def sweep(self) -> None:
        """Close what has expired."""
        await close_all(self._expired())

    async def close(self) -> None:
        """Close all. Repeats freely."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        claimed = [claim.waited.fd for claim in self._claims.values() if claim.waited]
        waiting = [each.fd for each in self._waiting.values()]
        self._claims.clear()
        self._waiting.clear()
        await close_all([*claimed, *waiting])

    def _expired(self) -> list[Fd]:
        """Take out what has expired; the caller closes it."""
        now = self._clock()
        over = [key for key, each in self._waiting.items() if each.until <= now]
        return [self._waiting.pop(key).fd for key in over]

    def _check_room(self, uid: int) -> None:
        own = sum(each.uid == uid for each in self._waiting.values())
        if own >= self._per_uid:
            raise Conflict(
                f"{own} fds of uid {uid} wait to be plugged, which is as many as may",
                hint=f"plug them, or wait: each expires after {self.lifetime:g} s",
            )
        if len(self._waiting) >= self._in_all:
            raise Conflict(
                f"{len(self._waiting)} fds wait to be plugged, which is as many as may",
                hint=f"try again: each expires after {self.lifetime:g} s",
            )

    def _sweep_later(self) -> None:
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep_while_any(), name="fd shelf")

    async def _sweep_while_any(self) -> None:
        while self._waiting:
            first = min(each.until for each in self._waiting.values())
            await asyncio.sleep(max(first - self._clock(), 0.01))
            await self.sweep()


def _key(uid: int, name: str) -> str:
    check_name("fd", name)
    if len(name) > NAME_MAX or _QUALIFIED.fullmatch(name):
        raise BadName(
            f"{name[:40]} cannot be the name of an fd",
            hint=f"use at most {NAME_MAX} characters, and begin with no number and dot",
        )
    return f"{uid}.{name}"


def port_name(uid: int, name: str) -> str:
    """The name of the port for an fd: ``UID.NAME``.

    :param name: as it was left, or with its uid already.
    :raise BadName: when it cannot be a name.
    :raise UnknownPort: when it is the name of another uid.
    """
    check_name("fd", name)
    if found := _QUALIFIED.fullmatch(name):
        if found[1] != str(uid):
            raise UnknownPort(
                f"fd {name} is a name of uid {found[1]}, which uid {uid} cannot use",
                hint="plug as the user who left it, or leave an fd of your own",
            )
        name = found[2]
    return _key(uid, name)


async def close_all(fds: list[Fd]) -> None:
    """Close in threads: the last descriptor of a tap takes 20 ms. All are closed on return."""
    with contextlib.ExitStack() as rest:
        for fd in fds:
            rest.callback(fd.close)  # when cancelled in the middle
        for fd in fds:
            await fd.close_in_thread()
