"""/v1/vms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from linkmgr.model import check_name
from linkmgr.service.auth import monitor_path
from linkmgr.service.config.schema import Permission
from linkmgr.service.http import schemas
from linkmgr.service.http.request_context import RequestContextDep
from linkmgr.service.problems import JsonResponse
from linkmgr.state.codec import to_json

router = APIRouter(tags=["VMs"])


@router.get("/v1/vms", responses={200: {"model": schemas.VmList}}, summary="All VMs")
async def vms(request: RequestContextDep) -> Response:
    """List all VMs; asks every QEMU for a sign of life."""
    return JsonResponse({"vms": to_json(await request.api.vms())})


@router.post("/v1/vms", responses={200: {"model": schemas.NicList}}, summary="Add a VM")
async def add_vm(request: RequestContextDep, body: schemas.AddVm) -> Response:
    """Take charge of a running QEMU's NICs: every unplugged one goes down at once."""
    name = check_name("VM", body.name)
    asked = monitor_path.parse_address(body.qmp)
    may_use = partial(request.context.access.may_use_sockets_of, request.peer)

    async def do_add() -> Mapping[str, Any]:  # only now is it known that the caller may ask
        qmp = await monitor_path.authorize_in_time(asked, may_use, request.peer.uid)
        # The path may lead elsewhere by the time that it is connected to: asked once more then.
        added = await request.api.add_vm(name, qmp, uid=request.peer.uid, may_use=may_use)
        return {"nics": to_json(added)}

    return await request.change(Permission.ADD_VM, name, do_add, nic=name)


@router.delete(
    "/v1/vms/{vm}", responses={200: {"model": schemas.ChangedAnswer}}, summary="Remove a VM"
)
async def remove_vm(request: RequestContextDep, vm: schemas.VmPath) -> Response:
    """Unplug all NICs of a VM and forget it."""
    name = check_name("VM", vm)

    async def do_remove() -> Mapping[str, Any]:
        return {"changed": await request.api.remove_vm(name)}

    return await request.change(Permission.REMOVE_VM, name, do_remove, nic=name)
