"""/v1/nics and /v1/connections.

A NIC is two segments, ``VM/NIC``, or one: its address, its device, or its VM. Which one it is is
settled before anybody is asked whether the caller may change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from linkmgr.model import Affects
from linkmgr.service.config.schema import Permission
from linkmgr.service.http import schemas
from linkmgr.service.http.request_context import RequestContext, RequestContextDep
from linkmgr.service.problems import JsonResponse
from linkmgr.state.codec import to_json

router = APIRouter(tags=["NICs"])


@router.get("/v1/nics", responses={200: {"model": schemas.NicList}}, summary="All NICs")
async def nics(request: RequestContextDep) -> Response:
    """List all NICs as they are now; asks every QEMU for a sign of life."""
    return JsonResponse({"nics": to_json(await request.api.nics())})


@router.get("/v1/nics/{vm}/{alias}", responses={200: {"model": schemas.NicForm}}, summary="One NIC")
async def nic(request: RequestContextDep, vm: schemas.VmPath, alias: schemas.AliasPath) -> Response:
    """Show one NIC as it is now."""
    return await _nic(request, f"{vm}/{alias}")


@router.get(
    "/v1/nics/{nic}",
    responses={200: {"model": schemas.NicForm}},
    summary="One NIC, by address, device or VM",
)
async def nic_by_name(request: RequestContextDep, nic: schemas.NicPath) -> Response:
    """Show one NIC as it is now."""
    return await _nic(request, nic)


async def _nic(request: RequestContext, name: str) -> Response:
    ref = await request.context.domain_controller.verbs.resolve(name)
    return JsonResponse(to_json(await request.api.nic(ref)))


@router.put(
    "/v1/nics/{vm}/{alias}/link",
    responses={200: {"model": schemas.OutcomeForm}},
    summary="Set the link state",
)
async def set_link(
    request: RequestContextDep, vm: schemas.VmPath, alias: schemas.AliasPath, body: schemas.SetLink
) -> Response:
    """Set what the guest sees as carrier while the NIC is plugged; survives replugs."""
    return await _set_link(request, f"{vm}/{alias}", body)


@router.put(
    "/v1/nics/{nic}/link",
    responses={200: {"model": schemas.OutcomeForm}},
    summary="Set the link state, by address, device or VM",
)
async def set_link_by_name(
    request: RequestContextDep, nic: schemas.NicPath, body: schemas.SetLink
) -> Response:
    """Set what the guest sees as carrier while the NIC is plugged; survives replugs."""
    return await _set_link(request, nic, body)


async def _set_link(request: RequestContext, name: str, body: schemas.SetLink) -> Response:
    verbs = request.context.domain_controller.verbs
    ref = await verbs.resolve(name)

    async def do_set_link() -> Mapping[str, Any]:
        return dict(to_json(await verbs.set_link(ref, body.state, affects=body.affects)))

    about = _about(f"{ref} {body.state}", body.affects)
    return await request.change(Permission.SET_LINK, about, do_set_link, nic=ref)


@router.get(
    "/v1/connections", responses={200: {"model": schemas.ConnectionList}}, summary="All connections"
)
async def connections(request: RequestContextDep) -> Response:
    """List all NICs that are plugged, with what they are plugged into."""
    return JsonResponse({"connections": to_json(await request.api.connections())})


@router.put(
    "/v1/connections/{vm}/{alias}",
    responses={200: {"model": schemas.OutcomeForm}},
    summary="Plug, or replug",
)
async def plug(
    request: RequestContextDep, vm: schemas.VmPath, alias: schemas.AliasPath, body: schemas.Plug
) -> Response:
    """Plug a NIC into a network or port, from wherever it is; nothing is done if it is there."""
    return await _plug(request, f"{vm}/{alias}", body)


@router.put(
    "/v1/connections/{nic}",
    responses={200: {"model": schemas.OutcomeForm}},
    summary="Plug, or replug, by address, device or VM",
)
async def plug_by_name(
    request: RequestContextDep, nic: schemas.NicPath, body: schemas.Plug
) -> Response:
    """Plug a NIC into a network or port, from wherever it is; nothing is done if it is there."""
    return await _plug(request, nic, body)


async def _plug(request: RequestContext, name: str, body: schemas.Plug) -> Response:
    verbs = request.context.domain_controller.verbs
    ref = await verbs.resolve(name)

    async def do_plug() -> Mapping[str, Any]:
        made = await verbs.plug(
            ref, body.target, notify=body.notify, uid=request.peer.uid, affects=body.affects
        )
        return dict(to_json(made))

    target = ascii(body.target)[1:-1]
    network = body.target.partition(":")[0]
    about = _about(f"{ref} {target}", body.affects)
    return await request.change(Permission.PLUG, about, do_plug, nic=ref, network=network)


@router.delete(
    "/v1/connections/{vm}/{alias}",
    responses={200: {"model": schemas.OutcomeForm}},
    summary="Unplug",
)
async def unplug(
    request: RequestContextDep,
    vm: schemas.VmPath,
    alias: schemas.AliasPath,
    affects: schemas.AffectsQuery = Affects.LIVE,
) -> Response:
    """Take a NIC off its cable, its carrier first. Unplugging twice succeeds."""
    return await _unplug(request, f"{vm}/{alias}", affects)


@router.delete(
    "/v1/connections/{nic}",
    responses={200: {"model": schemas.OutcomeForm}},
    summary="Unplug, by address, device or VM",
)
async def unplug_by_name(
    request: RequestContextDep, nic: schemas.NicPath, affects: schemas.AffectsQuery = Affects.LIVE
) -> Response:
    """Take a NIC off its cable, its carrier first. Unplugging twice succeeds."""
    return await _unplug(request, nic, affects)


async def _unplug(request: RequestContext, name: str, affects: Affects) -> Response:
    verbs = request.context.domain_controller.verbs
    ref = await verbs.resolve(name)

    async def do_unplug() -> Mapping[str, Any]:
        return dict(to_json(await verbs.unplug(ref, affects=affects)))

    return await request.change(Permission.UNPLUG, _about(str(ref), affects), do_unplug, nic=ref)


def _about(what: str, affects: Affects) -> str:
    return what if affects is Affects.LIVE else f"{what} ({affects})"
