"""The application: routes over the verbs, and an answer to every error."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from linkmgr.errors import LinkmgrError
from linkmgr.service.context import ServiceContext
from linkmgr.service.http.body_limit import BodyLimit
from linkmgr.service.http.fair_share import FairShare
from linkmgr.service.http.openapi import document
from linkmgr.service.http.routes import libvirt, networks, nics, service, vms
from linkmgr.service.http.rules import HttpRules
from linkmgr.service.metrics import version
from linkmgr.service.problems import ServiceProblem, on_error, on_http, on_invalid

_ABOUT = """Plug, unplug and exchange the network cables of running QEMU guests.

Reading is for every local user; changes are for root, the group of the configuration and the users
of its rules. Every change can be repeated. It is answered when it is done; a client that goes away
stops nothing."""


def make_app(context: ServiceContext) -> FastAPI:
    """Make the ASGI application. The server puts each request's `Peer` into its state."""
    app = FastAPI(
        title="linkmgr",
        version=version(),
        description=_ABOUT,
        docs_url=None,  # they would be loaded from the network
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    for module in (vms, networks, nics, libvirt, service):
        app.include_router(module.router)
    app.openapi = partial(document, app)  # type: ignore[method-assign]  # FastAPI's own way
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    for kind in (LinkmgrError, ServiceProblem, Exception):
        app.add_exception_handler(kind, on_error)
    app.add_middleware(
        BodyLimit,
        seconds=lambda: context.limits().request_seconds,
        most=partial(libvirt.most_bytes, context),
    )
    app.add_middleware(HttpRules)
    app.add_middleware(FairShare, free=context.is_privileged)  # the last one is the outermost
    return app
