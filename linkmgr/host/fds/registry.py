"""A registry of descriptors that wait under a name until a NIC is plugged into them.

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

from linkmgr.aio.threads import run_in_thread
from linkmgr.errors import BadFd, BadName, Conflict, PortInUse, UnknownPort
from linkmgr.host.fd import Fd
from linkmgr.host.fds.inspect import TapFdInfo, inspect_tap_fd
from linkmgr.model import NicRef, check_name

DEPOSIT_LIFETIME_S = 60.0  #: seconds that an fd waits for its NIC
PER_UID_MAX = 16  #: fds that may wait of one uid
TOTAL_MAX = 256  #: fds that may wait
FD_NAME_MAX = 52  #: with a uid and a dot before it, it still is the name of a port
_QUALIFIED = re.compile(r"(\d+)\.(.*)")


@dataclass
class _Deposit:
    uid: int
    fd: Fd
    found: TapFdInfo
    until: float  # in the clock's seconds


@dataclass
class _Claimed:
    """In use. Without `deposit` it outlived a restart of linkmgr, and only QEMU has the fd."""

    key: str
    nic: NicRef
    deposit: _Deposit | None
    consumed: bool = False  #: not to be given back


class FdRegistry:
    """The descriptors that callers have left. It owns them all. Close it at the end.

    :param lifetime: seconds that one waits.
    :param clock: seconds that only ever grow.
    :param inspect: checks one, in a thread.
    """

    def __init__(
        self,
        *,
        lifetime: float = DEPOSIT_LIFETIME_S,
        per_uid_max: int = PER_UID_MAX,
        total_max: int = TOTAL_MAX,
        clock: Callable[[], float] = time.monotonic,
        inspect: Callable[[int, str], TapFdInfo] = inspect_tap_fd,
    ) -> None:
        self.lifetime = lifetime
        self._per_uid_max = per_uid_max
        self._total_max = total_max
        self._clock = clock
        self._inspect = inspect
        self._waiting: dict[str, _Deposit] = {}
        self._claims: dict[str, _Claimed] = {}  # by the id of the attachment
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def deposit(self, uid: int, name: str, fd: Fd) -> float:
        """Put a descriptor under a name, in place of one that waits there.

        :param fd: owned by the registry from here on, closed on every error.
        :return: seconds until it expires.
        :raise BadName: when it cannot be a name.
        :raise BadFd: when a NIC cannot use it.
        :raise PortInUse: when a NIC is plugged into the one that was left there before.
        :raise Conflict: when too many wait.
        """
        doomed = [fd]
        try:
            key = _key(uid, name)
            found = await run_in_thread(self._inspect, fd.number, name)
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
            self._waiting[key] = _Deposit(uid, fd, found, self._clock() + self.lifetime)
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
            same = claim.deposit and claim.deposit.found.identity
            if same is not None and same == waiting.found.identity:
                raise PortInUse(
                    f"device {waiting.found.device}, fd {key}, is in use by {claim.nic} already",
                    hint="open a device for each NIC",
                )
        self._claims[ident] = _Claimed(key, nic, self._waiting.pop(key))

    def restore(self, key: str, ident: str, nic: NicRef) -> None:
        """Note a name that has been in use since before linkmgr was started."""
        self._claims[ident] = _Claimed(key, nic, None, consumed=True)

    async def recheck(self, ident: str) -> TapFdInfo | None:
        """Look once more at a descriptor that was claimed.

        :return: ``None`` when it was claimed before linkmgr was started: we do not have it.
        :raise BadFd: when it is of no use any more.
        """
        claim = self._claims[ident]
        if claim.deposit is None:
            return None
        try:
            return await run_in_thread(self._inspect, claim.deposit.fd.number, claim.key)
        except BadFd:
            claim.consumed = True
            raise

    def dup(self, ident: str) -> Fd:
        """Return a duplicate of a descriptor that was claimed, for the caller to own.

        :raise BadFd: when it was claimed before linkmgr was started: we do not have it.
        """
        claim = self._claims[ident]
        if claim.deposit is None:
            raise BadFd(
                f"fd {claim.key} was lost when linkmgr was started again", hint="leave it again"
            )
        return claim.deposit.fd.dup()

    def commit(self, ident: str) -> None:
        """Note that the NIC is on it now: it is not given back any more."""
        self._claims[ident].consumed = True

    async def release(self, ident: str) -> None:
        """End a claim. What no NIC was on waits again; the rest is closed. Repeats freely."""
        claim = self._claims.pop(ident, None)
        if claim is None or claim.deposit is None:
            return
        if claim.consumed or self._closed:
            await claim.deposit.fd.close_in_thread()
        else:
            claim.deposit.until = self._clock() + self.lifetime
            self._waiting[claim.key] = claim.deposit
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
        claimed = [claim.deposit.fd for claim in self._claims.values() if claim.deposit]
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
        if own >= self._per_uid_max:
            raise Conflict(
                f"{own} fds of uid {uid} wait to be plugged, which is as many as may",
                hint=f"plug them, or wait: each expires after {self.lifetime:g} s",
            )
        if len(self._waiting) >= self._total_max:
            raise Conflict(
                f"{len(self._waiting)} fds wait to be plugged, which is as many as may",
                hint=f"try again: each expires after {self.lifetime:g} s",
            )

    def _sweep_later(self) -> None:
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep_while_any(), name="fd registry")

    async def _sweep_while_any(self) -> None:
        while self._waiting:
            first = min(each.until for each in self._waiting.values())
            await asyncio.sleep(max(first - self._clock(), 0.01))
            await self.sweep()


def _key(uid: int, name: str) -> str:
    check_name("fd", name)
    if len(name) > FD_NAME_MAX or _QUALIFIED.fullmatch(name):
        raise BadName(
            f"{name[:40]} cannot be the name of an fd",
            hint=f"use at most {FD_NAME_MAX} characters, and begin with no number and dot",
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
