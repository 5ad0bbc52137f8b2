"""A profile function that records files, asyncio tasks and locks between two functions.

Recording begins when the first function is entered, and follows the context of that call
(`contextvars`) into the tasks that it starts, and into threads by `asyncio.to_thread`. Tasks and
threads that ran before, such as the reader of a monitor, are left out.
"""

from __future__ import annotations

import asyncio
import asyncio.locks
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

LOCK = (asyncio.locks.__file__, asyncio.Lock.acquire.__name__)


class Way:
    """Profile function (`sys.setprofile`) that records from one function's first line to another's.

    :param folder: only its files are looked at.
    :param first: whether the way begins with a function, which is named by its file (relative to
        the folder, without its ending) and its own name.
    :param last: whether it ends with a function.
    """

    def __init__(
        self, folder: Path, first: Callable[[str, str], bool], last: Callable[[str, str], bool]
    ) -> None:
        self.files: dict[str, str] = {}  #: files in order, each with the first function entered
        self.locks: list[str] = []  #: the function that took each lock
        self.later_locks: list[str] = []  #: the same after the end
        self.tasks: list[
            str
        ] = []  #: coroutines of the nested tasks at the end, the outermost first
        self.ended = False
        self._prefix = f"{folder}/"
        self._first = first
        self._last = last
        self._on_it: ContextVar[tuple[asyncio.Task[Any] | None, ...]] = ContextVar("way")
        self._begun = False
        self._taken: list[FrameType] = []  # kept, so that none is mistaken for a later one

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        """Record a call."""
        if event != "call":
            return
        code = frame.f_code
        if (code.co_filename, code.co_name) == LOCK:
            self._take(frame)
        elif not self.ended and code.co_filename.startswith(self._prefix):
            self._enter(self._name(frame), code.co_name)

    def _name(self, frame: FrameType) -> str:
        return frame.f_code.co_filename.removeprefix(self._prefix).removesuffix(".py")

    def _enter(self, file: str, function: str) -> None:
        tasks = self._on_it.get(())
        if not tasks and (self._begun or not self._first(file, function)):
            return
        self._begun = True
        task = _current_task()
        if not tasks or (task and tasks[-1] is not task):
            tasks = (*tasks, task)
            self._on_it.set(tasks)
        if self._last(file, function):
            self.ended = True
            self.tasks = [_name_of(each) for each in tasks]
        else:
            self.files.setdefault(file, function)

    def _take(self, frame: FrameType) -> None:
        # A coroutine is "called" again whenever it goes on.
        if not self._on_it.get(()) or frame in self._taken:
            return
        self._taken.append(frame)
        by: FrameType | None = frame
        while by and not by.f_code.co_filename.startswith(self._prefix):
            by = by.f_back
        locks = self.later_locks if self.ended else self.locks
        locks.append(f"{self._name(by)}: {by.f_code.co_qualname}" if by else "elsewhere")


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # in a thread without a loop
        return None


def _name_of(task: asyncio.Task[Any] | None) -> str:
    return getattr(task and task.get_coro(), "__qualname__", "?")
