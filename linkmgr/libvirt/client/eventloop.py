"""libvirt's event loop is asyncio's: libvirt says what to wait for, asyncio waits.

libvirt-python's own `libvirtaio` does the same for a program of one thread. Here a thread makes the
calls (see `linkmgr.libvirt.client.worker`), and libvirt changes what it waits for from that thread,
in the middle of each call; asyncio may be touched from its own thread only. So a change is noted at
once, under a lock, and the loop is told to look at what is noted by then: whichever thread was
first, the last word holds. What libvirt wants freed is freed by the loop, after it has stopped
waiting for it.

There is one for the process, for libvirt takes no second one: `shared`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

READABLE, WRITABLE = 1, 2  #: VIR_EVENT_HANDLE_*


@dataclass
class _Watch:
    fd: int
    events: int
    callback: Callable[[int, int, int, Any], object]
    opaque: Any


@dataclass
class _Timer:
    milliseconds: int  #: between two calls; negative: none
    callback: Callable[[int, Any], object]
    opaque: Any
    due: asyncio.TimerHandle | None = None


class EventLoop:
    """What libvirt waits for, in one asyncio loop at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._watches: dict[int, _Watch] = {}
        self._timers: dict[int, _Timer] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._libvirt: Any = None

    def register(self, libvirt: Any) -> None:
        """Tell libvirt of it; before the first connection. Once for the process."""
        with self._lock:
            if self._libvirt is not None:
                return
            libvirt.virEventRegisterImpl(
                self._add_watch, self._update_watch, self._remove_watch,
                self._add_timer, self._update_timer, self._remove_timer,
            )  # fmt: skip
            self._libvirt = libvirt
        # It would print each error on stderr; ours say the same.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)

    def use(self) -> None:
        """Wait in the running loop from here on; to be called in it, before a connection is opened.

        :raise RuntimeError: connections of another loop, that still runs, are open.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._loop is loop:
                return
            if self._loop and not self._loop.is_closed() and (self._watches or self._timers):
                raise RuntimeError("libvirt's connections belong to another event loop")
            self._loop = loop

    # --- called by libvirt, in any thread ---------------------------------------------------------
    def _add_watch(self, fd: int, events: int, callback: Any, opaque: Any) -> int:
        number = next(self._numbers)
        with self._lock:
            self._watches[number] = _Watch(fd, events, callback, opaque)
        self._soon(self._look_at, fd)
        return number

    def _update_watch(self, number: int, events: int) -> None:
        with self._lock:
            watch = self._watches.get(number)
            if watch is None:
                return
            watch.events = events
        self._soon(self._look_at, watch.fd)

    def _remove_watch(self, number: int) -> int:
        with self._lock:
            watch = self._watches.pop(number, None)
        if watch is None:
            return -1
        self._soon(self._look_at, watch.fd)
        self._soon(self._free, watch.opaque)
        return 0

    def _add_timer(self, milliseconds: int, callback: Any, opaque: Any) -> int:
        number = next(self._numbers)
        with self._lock:
            self._timers[number] = _Timer(milliseconds, callback, opaque)
        self._soon(self._arm, number)
        return number

    def _update_timer(self, number: int, milliseconds: int) -> None:
        with self._lock:
            timer = self._timers.get(number)
            if timer is None:
                return
            timer.milliseconds = milliseconds
        self._soon(self._arm, number)

    def _remove_timer(self, number: int) -> int:
        with self._lock:
            timer = self._timers.pop(number, None)
        if timer is None:
            return -1
        self._soon(self._disarm, timer)
        self._soon(self._free, timer.opaque)
        return 0

    def _soon(self, call: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program ends
            if self._loop is not None:
                self._loop.call_soon_threadsafe(call, *arguments)

    # --- in the loop ------------------------------------------------------------------------------
    def _look_at(self, fd: int) -> None:
        """Wait on the fd for what is wanted of it now."""
        assert self._loop is not None
        wanted = 0
        with self._lock:
            for watch in self._watches.values():
                wanted |= watch.events if watch.fd == fd else 0
        if wanted & READABLE:
            self._loop.add_reader(fd, self._ready, fd, READABLE)
        else:
            self._loop.remove_reader(fd)
        if wanted & WRITABLE:
            self._loop.add_writer(fd, self._ready, fd, WRITABLE)
        else:
            self._loop.remove_writer(fd)

    def _ready(self, fd: int, event: int) -> None:
        with self._lock:
            ready = [
                (number, watch)
                for number, watch in self._watches.items()
                if watch.fd == fd and watch.events & event
            ]
        for number, watch in ready:
            if number in self._watches:  # not removed by the one before it
                watch.callback(number, fd, event, watch.opaque)

    def _arm(self, number: int) -> None:
        timer = self._timers.get(number)
        if timer is None:
            return
        self._disarm(timer)
        if timer.milliseconds >= 0 and self._loop is not None:
            seconds = timer.milliseconds / 1000
            timer.due = self._loop.call_later(seconds, self._ring, number)

    def _ring(self, number: int) -> None:
        timer = self._timers.get(number)
        if timer is not None:
            timer.due = None
            timer.callback(number, timer.opaque)
            if timer.due is None:
                self._arm(number)  # it rings until it is told otherwise

    @staticmethod
    def _disarm(timer: _Timer) -> None:
        if timer.due is not None:
            timer.due.cancel()
            timer.due = None

    def _free(self, opaque: object) -> None:
        self._libvirt.virEventInvokeFreeCallback(opaque)


shared = EventLoop()
