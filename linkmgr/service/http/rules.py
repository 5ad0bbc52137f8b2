"""What every request must keep to, whatever it asks for: no browser, JSON without compression.

A browser reaches a unix socket only where somebody forwards it to TCP. Then any page that its user
looks at could send a form to it: `Origin` and `Sec-Fetch-*` are what it cannot leave out, and a
name of its own that leads to this host (DNS rebinding) shows in `Host`.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linkmgr.errors import BadRequest, Forbidden, LinkmgrError
from linkmgr.service.problems import ProblemResponse, ServiceProblem, problem
from linkmgr.text.untrusted import quoted

#: A name without a dot, or this host: no page of the Internet has such a name.
_OWN_HOST = re.compile(r"([A-Za-z0-9_-]{1,63}|127\.0\.0\.1|\[::1\])?(:\d{1,5})?")
_JSON = re.compile(r"application/([a-z0-9.+-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_HINT = "speak to the unix socket with linkmgr, its Python client or curl, not with a browser"
HEAD = "linkmgr.head"  #: set in the scope of a request that wants no body


class HttpRules:
    """An ASGI middleware that answers what breaks a rule, and makes HEAD of GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            _check(Headers(scope=scope))
        except (LinkmgrError, ServiceProblem) as error:
            await ProblemResponse(problem(error))(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET", HEAD: True}, receive, _without_body(send))
        else:
            await self._app(scope, receive, send)


def _check(headers: Headers) -> None:
    for name in headers:
        if name == "origin" or name.startswith("sec-fetch-"):
            raise Forbidden("a browser asked, for a page with an origin", hint=_HINT)
    for host in headers.getlist("host"):
        if not _OWN_HOST.fullmatch(host):
            raise Forbidden(f"this service is not called {quoted(host, 80)}", hint=_HINT)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        what = f"a body with Content-Encoding {quoted(encoding, 40)} is not taken"
        raise ServiceProblem(
            "unsupported-media-type", what, "send it as it is, without compression"
        )
    media = headers.get("content-type")
    if media is not None and not _JSON.fullmatch(media.strip()):
        what = f"a body of type {quoted(media, 80)} is not taken"
        raise BadRequest(what, hint="send JSON as application/json")


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head
