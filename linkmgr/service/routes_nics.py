"""/v1/nics and /v1/connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from linkmgr.jsonform import to_json
from linkmgr.model import Affects, NicRef
from linkmgr.service import models
from linkmgr.service.call import CallIn
from linkmgr.service.config import Verb
from linkmgr.service.problems import JsonResponse

router = APIRouter(tags=["NICs"])


@router.get("/v1/nics", responses={200: {"model": models.Nics}}, summary="All NICs")
async def nics(call: CallIn) -> Response:
    """List all NICs as they are now; asks every QEMU for a sign of life."""
    return JsonResponse({"nics": to_json(await call.links.nics())})


@router.get("/v1/nics/{vm}/{alias}", responses={200: {"model": models.NicForm}}, summary="One NIC")
async def nic(call: CallIn, vm: models.VmPath, alias: models.AliasPath) -> Response:
    """Show one NIC as it is now."""
    return JsonResponse(to_json(await call.links.nic(_ref(vm, alias))))


@router.put(
    "/v1/nics/{vm}/{alias}/link",
    responses={200: {"model": models.OutcomeForm}},
    summary="Set the link state",
)
async def set_link(
    call: CallIn, vm: models.VmPath, alias: models.AliasPath, body: models.SetLink
) -> Response:
    """Set what the guest sees as carrier while the NIC is plugged; survives replugs."""
    ref = _ref(vm, alias)

    async def work() -> Mapping[str, Any]:
        made = await call.core.guests.verbs.set_link(ref, body.state, affects=body.affects)
        return dict(to_json(made))

    about = _about(f"{ref} {body.state}", body.affects)
    return await call.change(Verb.SET_LINK, about, work, nic=ref)


@router.get(
    "/v1/connections", responses={200: {"model": models.Connections}}, summary="All connections"
)
async def connections(call: CallIn) -> Response:
    """List all NICs that are plugged, with what they are plugged into."""
    return JsonResponse({"connections": to_json(await call.links.connections())})


@router.put(
    "/v1/connections/{vm}/{alias}",
    responses={200: {"model": models.OutcomeForm}},
    summary="Plug, or replug",
)
async def plug(
    call: CallIn, vm: models.VmPath, alias: models.AliasPath, body: models.Plug
) -> Response:
    """Plug a NIC into a network or port, from wherever it is; nothing is done if it is there."""
    ref = _ref(vm, alias)

    async def work() -> Mapping[str, Any]:
        made = await call.core.guests.verbs.plug(
            ref, body.target, notify=body.notify, uid=call.peer.uid, affects=body.affects
        )
        return dict(to_json(made))

    target = ascii(body.target)[1:-1]
    network = body.target.partition(":")[0]
    about = _about(f"{ref} {target}", body.affects)
    return await call.change(Verb.PLUG, about, work, nic=ref, network=network)


@router.delete(
    "/v1/connections/{vm}/{alias}",
    responses={200: {"model": models.OutcomeForm}},
    summary="Unplug",
)
async def unplug(
    call: CallIn,
    vm: models.VmPath,
    alias: models.AliasPath,
    affects: models.AffectsQuery = Affects.LIVE,
) -> Response:
    """Take a NIC off its cable, its carrier first. Unplugging twice succeeds."""
    ref = _ref(vm, alias)

    async def work() -> Mapping[str, Any]:
        return dict(to_json(await call.core.guests.verbs.unplug(ref, affects=affects)))

    return await call.change(Verb.UNPLUG, _about(str(ref), affects), work, nic=ref)


def _about(what: str, affects: Affects) -> str:
    return what if affects is Affects.LIVE else f"{what} ({affects})"


def _ref(vm: str, alias: str) -> NicRef:
    return NicRef.parse(f"{vm}/{alias}")
