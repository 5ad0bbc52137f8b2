"""Makes an error of linkmgr again from the problem document (RFC 9457) that the service made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from linkmgr import errors
from linkmgr.errors import (
    BadRequest,
    CommandFailed,
    Conflict,
    LibvirtRefused,
    LibvirtUnreachable,
    LinkmgrError,
    MonitorGone,
    MonitorTimeout,
    NotFound,
    ServiceUnreachable,
)

#: For a code that a newer service knows and this client does not.
_BY_STATUS = {400: BadRequest, 404: NotFound, 409: Conflict}
#: A service that is stopping has not begun what it was asked; another one may start.
_SERVICE_PROBLEMS = {"stopping": ServiceUnreachable}
_MAX_SHOWN = 200  #: characters of an answer that nobody expected


def error_from(status: int, body: bytes) -> LinkmgrError:
    """Make the error that the service raised.

    :param status: of the HTTP response.
    :param body: a problem document; anything else becomes a plain `LinkmgrError` that shows it.
    """
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or not isinstance(problem.get("code"), str):
        shown = ascii(body.decode(errors="replace"))[:_MAX_SHOWN]
        return LinkmgrError(
            f"the service answered with HTTP status {status} and {shown}",
            hint="see whether another program listens on the socket, and look at the service's log",
        )
    what = _text(problem, "what") or _text(problem, "detail") or problem["code"]
    error = _make(problem["code"], status, what, problem)
    if problem["code"] not in _kinds() and problem["code"] not in _SERVICE_PROBLEMS:
        # One that only the service has, or a newer one: no class, but the code is there.
        error.__dict__["code"] = problem["code"]
    nic = _text(problem, "nic")
    return error.about(nic, _text(problem, "state")) if nic else error


def _make(code: str, status: int, what: str, problem: Mapping[str, Any]) -> LinkmgrError:
    hint = _text(problem, "hint")
    kind = _SERVICE_PROBLEMS.get(code) or _kinds().get(code) or _BY_STATUS.get(status, LinkmgrError)
    if issubclass(kind, CommandFailed):
        return kind(
            what,
            command=_text(problem, "command") or "a command",
            error_class=_text(problem, "error_class") or "GenericError",
            hint=hint,
        )
    if issubclass(kind, LibvirtRefused):
        number = problem.get("number")
        return kind(what, hint=hint, number=number if isinstance(number, int) else 0)
    if issubclass(kind, MonitorGone | MonitorTimeout | LibvirtUnreachable):
        return kind(what, hint=hint, sent=problem.get("sent") is not False)
    return kind(what, hint=hint)


def _kinds() -> dict[str, type[LinkmgrError]]:
    """Every class of linkmgr.errors by its code."""
    return {
        kind.code: kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, LinkmgrError)
    }


def _text(problem: Mapping[str, Any], key: str) -> str | None:
    value = problem.get(key)
    return value if isinstance(value, str) and value else None
