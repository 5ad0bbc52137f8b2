"""/v1/networks and /v1/ports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from linkmgr.errors import AlreadyExists, BadOption
from linkmgr.model import check_name
from linkmgr.service.config.schema import Permission
from linkmgr.service.http import schemas
from linkmgr.service.http.request_context import RequestContextDep
from linkmgr.service.problems import JsonResponse
from linkmgr.state.codec import to_json

router = APIRouter(tags=["networks"])

_RESERVED = {"self", "name", "driver", "drift", "network"}  # of the verbs: never options


@router.get("/v1/networks", responses={200: {"model": schemas.NetworkList}}, summary="All networks")
async def networks(request: RequestContextDep) -> Response:
    """List all networks, those of the configuration too."""
    return JsonResponse({"networks": to_json(await request.api.networks())})


@router.post(
    "/v1/networks", responses={200: {"model": schemas.NetworkForm}}, summary="Create a network"
)
async def create_network(request: RequestContextDep, body: schemas.CreateNetwork) -> Response:
    """Describe a network. The same description again is fine."""
    name = check_name("network", body.name)
    _check_keys(f"network {name}", body.options)

    async def do_create() -> Mapping[str, Any]:
        try:
            made = await request.api.create_network(
                name, body.driver, drift=body.drift, **body.options
            )
        except AlreadyExists:
            request.context.declared.check_network(name)
            raise
        return dict(to_json(made))

    return await request.change(Permission.CREATE_NETWORK, name, do_create, network=name)


@router.get(
    "/v1/networks/{name}",
    responses={200: {"model": schemas.NetworkInfoForm}},
    summary="One network",
)
async def network(request: RequestContextDep, name: schemas.NetworkPath) -> Response:
    """Show one network, its ports, the NICs on it, and what it lacks on this host."""
    return JsonResponse(to_json(await request.api.network(check_name("network", name))))


@router.delete(
    "/v1/networks/{name}",
    responses={200: {"model": schemas.ChangedAnswer}},
    summary="Delete a network",
)
async def delete_network(request: RequestContextDep, name: schemas.NetworkPath) -> Response:
    """Forget a network that nothing is plugged into."""
    check_name("network", name)

    async def do_delete() -> Mapping[str, Any]:
        request.context.declared.check_network(name)
        return {"changed": await request.api.delete_network(name)}

    return await request.change(Permission.DELETE_NETWORK, name, do_delete, network=name)


@router.get("/v1/ports", responses={200: {"model": schemas.PortList}}, summary="Created ports")
async def ports(request: RequestContextDep, network: schemas.NetworkQuery = None) -> Response:
    """List the created ports of one network, or of all."""
    names = [network] if network is not None else [str(n) for n in await request.api.networks()]
    found = [port for name in names for port in await request.api.ports(name)]
    return JsonResponse({"ports": to_json(found)})


@router.post("/v1/ports", responses={200: {"model": schemas.PortForm}}, summary="Create a port")
async def create_port(request: RequestContextDep, body: schemas.CreatePort) -> Response:
    """Describe a port. The same description again is fine."""
    network, name = check_name("network", body.network), check_name("port", body.name)
    _check_keys(f"port {network}:{name}", body.options)

    async def do_create() -> Mapping[str, Any]:
        request.context.declared.check_stays(network)
        try:
            made = await request.api.create_port(network, name, **body.options)
        except AlreadyExists:
            request.context.declared.check_port(network, name)
            raise
        return dict(to_json(made))

    return await request.change(
        Permission.CREATE_PORT, f"{network}:{name}", do_create, network=network
    )


@router.delete(
    "/v1/ports/{network}/{name}",
    responses={200: {"model": schemas.ChangedAnswer}},
    summary="Delete a port",
)
async def delete_port(
    request: RequestContextDep, network: schemas.NetworkPath, name: schemas.PortPath
) -> Response:
    """Forget a port that no NIC is plugged into."""
    check_name("network", network)
    check_name("port", name)

    async def do_delete() -> Mapping[str, Any]:
        request.context.declared.check_port(network, name)
        changed = await request.api.delete_port(network, name)
        await request.context.declared.retry()
        return {"changed": changed}

    return await request.change(
        Permission.DELETE_PORT, f"{network}:{name}", do_delete, network=network
    )


def _check_keys(owner: str, options: Mapping[str, Any]) -> None:
    for key in options:
        if key in _RESERVED:
            raise BadOption(f"{owner} has no option {key}", hint="put it beside the options")
