"""Errors as RFC 9457 problem documents, and the HTTP status of each.

5xx is only ever a fault of the service itself: where the kernel or QEMU refused, what the request
depended on has failed, and that is 424.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from linkmgr.aio.log_limit import LogLimit
from linkmgr.errors import (
    BadRequest,
    CannotAttach,
    Conflict,
    Forbidden,
    HostError,
    LibvirtError,
    LinkmgrError,
    MonitorError,
    NotFound,
    StateError,
    Stopping,
)
from linkmgr.text.untrusted import printable

_limit = LogLimit(__name__)

MEDIA_TYPE = "application/problem+json"

#: The nearest class in an error's line of descent decides.
STATUS: Mapping[type[LinkmgrError], int] = {
    BadRequest: 400,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    CannotAttach: 422,
    HostError: 424,
    MonitorError: 424,
    LibvirtError: 424,
    StateError: 507,
    Stopping: 503,
    LinkmgrError: 500,
}

#: Problems that only the service has: code -> status and title.
SERVICE_PROBLEMS: Mapping[str, tuple[int, str]] = {
    "method-not-allowed": (405, "This path does not take that method"),
    "too-slow": (408, "The request did not arrive in time"),
    "too-large": (413, "The request is too large"),
    "unsupported-media-type": (415, "The request's body is coded in a way that is not taken"),
    "too-many": (429, "There are too many of these already"),
    "internal": (500, "A fault of the service"),
}

#: Seconds after which to ask again for what was not begun for a reason that passes, by code.
RETRY_AFTER_S: Mapping[str, int] = {"stopping": 1, "being-removed": 1, "too-many": 1}
#: Characters of one text of a problem: ten mistakes of a configuration with their places.
MAX_TEXT = 4000
_EXTRA = ("sent", "command", "error_class", "number")  # what some errors know besides


class ServiceProblem(Exception):
    """A problem that only the service has, one of `SERVICE_PROBLEMS`."""

    def __init__(self, code: str, what: str, hint: str) -> None:
        super().__init__(what)
        self.code, self.what, self.hint = code, what, hint


class JsonResponse(Response):
    """JSON in ASCII: whatever text a request contained can be told back."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Make the bytes."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


class ProblemResponse(JsonResponse):
    """A problem document."""

    media_type = MEDIA_TYPE

    def __init__(self, document: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(document, status_code=document["status"], headers=headers)
        if (seconds := RETRY_AFTER_S.get(document["code"])) is not None:
            self.headers["Retry-After"] = str(seconds)


def status_of(kind: type[BaseException]) -> int:
    """The HTTP status of an error's class."""
    return next((STATUS[each] for each in kind.__mro__ if each in STATUS), 500)


def problem(error: BaseException) -> dict[str, Any]:
    """Describe an error as a problem document.

    What was not foreseen is logged with its traceback, and the caller is told no more than that.
    """
    if isinstance(error, ServiceProblem):
        status, title = SERVICE_PROBLEMS[error.code]
        return _document(error.code, status, title, error.what, hint=error.hint)
    if not isinstance(error, LinkmgrError):
        _limit.log(logging.ERROR, type(error).__name__, "a fault of the service", error=error)
        what, hint = f"the service failed: {type(error).__name__}", "look into the service's log"
        return _document("internal", *SERVICE_PROBLEMS["internal"], what, hint=hint)
    title = (type(error).__doc__ or type(error).__name__).partition("\n")[0].rstrip(".")
    document = _document(error.code, status_of(type(error)), title, error.what, hint=error.hint)
    document |= {"nic": error.nic, "state": error.state}
    document["detail"] = printable(str(error), 3 * MAX_TEXT)
    return document | {key: getattr(error, key) for key in _EXTRA if hasattr(error, key)}


def _document(code: str, status: int, title: str, what: str, *, hint: str | None) -> dict[str, Any]:
    what = printable(what, MAX_TEXT)
    hint = hint and printable(hint, MAX_TEXT)
    return {
        "type": f"urn:linkmgr:error:{code}",
        "title": title,
        "status": status,
        "detail": f"{what}. To do: {hint}" if hint else what,
        "code": code,
        "what": what,
        "hint": hint,
        "nic": None,
        "state": None,
    }


async def on_error(_: Request, error: Exception) -> Response:
    """Answer with any error that a route raised."""
    return ProblemResponse(problem(error))


async def on_invalid(_: Request, error: Exception) -> Response:
    """Answer a request whose body or parameters are not of the right form."""
    assert isinstance(error, RequestValidationError)
    told = [f"{_place(each['loc'])}: {each['msg']}" for each in error.errors()[:5]]
    what = f"the request is not of the right form: {'; '.join(told)}"[:1000]
    hint = "see /openapi.json for what it should be, and send JSON as application/json"
    return ProblemResponse(problem(BadRequest(what, hint=hint)))


async def on_http(request: Request, error: Exception) -> Response:
    """Answer where the framework itself refuses."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {ascii(request.url.path)[1:-1]}"[:200]
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(_methods(request)))
        raised = ServiceProblem("method-not-allowed", f"there is no {where}", f"it takes {allowed}")
        return ProblemResponse(problem(raised), {"Allow": allowed})
    if error.status_code == HTTPStatus.NOT_FOUND:
        made: LinkmgrError = NotFound(f"there is no {where}", hint="see /openapi.json")
    else:
        hint = "see /openapi.json for what it should be"
        made = BadRequest(f"{where} cannot be read: {error.detail}", hint=hint)
    return ProblemResponse(problem(made))


def _methods(request: Request) -> set[str]:
    """All methods that any route takes at this path."""
    found: set[str] = set()
    for method in ("GET", "POST", "PUT", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(dict(scope))[0] is Match.FULL for route in request.app.routes):
            found.add(method)
    return found | {"HEAD"} if "GET" in found else found


def _place(where: tuple[str | int, ...]) -> str:
    return ascii(".".join(str(each) for each in where))[1:-1][:100]
