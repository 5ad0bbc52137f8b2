"""The OpenAPI document shows by example what each request, answer and parameter looks like."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr.service.http import examples, schemas
from linkmgr.state.codec import (
    JsonReader,
    read_domain,
    read_finding,
    read_nic,
    read_orphan,
    read_outcome,
    read_port,
    read_vm,
    to_json,
)
from linkmgr.swap.steps import Step
from tests.unit.service_lab import Lab, running


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path) as made:
        yield made


async def test_every_answer_and_every_parameter_has_an_example(lab: Lab) -> None:
    document: dict[str, Any] = (await lab.ask("GET", "/openapi.json")).json
    without = {
        name
        for name, schema in document["components"]["schemas"].items()
        if schema["type"] == "object" and not schema.get("examples")
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for each in operation.get("parameters", []):
                if not ({"example", "examples"} & (each.keys() | each["schema"].keys())):
                    without.add(f"{method} {path}: {each['name']}")
            for status, response in operation["responses"].items():
                shown = [*response["content"].values(), *response.get("headers", {}).values()]
                if not all("$ref" in each["schema"] or "example" in each for each in shown):
                    without.add(f"{method} {path}: {status}")
    assert not without


async def test_every_example_is_of_its_form(lab: Lab) -> None:
    document: dict[str, Any] = (await lab.ask("GET", "/openapi.json")).json
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", []):
            model = getattr(schemas, name)
            made = model.model_validate_json(json.dumps(example))
            assert made.model_fields_set == example.keys(), name


def test_the_examples_of_answers_read_back_as_a_client_reads_them() -> None:
    for nic in (examples.NIC, examples.UNPLUGGED):
        assert to_json(read_nic(JsonReader(nic))) == nic
    for outcome in (examples.OUTCOME, examples.UNCHANGED):
        assert to_json(read_outcome(JsonReader(outcome))) == outcome
    for orphan in (examples.ORPHAN, examples.ORPHAN_IN_USE):
        assert to_json(read_orphan(JsonReader(orphan))) == orphan
    assert to_json(read_vm(JsonReader(examples.VM))) == examples.VM
    assert to_json(read_port(JsonReader(examples.PORT))) == examples.PORT
    assert to_json(read_domain(JsonReader(examples.DOMAIN))) == examples.DOMAIN
    assert to_json(read_finding(JsonReader(examples.FINDING))) == examples.FINDING
    assert examples.OUTCOME["timings"].keys() <= set(Step)
