"""The event loop's time is shared out among users, so that a flood slows down only its sender.

A limit on connections bounds memory, not time: 200 connections with one cheap question each, asked
again as soon as it is answered, keep a service of one thread busy, and a replug then waits behind
200 answers at each of its steps. So the CPU time that requests take in the event loop is metered by
user id. A user that has used up its share waits, before its next request is looked at; nothing is
refused. Root and the service's own user are not metered.

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

from linkmgr.aio.token_bucket import USERS_MAX, TimeBudget
from linkmgr.service.auth.peer import Peer
from linkmgr.service.problems import ProblemResponse, ServiceProblem, problem

USER_SHARE = 0.15  #: of the loop's time that one user's requests may take, over a long time
ALL_SHARE = 0.3  #: of the loop's time that the requests of all such users may take together
#: Seconds of the loop's time that a user may take at once, after some time of silence: some thirty
#: requests, as a script makes them.
BURST_S = 0.1
#: Seconds that a request is taken to cost until it is known: what many ask at once counts at once.
REQUEST_ESTIMATE_S = 0.003
#: Seconds of reading a request and accepting its connection, which are not metered.
REQUEST_OVERHEAD_S = 0.0005
#: Requests of a user that may wait, as many as it may have connections by default: clients that
#: went away are among them.
MAX_WAITING_REQUESTS = 256


class _Account:
    """What a user has used.

    :param turn: first come, first served; of each user one request waits for those of others.
    :param waiting: requests that wait for it.
    """

    def __init__(self) -> None:
        self.budget = TimeBudget(BURST_S, USER_SHARE)
        self.turn = asyncio.Lock()
        self.waiting = 0

    def is_idle(self) -> bool:
        return not self.waiting and not self.turn.locked() and not self.budget.wait


class FairShare:
    """An ASGI middleware: a user's request waits while the user is over its share.

    :param free: says who is not metered.
    """

    def __init__(self, app: ASGIApp, free: Callable[[Peer], bool]) -> None:
        self._app = app
        self._free = free
        self._all = TimeBudget(BURST_S, ALL_SHARE)
        self._turn = asyncio.Lock()  # of users: each waits here once
        self._accounts: dict[int, _Account] = {}  # by uid
        self._others = _Account()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        peer = scope.get("state", {}).get("peer") if scope["type"] == "http" else None
        if peer is None or self._free(peer):
            await self._app(scope, receive, send)
            return
        account = self._account(peer.uid)
        if account.waiting >= MAX_WAITING_REQUESTS:
            what = f"uid {peer.uid} has more than {MAX_WAITING_REQUESTS} requests that wait"
            document = problem(
                ServiceProblem("too-many", what, "wait for answers before you ask again")
            )
            await ProblemResponse(document)(scope, receive, send)
            return
        await self._admit(account)
        guessed = REQUEST_ESTIMATE_S - REQUEST_OVERHEAD_S

        def spend(seconds: float) -> None:
            nonlocal guessed
            known = min(guessed, seconds)
            guessed -= known
            self._spend(account, seconds - known)

        try:
            await _metered(self._app(scope, receive, send), spend)
        finally:
            self._spend(account, -guessed)  # the guess was too high by this

    async def _admit(self, account: _Account) -> None:
        """Wait until the user and all users together are within their shares."""
        account.waiting += 1
        try:
            async with account.turn:
                await _within(account.budget)
                async with self._turn:
                    await _within(self._all)
                    self._spend(account, REQUEST_ESTIMATE_S)
        finally:
            account.waiting -= 1

    def _spend(self, account: _Account, seconds: float) -> None:
        account.budget.spend(seconds)
        self._all.spend(seconds)

    def _account(self, uid: int) -> _Account:
        if uid not in self._accounts:
            if len(self._accounts) >= USERS_MAX:
                for idle in [each for each, its in self._accounts.items() if its.is_idle()]:
                    del self._accounts[idle]
            if len(self._accounts) >= USERS_MAX:
                return self._others
            self._accounts[uid] = _Account()
        return self._accounts[uid]


async def _within(budget: TimeBudget) -> None:
    while seconds := budget.wait:  # noqa: ASYNC110 - time itself is waited for
        await asyncio.sleep(seconds)


@types.coroutine
def _metered(
    awaitable: Awaitable[None], spend: Callable[[float], None]
) -> Generator[Any, Any, None]:
    """Run a coroutine; the CPU time of each of its steps is spent when the step ends."""
    # ASGI applications are async functions.
    coroutine = cast("Coroutine[Any, Any, None]", awaitable)
    value: object = None
    error: BaseException | None = None
    while True:
        began = time.thread_time()
        try:
            waits_for = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration:
            return
        finally:
            spend(time.thread_time() - began)
        try:
            value, error = (yield waits_for), None
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as thrown:  # noqa: BLE001 - it is the coroutine's to handle
            value, error = None, thrown
