"""Every error is a problem document, whoever raised it."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.errors import LinkmgrError, MonitorTimeout, PortInUse
from linkmgr.service.http import schemas
from linkmgr.service.problems import SERVICE_PROBLEMS, problem, status_of
from tests.unit.service_lab import Lab, read_answer, request, running

ROOT = Path(__file__).parents[3]
CLIENTS_OWN = ("service-unreachable", "service-gone", "service-timeout")  # never answered


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path) as made:
        await made.api.add_vm("web1", "/nowhere")
        await made.api.create_network("blue", "bridge", bridge="br0")
        yield made


def tree(kind: type[LinkmgrError]) -> list[type[LinkmgrError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in tree(child))]


def test_the_status_of_every_error_is_in_the_table_of_errors() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| `\w+` \|.*\| (\d+|-) \|$", text, re.MULTILINE)
    wanted = {kind.code: str(status_of(kind)) for kind in tree(LinkmgrError)}
    wanted |= dict.fromkeys(CLIENTS_OWN, "-")
    assert dict(rows) == wanted


def test_the_services_own_problems_are_in_the_description_of_the_api() -> None:
    text = (ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| ", text, re.MULTILINE)
    assert dict(rows) == {code: str(status) for code, (status, _) in SERVICE_PROBLEMS.items()}


def test_only_a_fault_of_the_service_is_a_5xx() -> None:
    server = {kind.code for kind in tree(LinkmgrError) if status_of(kind) >= 500}
    assert server == {"error", "state-error", "stopping", *CLIENTS_OWN}


def test_a_problem_says_what_the_error_says() -> None:
    error = PortInUse("port blue:p7 is in use by web2/net0", hint="unplug that NIC")
    document = problem(error.about("web1/net0", "unplugged"))
    assert document == {
        "type": "urn:linkmgr:error:port-in-use",
        "title": "Another NIC is plugged into the port",
        "status": 409,
        "detail": str(error),
        "code": "port-in-use",
        "what": "port blue:p7 is in use by web2/net0",
        "hint": "unplug that NIC",
        "nic": "web1/net0",
        "state": "unplugged",
    }
    assert problem(MonitorTimeout("no answer", sent=False))["sent"] is False


async def test_a_verb_that_fails_answers_with_its_error(lab: Lab) -> None:
    lab.api.fails = PortInUse("it is in use").about("web1/net0", "unplugged")
    answer = await lab.ask("PUT", "/v1/connections/web1/net0", {"target": "blue"})
    assert answer.status == 409
    assert answer.headers["content-type"] == "application/problem+json"
    schemas.ProblemForm.model_validate(answer.json)
    assert (answer.json["code"], answer.json["nic"]) == ("port-in-use", "web1/net0")
    missing = await lab.ask("PUT", "/v1/connections/web2/net0", {"target": "blue"})
    assert (missing.status, missing.json["code"]) == (404, "unknown-vm")


async def test_a_fault_is_logged_and_told_without_its_inside(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.api.fails = ZeroDivisionError("a secret")
    answer = await lab.ask("PUT", "/v1/connections/web1/net0", {"target": "blue"})
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert "a secret" not in answer.raw.decode()
    assert "a secret" in caplog.text


async def test_a_fault_while_reading_is_told_the_same_way(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(lab.api, "nics", broken)
    answer = await lab.ask("GET", "/v1/nics")
    assert (answer.status, answer.json["code"]) == (500, "internal")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/nics/", "/v1/nics/web1/net0/x", "/docs", "/%ff%00"]
)
async def test_a_path_that_is_not_there_is_a_problem(lab: Lab, path: str) -> None:
    answer = await lab.ask("GET", path)
    assert (answer.status, answer.json["code"]) == (404, "not-found")
    schemas.ProblemForm.model_validate(answer.json)


async def test_a_method_that_is_not_taken_says_which_are(lab: Lab) -> None:
    answer = await lab.ask("PATCH", "/v1/connections/web1/net0")
    assert (answer.status, answer.json["code"]) == (405, "method-not-allowed")
    assert answer.headers["allow"] == "DELETE, PUT"
    assert (await lab.ask("DELETE", "/v1/nics")).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[" * 60_000,
        b'{"target": ' + b"1" * 60_000 + b"}",
        b'{"target": 7}',
        b'{"target": "blue", "surprise": 1}',
        b'{"target": "blue", "notify": "loudly"}',
        b'{"target": "\\ud800"}',
    ],
)
async def test_a_body_of_the_wrong_form_is_refused(lab: Lab, raw: bytes) -> None:
    answer = await lab.ask("PUT", "/v1/connections/web1/net0", raw=raw)
    assert (answer.status, answer.json["code"]) == (400, "bad-request")
    assert not lab.api.uids, "nothing was tried"


async def test_a_number_that_is_none_is_refused(lab: Lab) -> None:
    for raw in (b'{"older_than": NaN}', b'{"older_than": 1e999}', b'{"older_than": -1}'):
        answer = await lab.ask("POST", "/v1/gc", raw=raw)
        assert (answer.status, answer.json["code"]) == (400, "bad-request")


async def test_a_body_that_is_not_called_json_is_refused(lab: Lab) -> None:
    answer = await lab.ask(
        "PUT", "/v1/connections/web1/net0", {"target": "blue"},
        headers={"Content-Type": "text/plain"},
    )  # fmt: skip
    assert answer.status == 400
    assert "application/json" in answer.json["hint"]


async def test_what_is_not_http_is_answered_and_hung_up_on(lab: Lab) -> None:
    reader, writer = await lab.connect()
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    answer = await read_answer(reader)
    assert (answer.status, answer.json["code"]) == (400, "bad-request")
    assert await reader.read() == b""


async def test_one_connection_carries_many_requests(lab: Lab) -> None:
    reader, writer = await lab.connect()
    for path, status in (("/v1/nics", 200), ("/v1/x", 404), ("/healthz", 200)):
        writer.write(request("GET", path))
        assert (await read_answer(reader)).status == status


@pytest.mark.parametrize("body", ['{"target": %s}', "%s"], ids=["in a member", "as the body"])
async def test_a_deep_nest_is_refused_in_a_sentence_on_every_python(lab: Lab, body: str) -> None:
    nest = "[" * 15_000 + "]" * 15_000
    answer = await lab.ask("PUT", "/v1/connections/web1/net0", raw=(body % nest).encode())
    assert (answer.status, answer.json["code"]) == (400, "bad-request")
    assert len(answer.json["detail"]) < 500
