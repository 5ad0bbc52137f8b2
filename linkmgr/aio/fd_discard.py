"""Closes descriptors in a process of its own, where the last close may wait.

Closing a unix socket closes what lies in it unreceived, and dropping the last reference to a TCP
socket with SO_LINGER waits until its peer has read. A process that ends never waits for that (the
kernel's ``inet_release`` looks at PF_EXITING), so a child gets a duplicate and is killed. The event
loop does not wait for it, and it needs no descriptor of ours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence

log = logging.getLogger(__name__)

#: Descriptors for one child: a flood of connections costs few processes.
FDS_PER_CHILD = 64
#: Seconds between two children, unless a whole batch waits: at most 20 a second, 1 ms each.
CHILD_INTERVAL_S = 0.05
#: Children at once. One is stuck only while the kernel frees something large, such as a big file.
CHILDREN_MAX = 16
#: Seconds until the next attempt when no child can be made.
SPAWN_RETRY_INTERVAL_S = 1.0
_REAP_INTERVAL_S = 0.02  # between two looks at which children have ended
# It is killed at once; by itself it ends if we die in between.
_SLEEP_COMMAND = ("/bin/sleep", "60")


class Discarder:
    """Discards descriptors from one event loop, or without one."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._children: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the timer

    def discard(self, fd: int) -> None:
        """Close a descriptor soon. Owned from here on."""
        self._waiting.append(fd)
        if self._timer is None or self._loop is not _loop() or len(self._waiting) >= FDS_PER_CHILD:
            self._close_batch()

    async def drain(self, timeout: float = 2.0) -> None:
        """Wait until all is closed and every child has ended.

        :param timeout: seconds; what is stuck then is left to the end of this process.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while self._waiting or self._children:
            self._close_batch()
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_REAP_INTERVAL_S / 4)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_batch(self) -> None:
        self._children = {pid for pid in self._children if not _has_ended(pid)}
        delay = CHILD_INTERVAL_S
        if self._waiting and len(self._children) < CHILDREN_MAX:
            batch, rest = self._waiting[:FDS_PER_CHILD], self._waiting[FDS_PER_CHILD:]
            try:
                self._children.add(_close_in_child(batch))
                self._waiting = rest
            except OSError as error:
                delay = SPAWN_RETRY_INTERVAL_S
                log.warning("no process can be made to close descriptors in: %s", error)
        elif not self._waiting:
            delay = _REAP_INTERVAL_S
        self._schedule(delay)

    def _schedule(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop = _loop()
        if self._loop is not None and (self._waiting or self._children):
            self._timer = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._close_batch()


def _loop() -> asyncio.AbstractEventLoop | None:
    """The running event loop; none at the end of the process, which does not wait either."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _close_in_child(fds: Sequence[int]) -> int:
    """Let a child have the last reference, and kill it."""
    inherited = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds]  # to itself: it clears FD_CLOEXEC
    child = os.posix_spawn(_SLEEP_COMMAND[0], _SLEEP_COMMAND, {}, file_actions=inherited)
    for fd in fds:
        os.close(fd)  # not the last one: the child lives
    os.kill(child, signal.SIGKILL)
    return child


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


_DISCARDER = Discarder()
discard = _DISCARDER.discard
drain = _DISCARDER.drain
