"""/v1/libvirt: what libvirt's hook hands over (hooks/qemu). /v1/domains: libvirt's guests."""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Scope

from linkmgr.errors import Forbidden
from linkmgr.libvirt.xml.document import MAX_BYTES
from linkmgr.service.context import ServiceContext
from linkmgr.service.http import schemas
from linkmgr.service.http.body_limit import MAX_BODY_BYTES
from linkmgr.service.http.request_context import RequestContextDep
from linkmgr.service.problems import JsonResponse, ServiceProblem
from linkmgr.state.codec import to_json
from linkmgr.text.untrusted import printable

log = logging.getLogger(__name__)

HOOK_PATH = "/v1/libvirt/hook"
_HOOK_GRACE_S = 1.0  # seconds that a hook has ended for, when nobody waits for it any more
#: Bytes of a hook's request: the XML, which JSON makes up to six times as long, and the rest.
MAX_HOOK_BODY_BYTES = 6 * MAX_BYTES + (64 << 10)

router = APIRouter(tags=["libvirt"])


@router.post(HOOK_PATH, responses={200: {"model": schemas.HookAnswered}}, summary="libvirt's hook")
async def hook(request: RequestContextDep, body: schemas.HookCall) -> Response:
    """Hear what becomes of a domain; only root may say it, for libvirt's hooks are root's.

    Answers as soon as libvirt may go on: at `started` when the cables are in. Never asks libvirt,
    which waits for the hook. `ok` is false when the domain should not be started as it is.
    """
    if not request.context.is_privileged(request.peer):
        raise Forbidden(
            f"uid {request.peer.uid} may not say what becomes of a domain",
            hint="only root's libvirt has hooks that the service listens to",
        )
    controller = request.context.domain_controller
    seconds = request.context.config.hook.seconds + _HOOK_GRACE_S
    try:
        async with asyncio.timeout(seconds):
            answer = await controller.on_hook(
                body.operation, body.sub_operation, body.extra, body.xml
            )
    except TimeoutError:
        # The hook has ended: what waits for its sake would wait for ever, and hold up a stop.
        what = f"the domain was not ready within {seconds:g} s"
        raise ServiceProblem(
            "too-slow", what, "libvirt has gone on; 'linkmgr check' says why"
        ) from None
    if not answer.ok:
        about = printable(f"{body.name}: {body.operation}/{body.sub_operation}")
        log.warning("libvirt's hook, %s: %s", about, printable(answer.said))
    return JsonResponse({"ok": answer.ok, "said": answer.said})


@router.get(
    "/v1/domains", responses={200: {"model": schemas.DomainList}}, summary="libvirt's guests"
)
async def domains(request: RequestContextDep) -> Response:
    """List all guests of libvirt on this host, prepared or not, running or not."""
    found = await request.while_wanted(request.context.domain_controller.domains())
    return JsonResponse({"domains": to_json(found)})


def most_bytes(context: ServiceContext, scope: Scope) -> int:
    """How large a request's body may be: XML is large, and root's."""
    if scope["path"] == HOOK_PATH and context.is_privileged(scope["state"]["peer"]):
        return MAX_HOOK_BODY_BYTES
    return MAX_BODY_BYTES
