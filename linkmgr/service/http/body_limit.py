"""Takes a request's body in before anything else looks at it: bounded in size and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linkmgr.service.problems import ProblemResponse, ServiceProblem, problem

MAX_BODY_BYTES = 64 << 10  #: bytes of a body, where nothing else is said


class BodyLimit:
    """An ASGI middleware that refuses what is too large or too slow.

    :param seconds: says how long a body may take.
    :param most: says how many bytes it may have.
    """

    def __init__(
        self,
        app: ASGIApp,
        seconds: Callable[[], float],
        most: Callable[[Scope], int] = lambda _: MAX_BODY_BYTES,
    ) -> None:
        self._app = app
        self._seconds = seconds
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        headers = dict(scope.get("headers", ()))
        size = headers.get(b"content-length", b"0")
        if scope["type"] != "http" or (size == b"0" and b"transfer-encoding" not in headers):
            await self._app(scope, receive, send)
            return
        try:
            most = self._most(scope)
            if not size.isdigit() or len(size) > 12 or int(size) > most:
                raise _too_large(most)
            body = await self._take(receive, most)
        except ServiceProblem as raised:
            await ProblemResponse(problem(raised))(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _take(self, receive: Receive, most: int) -> bytes | None:
        body = bytearray()
        seconds = self._seconds()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ServiceProblem(
                "too-slow", f"the request did not arrive within {seconds:g} s", "send it again"
            ) from None


def _too_large(most: int) -> ServiceProblem:
    return ServiceProblem("too-large", f"the request is larger than {most} bytes", "send less")
