"""Every route does what its verb does, and answers in the one JSON form."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr.model import Finding
from linkmgr.service.http import schemas
from linkmgr.state.codec import to_json
from tests.unit.service_lab import Lab, running

BLUE = {"name": "blue", "driver": "bridge", "options": {"bridge": "br0"}, "drift": "repair"}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path) as made:
        yield made


async def build(lab: Lab) -> None:
    """A VM, a network and a port."""
    assert (await lab.ask("POST", "/v1/vms", {"name": "web1", "qmp": "/nowhere"})).status == 200
    assert (await lab.ask("POST", "/v1/networks", BLUE)).status == 200
    port = {"network": "blue", "name": "p7", "options": {"isolated": True}}
    assert (await lab.ask("POST", "/v1/ports", port)).status == 200


async def test_a_vm_is_added_listed_and_removed(lab: Lab) -> None:
    added = await lab.ask("POST", "/v1/vms", {"name": "web1", "qmp": "/nowhere"})
    assert added.status == 200
    assert added.headers["content-type"] == "application/json"
    schemas.NicList.model_validate(added.json)
    assert [nic["ref"] for nic in added.json["nics"]] == ["web1/net0"]
    listed = (await lab.ask("GET", "/v1/vms")).json
    schemas.VmList.model_validate(listed)
    assert listed == {"vms": to_json(await lab.api.vms())}
    assert (await lab.ask("DELETE", "/v1/vms/web1")).json == {"changed": True}
    assert (await lab.ask("DELETE", "/v1/vms/web1")).json == {"changed": False}


async def test_a_network_is_created_listed_and_deleted(lab: Lab) -> None:
    made = await lab.ask("POST", "/v1/networks", BLUE | {"drift": "report"})
    assert (made.status, made.json) == (200, BLUE | {"drift": "report"})
    listed = (await lab.ask("GET", "/v1/networks")).json
    assert listed == {"networks": [BLUE | {"drift": "report"}]}
    schemas.NetworkList.model_validate(listed)
    assert (await lab.ask("DELETE", "/v1/networks/blue")).json == {"changed": True}
    assert (await lab.ask("DELETE", "/v1/networks/blue")).json == {"changed": False}


async def test_a_port_is_created_listed_and_deleted(lab: Lab) -> None:
    await build(lab)
    for query in ("?network=blue", ""):
        listed = (await lab.ask("GET", f"/v1/ports{query}")).json
        schemas.PortList.model_validate(listed)
        (port,) = listed["ports"]
        assert (port["name"], port["options"]) == ("p7", {"isolated": True})
    assert (await lab.ask("GET", "/v1/ports?network=green")).json["code"] == "unknown-network"
    assert (await lab.ask("DELETE", "/v1/ports/blue/p7")).json == {"changed": True}
    assert (await lab.ask("DELETE", "/v1/ports/blue/p7")).json == {"changed": False}


async def test_a_nic_is_plugged_and_unplugged(lab: Lab) -> None:
    await build(lab)
    body = {"target": "blue:p7", "notify": "announce"}
    plugged = await lab.ask("PUT", "/v1/connections/web1/net0", body)
    assert plugged.status == 200
    schemas.OutcomeForm.model_validate(plugged.json)
    assert plugged.json["nic"]["connection"]["port"]["name"] == "p7"
    assert plugged.json["timings"] == {"stage": 3.5, "switch": 0.5}
    listed = (await lab.ask("GET", "/v1/connections")).json
    schemas.ConnectionList.model_validate(listed)
    assert [each["nic"] for each in listed["connections"]] == ["web1/net0"]
    unplugged = await lab.ask("DELETE", "/v1/connections/web1/net0")
    assert (unplugged.status, unplugged.json["changed"]) == (200, True)
    assert (await lab.ask("DELETE", "/v1/connections/web1/net0")).json["changed"] is False


async def test_the_verbs_are_told_whose_fds_a_caller_may_plug(lab: Lab) -> None:
    await build(lab)
    await lab.ask("PUT", "/v1/connections/web1/net0", {"target": "blue"})
    assert lab.api.uids == [os.getuid()]


async def test_nics_are_shown_and_their_links_set(lab: Lab) -> None:
    await build(lab)
    listed = (await lab.ask("GET", "/v1/nics")).json
    schemas.NicList.model_validate(listed)
    (nic,) = listed["nics"]
    assert (await lab.ask("GET", "/v1/nics/web1/net0")).json == nic
    schemas.NicForm.model_validate(nic)
    set_down = await lab.ask("PUT", "/v1/nics/web1/net0/link", {"state": "down"})
    assert set_down.json["nic"]["wanted_link"] == "down"
    schemas.OutcomeForm.model_validate(set_down.json)


async def test_checks_and_garbage_are_told(lab: Lab) -> None:
    lab.api.findings = [Finding("device-gone", "web1/net0", "its device is gone", "plug it")]
    found = (await lab.ask("GET", "/v1/check")).json
    assert found == {"findings": to_json(lab.api.findings)}
    schemas.FindingList.model_validate(found)
    dry = (await lab.ask("POST", "/v1/gc", {"dry_run": True, "older_than": 5})).json
    schemas.OrphanList.model_validate(dry)
    assert [(each["seen"], each["removed"]) for each in dry["orphans"]] == [(5, False)]
    wet = (await lab.ask("POST", "/v1/gc")).json
    assert [(each["seen"], each["removed"]) for each in wet["orphans"]] == [(60, True)]


async def test_health_is_told(lab: Lab) -> None:
    healthy = await lab.ask("GET", "/healthz")
    assert (healthy.status, healthy.json["status"]) == (200, "ok")
    schemas.HealthAnswer.model_validate(healthy.json)


async def test_every_example_of_a_request_is_a_good_request(lab: Lab) -> None:
    await build(lab)
    document = (await lab.ask("GET", "/openapi.json")).json
    tried = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema", {})
            options = [schema, *schema.get("anyOf", [])]
            for name in [each["$ref"].rpartition("/")[2] for each in options if "$ref" in each]:
                for example in document["components"]["schemas"][name]["examples"]:
                    where = path.replace("{vm}", "web1").replace("{alias}", "net0")
                    where = where.replace("{nic}", "52:54:00:12:34:56")
                    answer = await lab.ask(method.upper(), where, example)
                    assert answer.status == 200, (where, example, answer.json)
                    tried += 1
    assert tried == 11


async def test_the_document_has_every_problem_and_no_other_form_of_errors(lab: Lab) -> None:
    document: dict[str, Any] = (await lab.ask("GET", "/openapi.json")).json
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if status not in ("200", "202"):
                    (media,) = response["content"]
                    assert media == "application/problem+json", (path, method, status)
            if method != "get" and path != "/v1/libvirt/hook":  # that one changes nothing itself
                assert {"202", "403", "409", "422", "424"} <= operation["responses"].keys()
            good = operation["responses"]["200"]
            assert good["content"], (path, method)
    text = str(document)
    references = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= document["components"]["schemas"].keys()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/vms", {"name": "../../x", "qmp": "/nowhere"}),
        ("DELETE", "/v1/vms/..", None),
        ("POST", "/v1/networks", {"name": "a/b", "driver": "bridge"}),
        ("DELETE", "/v1/networks/a%0ab", None),
        ("POST", "/v1/ports", {"network": "blue", "name": " "}),
        ("PUT", "/v1/connections/web1/-net0", {"target": "blue"}),
        ("GET", "/v1/nics/we%22b1/net0", None),
    ],
)
async def test_a_name_that_cannot_be_one_is_refused(
    lab: Lab, method: str, path: str, body: object
) -> None:
    await build(lab)
    answer = await lab.ask(method, path, body)
    assert (answer.status, answer.json["code"]) == (400, "bad-name")


@pytest.mark.parametrize("key", ["name", "driver", "drift", "self"])
async def test_an_option_cannot_stand_for_what_is_beside_it(lab: Lab, key: str) -> None:
    body = {"name": "blue", "driver": "bridge", "options": {key: "x"}}
    answer = await lab.ask("POST", "/v1/networks", body)
    assert (answer.status, answer.json["code"]) == (400, "bad-option")


async def test_a_monitor_that_is_a_link_or_no_socket_is_refused(lab: Lab, tmp_path: Path) -> None:
    real, link, plain = tmp_path / "real", tmp_path / "link", tmp_path / "plain"
    plain.touch()
    link.symlink_to(real)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(real))
        for path in (link, plain, tmp_path, Path("relative")):
            answer = await lab.ask("POST", "/v1/vms", {"name": "web1", "qmp": str(path)})
            assert (answer.status, answer.json["code"]) == (400, "bad-request"), path
        assert not lab.api.the_nics
        answer = await lab.ask("POST", "/v1/vms", {"name": "web1", "qmp": str(real)})
        assert answer.status == 200
