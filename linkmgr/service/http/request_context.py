"""The context of a request: its peer, and how a change that it asks for is run and answered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import Response

from linkmgr.model import NicRef
from linkmgr.service.auth.peer import Peer
from linkmgr.service.config.schema import Permission
from linkmgr.service.context import ServiceContext, ServiceLinkApi
from linkmgr.service.operations import Action, Operation, Phase
from linkmgr.service.problems import JsonResponse, ProblemResponse, ServiceProblem

T = TypeVar("T")

_WAIT = re.compile(r"wait=(\d{1,6})")


class RequestContext:
    """A request: who asks, and what the service has to answer with."""

    def __init__(self, request: Request) -> None:
        self.context: ServiceContext = request.app.state.context
        self.api: ServiceLinkApi = self.context.api
        self.peer: Peer = request.scope["state"]["peer"]
        self._receive = request.receive
        self._prefer = ",".join(request.headers.getlist("prefer")).lower()

    async def while_wanted(self, look: Awaitable[T]) -> T:
        """Wait for something that changes nothing; cancel it when the client has gone.

        :raise ServiceProblem: the client has gone, and nobody hears that.
        """
        looking = asyncio.ensure_future(look)
        gone = asyncio.create_task(self._until_gone())
        try:
            await asyncio.wait({looking, gone}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                return looking.result()
        finally:
            for each in (looking, gone):
                each.cancel()
            await asyncio.gather(looking, gone, return_exceptions=True)
        raise ServiceProblem("too-slow", "the client has gone", "ask again")

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _network_of(self, nic: NicRef) -> str | None:
        """The network that a NIC is on now."""
        if self.context.is_privileged(self.peer):
            return None
        there = await self.context.api.connections()
        return next((each.network for each in there if each.nic == nic), None)

    async def change(
        self,
        verb: Permission,
        subject: str,
        action: Action,
        *,
        nic: NicRef | str | None = None,
        network: str | None = None,
    ) -> Response:
        """Run a change, and answer when it is done or, if the client prefers so, at once.

        :param action: does it, and returns the JSON of the answer.
        :param nic: as in `Access.check`, and `network` too.
        :raise Forbidden: when the caller may not do it.
        :raise ServiceProblem: when it cannot be begun now.
        """
        present = await self._network_of(nic) if isinstance(nic, NicRef) else None
        self.context.access.check(self.peer, verb, nic=nic, network=network, present=present)
        operation = self.context.operations.start(verb, subject, self.peer, action)
        # RFC 7240: respond-async, with wait=SECONDS to be waited for that long first.
        prefers = [each.strip() for each in re.split("[,;]", self._prefer)]
        if "respond-async" not in prefers:
            await operation.finished.wait()
            return _answer(operation)
        waits = [int(match[1]) for each in prefers if (match := _WAIT.fullmatch(each))]
        try:
            async with asyncio.timeout(waits[0] if waits else 0):
                await operation.finished.wait()
            return _answer(operation)
        except TimeoutError:
            place = f"/v1/operations/{operation.id}"
            headers = {"Location": place, "Preference-Applied": "respond-async"}
            return JsonResponse(operation.form(), status_code=202, headers=headers)


def _answer(operation: Operation) -> Response:
    if operation.phase is Phase.FAILED and operation.problem is not None:
        return ProblemResponse(dict(operation.problem))
    return JsonResponse(dict(operation.result or {}))


async def _request_context(request: Request) -> RequestContext:
    return RequestContext(request)


RequestContextDep = Annotated[RequestContext, Depends(_request_context)]
