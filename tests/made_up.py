"""Requests made up from an OpenAPI document, and what must hold for every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
_WANTED = ("method", "url", "headers", "params", "json", "data", "content")


def examples(count: int, *, derandomize: bool = False) -> settings:
    """Hypothesis makes so many requests for each route."""
    return settings(
        max_examples=count, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate], database=None, derandomize=derandomize,
    )  # fmt: skip


def operations(
    document: dict[str, Any], order: Callable[[Any], object] = lambda _: 0
) -> Iterator[tuple[Any, GenerationMode]]:
    """Every route, with good requests and, if it takes a body, with malformed ones."""
    found = []
    for each in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(each, Ok), each
        found.append(each.ok())
    for operation in sorted(found, key=order):  # type: ignore[arg-type]
        if operation.path == "/v1/events":
            continue  # it has no end
        yield operation, GenerationMode.POSITIVE
        if operation.body:
            yield operation, GenerationMode.NEGATIVE


def send(client: httpx.Client, case: Any) -> httpx.Response:
    """Send a request that was made up."""
    made = case.as_transport_kwargs(base_url=str(client.base_url))
    if isinstance(made.get("data"), bytes | str):
        made["content"] = made.pop("data")  # httpx has another word for it
    return client.request(**{key: made[key] for key in _WANTED if key in made})
