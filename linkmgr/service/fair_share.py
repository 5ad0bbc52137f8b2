"""The event loop's time is shared out among users, so that a flood slows down only its sender.

A limit on connections bounds memory, not time: 200 connections with one cheap question each, asked
again as soon as it is answered, keep a service of one thread busy, and a replug then waits behind
200 answers at each of its steps. So the CPU time that requests take in the event loop is metered by
user id. A user that has used up its share waits, before its next request is looked at; nothing is
refused. Root and the group that may do everything are not metered.

Work that a request starts in tasks of its own (an operation, a shared look) is not metered here: it
is bounded by the number of operations, and by there being one look for all who ask.
"""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from linkmgr.service.peers import Peer
from linkmgr.service.problems import ProblemResponse, Refused, problem

USER_SHARE = 0.15  #: of the loop's time that one user's requests may take, over a long time
ALL_SHARE = 0.3  #: of the loop's time that the requests of all such users may take together
#: Seconds of the loop's time that a user may take at once, after some time of silence: some thirty
#: requests, as a script makes them.
BURST_SECONDS = 0.1
#: Seconds that a request is taken to cost until it is known: what many ask at once counts at once.
GUESS_SECONDS = 0.003
#: Seconds of reading a request and accepting its connection, which are not metered.
OVERHEAD_SECONDS = 0.0005
#: Seconds of the loop's time that a user may owe: nobody waits longer than this, over `USER_SHARE`.
DEBT_SECONDS = 1.5
#: Requests of a user that may wait, as many as it may have connections by default: clients that
#: went away are among them.
WAITING_MOST = 256
_FORGET_SECONDS = 60.0  # of silence, after which a user is not remembered


class _Account:
    """What a user, or all of them, has used: a leaky bucket of seconds.

    :param share: seconds that it is forgiven per second.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._used = 0.0
        self._at = time.monotonic()
        self.turn = asyncio.Lock()  #: first come, first served
        self.waiting = 0  #: requests that wait for it

    def charge(self, seconds: float) -> None:
        """Add what was used; negative gives back what a guess was too high by."""
        self._drain()
        self._used = min(max(0.0, self._used + seconds), BURST_SECONDS + DEBT_SECONDS)

    async def wait(self) -> None:
        """Wait until it is within its share."""
        while (over := self._over()) > 0:  # noqa: ASYNC110 - time itself is waited for
            await asyncio.sleep(over / self._share)

    def is_idle(self) -> bool:
        """Whether it may be forgotten."""
        return not self.turn.locked() and time.monotonic() - self._at > _FORGET_SECONDS

    def _over(self) -> float:
        self._drain()
        return self._used - BURST_SECONDS

    def _drain(self) -> None:
        now = time.monotonic()
        self._used = max(0.0, self._used - (now - self._at) * self._share)
        self._at = now


class FairShare:
    """An ASGI middleware: a user's request waits while the user is over its share.

    :param free: says who is not metered.
    """

    def __init__(self, app: ASGIApp, free: Callable[[Peer], bool]) -> None:
        self._app = app
        self._free = free
        self._all = _Account(ALL_SHARE)
        self._accounts: dict[int, _Account] = {}  # by uid

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        peer = scope.get("state", {}).get("peer") if scope["type"] == "http" else None
        if peer is None or self._free(peer):
            await self._app(scope, receive, send)
            return
        account = self._account(peer.uid)
        if account.waiting >= WAITING_MOST:
            what = f"uid {peer.uid} has more than {WAITING_MOST} requests that wait"
            document = problem(Refused("too-many", what, "wait for answers before you ask again"))
            await ProblemResponse(document)(scope, receive, send)
            return
        account.waiting += 1
        try:
            async with account.turn:  # of each user one waits at a time: users take turns
                await account.wait()
                async with self._all.turn:
                    await self._all.wait()
                    self._charge(account, GUESS_SECONDS)
        finally:
            account.waiting -= 1

        guessed = GUESS_SECONDS - OVERHEAD_SECONDS

        def charge(seconds: float) -> None:
            nonlocal guessed
            known = min(guessed, seconds)
            guessed -= known
            self._charge(account, seconds - known)

        try:
            await _metered(self._app(scope, receive, send), charge)
        finally:
            self._charge(account, -guessed)

    def _charge(self, account: _Account, seconds: float) -> None:
        account.charge(seconds)
        self._all.charge(seconds)

    def _account(self, uid: int) -> _Account:
        if uid not in self._accounts:
            for other in [each for each, its in self._accounts.items() if its.is_idle()]:
                del self._accounts[other]
            self._accounts[uid] = _Account(USER_SHARE)
        return self._accounts[uid]


@types.coroutine
def _metered(
    started: Awaitable[None], charge: Callable[[float], None]
) -> Generator[Any, Any, None]:
    """Run a coroutine; the CPU time of each of its steps is charged when the step ends."""
    work = cast("Coroutine[Any, Any, None]", started)  # ASGI applications are async functions
    value: object = None
    error: BaseException | None = None
    while True:
        began = time.thread_time()
        try:
            waits_for = work.send(value) if error is None else work.throw(error)
        except StopIteration:
            return
        finally:
            charge(time.thread_time() - began)
        try:
            value, error = (yield waits_for), None
        except GeneratorExit:
            work.close()
            raise
        except BaseException as thrown:  # noqa: BLE001 - it is the coroutine's to handle
            value, error = None, thrown
