"""Changes under way and done: each one runs by itself, whoever waits for it or goes away."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from linkmgr.aio.log_limit import LogLimit
from linkmgr.errors import NotFound, Stopping
from linkmgr.service.auth.peer import Peer
from linkmgr.service.auth.quota import Quota
from linkmgr.service.config.schema import Limits, Permission
from linkmgr.service.problems import ServiceProblem, problem

log = logging.getLogger(__name__)

#: Bytes of finished operations that are kept, as JSON, however many they are: a thousand usual ones
#: have one megabyte, and one answer lists all of them. A VM that is added may have 256 NICs.
MAX_KEPT_BYTES = 4 << 20
#: Operations that one user but root may have under way on one NIC. They run one after another, each
#: for as long as a slow QEMU makes it, and the service waits for all of them when it stops.
MAX_QUEUED_PER_NIC = 8

Action = Callable[[], Awaitable[Mapping[str, Any]]]  #: returns the JSON of the answer


class Phase(StrEnum):
    """How far an operation is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(eq=False)
class Operation:
    """One change.

    :param subject: what it changes, such as ``web1/net0``.
    :param uid: who asked for it.
    :param result: what the verb answered, once it is done.
    :param problem: the problem document, once it has failed.
    """

    id: str
    verb: Permission
    subject: str
    uid: int
    started: datetime
    phase: Phase = Phase.RUNNING
    ended: datetime | None = None
    ms: float | None = None
    result: Mapping[str, Any] | None = None
    problem: Mapping[str, Any] | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def code(self) -> str:
        """``ok``, or the code of the error."""
        return str(self.problem["code"]) if self.problem else "ok"

    def form(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "verb": self.verb.value,
            "subject": self.subject,
            "uid": self.uid,
            "state": self.phase.value,
            "started": self.started.isoformat(),
            "ended": self.ended.isoformat() if self.ended else None,
            "ms": self.ms,
            "result": self.result,
            "problem": self.problem,
        }


class Operations:
    """All operations of this run of the service; of the finished ones, the last.

    :param epoch: makes the ids differ from those of another run.
    :param limits: says how many there may be.
    :param watcher: is told of each one that has ended.
    :param running: says who may begin one more.
    """

    def __init__(
        self,
        epoch: str,
        limits: Callable[[], Limits],
        watcher: Callable[[Operation], None],
        running: Quota,
    ) -> None:
        self._epoch = epoch
        self._limits = limits
        self._watcher = watcher
        self._places = running
        self._limit = LogLimit(__name__)
        self._count = 0
        self._running: dict[str, Operation] = {}
        self._past: dict[str, tuple[Operation, int]] = {}  # with its bytes
        self._bytes = 0  # of all of these
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def start(self, verb: Permission, subject: str, peer: Peer, action: Action) -> Operation:
        """Begin a change in a task of its own.

        :raise ServiceProblem: when there are too many.
        :raise Stopping: when the service is stopping.
        """
        if self._stopping:
            raise Stopping("the service is stopping; nothing was begun", hint="ask again")
        if why := self._places.refusal(peer):
            raise ServiceProblem("too-many", f"no more operations now: {why}", "ask again later")
        nic = subject.partition(" ")[0]
        queued = [
            each
            for each in self._running.values()
            if each.uid == peer.uid and each.subject.partition(" ")[0] == nic
        ]
        if len(queued) >= MAX_QUEUED_PER_NIC and peer.uid not in (0, os.geteuid()):
            what = f"uid {peer.uid} has {len(queued)} operations on {nic} under way"
            raise ServiceProblem("too-many", what, "wait until they have ended")
        leave = self._places.enter(peer)
        self._count += 1
        ident = f"{self._epoch}-{self._count}"
        made = Operation(ident, verb, subject, peer.uid, datetime.now(UTC))
        self._running[ident] = made
        task = asyncio.create_task(self._run(made, peer, action), name=f"{verb} {subject}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: leave())
        return made

    def find(self, ident: str) -> Operation:
        """Look one up.

        :raise NotFound: when there is none, or it is not kept any more.
        """
        past, _ = self._past.get(ident, (None, 0))
        found = self._running.get(ident) or past
        if found is None:
            raise NotFound(
                f"there is no operation {ascii(ident)[1:-1][:40]}",
                hint="it may have been too long ago, or of an earlier run of the service; "
                "look at the NIC instead",
            )
        return found

    def all(self) -> list[Operation]:
        """Those that are kept, the oldest first, then those under way."""
        return [*(each for each, _ in self._past.values()), *self._running.values()]

    def stop(self) -> None:
        """Begin nothing any more."""
        self._stopping = True

    async def close(self) -> None:
        """Begin nothing any more, and wait for what is under way."""
        self.stop()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, operation: Operation, peer: Peer, action: Action) -> None:
        begun = time.monotonic()
        try:
            operation.result = await action()
            operation.phase = Phase.DONE
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            operation.problem = problem(error)
            operation.phase = Phase.FAILED
        finally:
            operation.ended = datetime.now(UTC)
            operation.ms = round((time.monotonic() - begun) * 1000, 3)
            self._keep(operation)
            operation.finished.set()
        self._tell(operation, peer)
        self._watcher(operation)

    def _keep(self, operation: Operation) -> None:
        del self._running[operation.id]
        size = len(json.dumps(operation.form()))
        self._past[operation.id] = operation, size
        self._bytes += size
        most = self._limits().operations
        while len(self._past) > most or (self._bytes > MAX_KEPT_BYTES and len(self._past) > 1):
            _, freed = self._past.pop(next(iter(self._past)))
            self._bytes -= freed

    def _tell(self, operation: Operation, peer: Peer) -> None:
        """One line of log per change: who, what, which NIC, how it went, how long it took.

        What changes nothing can be had again and again: each user but root has a few lines of it.
        """
        changed = False
        if operation.problem:
            outcome = f"{operation.code}: {operation.problem['what']}"
            level = logging.WARNING
        else:
            changed = operation.result is not None and operation.result.get("changed", True)
            outcome, level = "ok" if changed else "unchanged", logging.INFO
        text = "%s %s %s: %s (%.1f ms)"
        values = (peer, operation.verb, operation.subject, outcome, operation.ms)
        if changed or peer.uid == 0:
            log.log(level, text, *values)
        else:
            self._limit.log(level, f"uid {peer.uid}", text, *values)
