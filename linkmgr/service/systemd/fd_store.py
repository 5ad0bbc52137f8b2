"""Descriptors that systemd passes at a start, and its fd store, where fds survive a kill -9.

At every start systemd passes the listening sockets of our .socket units and all fds of the store,
from number 3 on, with a name each (sd_listen_fds(3)). `passed_fds` takes all of them over, once.
A cable's fd is stored under ``lm-ID`` (FDSTORE=1 in sd_notify(3)); the store holds a duplicate.
systemd drops everything when the service is stopped, and nothing else by itself: it does not notice
that a tap was deleted.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, MutableMapping

from linkmgr.host import Fd
from linkmgr.service.systemd.notify import SystemdNotifier

log = logging.getLogger(__name__)

API, ADMIN, HANDOVER, MONITORS = "api", "admin", "fd", "qmp"  #: FileDescriptorName= of our sockets
_FIRST = 3  # SD_LISTEN_FDS_START
_PREFIX = "lm-"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")  # FDNAME= takes no colon, and at most 255 characters


class PassedFds:
    """The descriptors that systemd passed. Owns those that nobody has taken yet.

    :param fds: each with the name that systemd gave it.
    """

    def __init__(self, fds: list[tuple[str, Fd]]) -> None:
        self._fds = fds

    @property
    def names(self) -> list[str]:
        """The names of those that nobody has taken yet."""
        return [name for name, _ in self._fds]

    def pop(self, name: str) -> Fd | None:
        """Hand over the first one of that name; the caller owns it then."""
        for at, (found, fd) in enumerate(self._fds):
            if found == name:
                del self._fds[at]
                return fd
        return None

    def close(self) -> None:
        """Close those that nobody has taken. Repeats freely."""
        while self._fds:
            self._fds.pop()[1].close()


def passed_fds(environ: MutableMapping[str, str] = os.environ) -> PassedFds:
    """Take over what systemd passed to this process, closed on exec from now on.

    The variables are taken out of the environment, so the second call finds nothing. What was meant
    for another process (LISTEN_PID) is left alone.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return PassedFds([])
    fds: list[tuple[str, Fd]] = []
    for at in range(int(count)):
        number = _FIRST + at
        try:
            os.set_inheritable(number, False)
        except OSError as error:
            log.warning("systemd says that it passed fd %d, but: %s", number, error)
            continue
        fds.append((names[at] if at < len(names) else "", Fd(number)))
    return PassedFds(fds)


class SystemdFdStore:
    """systemd's store as an `FdStore`. Owns what an earlier run left until it is taken or dropped.

    :param notifier: how systemd is told; stays the caller's.
    :param passed: the fds of the store are taken out of it; the rest stays the caller's.
    """

    def __init__(self, notifier: SystemdNotifier, passed: PassedFds) -> None:
        self._notifier = notifier
        self._left: dict[str, Fd] = {}
        for name in [name for name in passed.names if name.startswith(_PREFIX)]:
            fd = passed.pop(name)
            assert fd is not None
            if name in self._left:  # the same fd, stored twice
                fd.close()
            else:
                self._left[name] = fd

    @property
    def left(self) -> list[str]:
        """The ids of what an earlier run left and nobody has dropped yet."""
        return [name.removeprefix(_PREFIX) for name in self._left]

    def keep(self, ident: str, fd: int) -> None:
        """See `FdStore.keep`. systemd notices an fd that it has already."""
        if (name := _name(ident)) is not None:
            # FDPOLL=0: systemd would be woken for each of the guest's frames, and hear of nothing.
            self._notifier.send("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}", fds=[fd])

    def drop(self, ident: str) -> None:
        """See `FdStore.drop`."""
        if (name := _name(ident)) is None:
            return
        if (fd := self._left.pop(name, None)) is not None:
            fd.close()  # the store still has it: this is not the last one, and takes no time
        self._notifier.send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def dup(self, ident: str) -> int | None:
        """See `FdStore.dup`."""
        fd = self._left.get(_PREFIX + ident)
        if fd is None:
            return None
        try:
            return fd.dup().detach()
        except OSError as error:
            log.warning("the fd of cable %s cannot be duplicated: %s", ident, error)
            return None

    def prune(self, claimed: Collection[str], pending: Collection[str]) -> None:
        """See `FdStore.prune`."""
        for ident in self.left:
            if ident in claimed:  # the store keeps it
                self._left.pop(_PREFIX + ident).close()
            elif ident not in pending:
                log.info("no cable needs the fd of %s any more", ident)
                self.drop(ident)

    def close(self) -> None:
        """Close our duplicates of what an earlier run left; they stay in the store."""
        while self._left:
            self._left.popitem()[1].close()


def _name(ident: str) -> str | None:
    if _NAME.fullmatch(ident):
        return _PREFIX + ident
    log.warning("%a cannot be the name of an fd in systemd's store: it is not kept", ident)
    return None
