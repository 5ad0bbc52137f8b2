"""/v1/vms."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from linkmgr.errors import BadRequest
from linkmgr.jsonform import to_json
from linkmgr.model import check_name
from linkmgr.service import models
from linkmgr.service.call import CallIn
from linkmgr.service.config import Verb
from linkmgr.service.problems import JsonResponse

router = APIRouter(tags=["VMs"])


@router.get("/v1/vms", responses={200: {"model": models.Vms}}, summary="All VMs")
async def vms(call: CallIn) -> Response:
    """List all VMs; asks every QEMU for a sign of life."""
    return JsonResponse({"vms": to_json(await call.links.vms())})


@router.post("/v1/vms", responses={200: {"model": models.Nics}}, summary="Add a VM")
async def add_vm(call: CallIn, body: models.AddVm) -> Response:
    """Take charge of a running QEMU's NICs: every unplugged one goes down at once."""
    name = check_name("VM", body.name)
    path = monitor_path(body.qmp)

    async def work() -> Mapping[str, Any]:
        return {"nics": to_json(await call.links.add_vm(name, path))}

    return await call.change(Verb.ADD_VM, name, work, nic=name)


@router.delete("/v1/vms/{vm}", responses={200: {"model": models.Changed}}, summary="Remove a VM")
async def remove_vm(call: CallIn, vm: models.PathName) -> Response:
    """Unplug all NICs of a VM and forget it."""
    name = check_name("VM", vm)

    async def work() -> Mapping[str, Any]:
        return {"changed": await call.links.remove_vm(name)}

    return await call.change(Verb.REMOVE_VM, name, work, nic=name)


def monitor_path(text: str) -> Path:
    """Return the path of a monitor socket as it will be used from now on.

    Links in its directories are followed now, and not again at each reconnection; the socket
    itself must not be one, for whoever can exchange it would choose what root speaks to.

    :raise BadRequest: when it is not absolute, or is there and is not a socket.
    """
    given = Path(text)
    if not given.is_absolute() or "\0" in text or given.name in ("", ".."):
        raise BadRequest(
            f"{ascii(text)[:60]} is not the absolute path of a socket",
            hint="give the path that QEMU has in -qmp unix:PATH,server=on,wait=off",
        )
    try:
        path = given.parent.resolve(strict=True) / given.name
        mode = path.lstat().st_mode
    except (OSError, RuntimeError, UnicodeError):
        return given  # whoever connects says what is wrong with it
    if not stat.S_ISSOCK(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "something else"
        raise BadRequest(
            f"{ascii(text)[1:-1]} is not a socket but {what}", hint="give the socket's own path"
        )
    return path
