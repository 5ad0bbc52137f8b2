"""The OpenAPI document: what FastAPI makes, with our problem documents in it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from linkmgr.service.http import schemas
from linkmgr.service.http.examples import OPERATION_ID
from linkmgr.service.http.schemas import EventForm, OperationForm, ProblemForm
from linkmgr.service.problems import MEDIA_TYPE

_REF = "#/components/schemas/{model}"
_READ = {400: "The request is wrong", 404: "What was named does not exist"}
_CHANGE = {
    **_READ,
    403: "The caller may not do this",
    408: "The request did not arrive in time",
    409: "It exists, but is not free for this",
    413: "The request is too large",
    415: "The body is compressed",
    422: "This NIC and this network do not go together",
    424: "The kernel or QEMU refused",
    429: "Too many are under way",
    503: "The service is stopping",
    507: "The state directory cannot be written",
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`respond-async` answers at once with 202, or after `wait=SECONDS` (RFC 7240)",
    "schema": {"type": "string"},
    "example": "respond-async",
}
_PLACE = f"/v1/operations/{OPERATION_ID}"

#: Not changes, though not GET either: answered at once whatever the caller prefers.
_NO_CHANGE = {"/v1/libvirt/hook"}


def document(app: FastAPI) -> dict[str, Any]:
    """Make the document, once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = made.setdefault("components", {}).setdefault("schemas", {})
        for model in (ProblemForm, OperationForm, EventForm):
            schema = model.model_json_schema(ref_template=_REF)
            components.update(schema.pop("$defs", {}))
            components[model.__name__] = schema
        for unused in ("HTTPValidationError", "ValidationError"):
            components.pop(unused, None)
        for name, schema in components.items():
            if "examples" in schema:  # FastAPI leaves every null out, also where it must stand
                schema["examples"] = getattr(schemas, name).model_json_schema()["examples"]
        for name, path in made["paths"].items():
            for method, operation in path.items():
                _complete(method, operation, change=method != "get" and name not in _NO_CHANGE)
        app.openapi_schema = made
    return app.openapi_schema


def _complete(method: str, operation: dict[str, Any], *, change: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own form of it
    for status, description in (_READ if method == "get" else _CHANGE).items():
        responses[str(status)] = _problem(description)
    responses["default"] = _problem("Any other problem")
    if change:
        responses["202"] = {
            "description": "Under way; the Location is its operation",
            "headers": {"Location": {"schema": {"type": "string"}, "example": _PLACE}},
            "content": {
                "application/json": {"schema": {"$ref": _REF.format(model="OperationForm")}}
            },
        }
        operation.setdefault("parameters", []).append(_PREFER)


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model="ProblemForm")}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}
