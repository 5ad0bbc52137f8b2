"""What is about the service itself: checks, operations, events, health, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from linkmgr.service.config.schema import Permission
from linkmgr.service.http import examples, schemas
from linkmgr.service.http.request_context import RequestContextDep
from linkmgr.service.metrics import MEDIA_TYPE, version
from linkmgr.service.problems import JsonResponse
from linkmgr.state.codec import to_json

router = APIRouter(tags=["service"])

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: `id` is EPOCH-NUMBER, `event` the kind, `data` an "
        "EventForm as JSON. A comment line is a sign of life.",
        "content": {
            "text/event-stream": {"schema": {"type": "string"}, "example": examples.STREAM}
        },
    }
}
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": examples.FIGURES}}}
}


@router.get(
    "/v1/check", responses={200: {"model": schemas.FindingList}}, summary="Check everything"
)
async def check(request: RequestContextDep) -> Response:
    """Compare what should be with QEMU and the kernel. Changes nothing."""
    looks = await request.while_wanted(
        asyncio.gather(request.api.check(), request.context.domain_controller.check())
    )
    findings = [finding for found in looks for finding in found]
    findings += request.context.declared.findings()
    request.context.metrics.on_check(findings)
    return JsonResponse({"findings": to_json(findings)})


@router.post("/v1/gc", responses={200: {"model": schemas.OrphanList}}, summary="Collect garbage")
async def gc(request: RequestContextDep, body: schemas.Collect | None = None) -> Response:
    """Remove devices that carry our tag and that nothing recorded."""
    wanted = body or schemas.Collect()

    async def do_collect() -> Mapping[str, Any]:
        found = await request.api.gc(older_than=wanted.older_than, dry_run=wanted.dry_run)
        return {"orphans": to_json(found)}

    return await request.change(
        Permission.GC, "dry run" if wanted.dry_run else "", do_collect, nic="*", network="*"
    )


@router.get(
    "/v1/operations", responses={200: {"model": schemas.OperationList}}, summary="Operations"
)
async def operations(request: RequestContextDep) -> Response:
    """List the changes under way, and the last ones that ended."""
    return JsonResponse({"operations": [each.form() for each in request.context.operations.all()]})


@router.get(
    "/v1/operations/{id}",
    responses={200: {"model": schemas.OperationForm}},
    summary="One operation",
)
async def operation(request: RequestContextDep, id: schemas.OperationPath) -> Response:  # noqa: A002 - the name in the path
    """Show one change: under way, done with its result, or failed with its problem."""
    return JsonResponse(request.context.operations.find(id).form())


@router.get("/v1/events", response_class=Response, responses=_STREAM, summary="Events")
async def events(request: RequestContextDep, last_event_id: schemas.LastEventId = None) -> Response:
    """Tell what happens, from now on or from behind the last event that the client has."""
    return request.context.event_log.open(last_event_id, request.peer)


@router.get("/healthz", responses={200: {"model": schemas.HealthAnswer}}, summary="Health")
async def healthz() -> Response:
    """Say that the service answers."""
    return JsonResponse({"status": "ok", "version": version()})


@router.get("/metrics", response_class=PlainTextResponse, responses=_TEXT, summary="Metrics")
async def metrics(request: RequestContextDep) -> Response:
    """Show figures in the text form of Prometheus."""
    return Response(await request.context.metrics.text(request.api), media_type=MEDIA_TYPE)
