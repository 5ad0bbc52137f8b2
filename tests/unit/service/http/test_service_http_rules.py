"""What every request must keep to: no browser, JSON as it is; and HEAD is GET without its body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.service.http import schemas
from tests.unit.service_lab import Lab, request, running


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8080"},
        {"Sec-Fetch-Mode": "navigate"},
        {"sec-fetch-site": "cross-site"},
        {"Sec-Fetch-Dest": "document"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "10.1.2.3"},
        {"Host": "[fd00::1]:80"},
        {"Host": "localhost:80@evil.example"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/gc"), ("GET", "/v1/nics")])
async def test_a_browser_is_refused_with_a_hint(
    lab: Lab, headers: dict[str, str], method: str, path: str
) -> None:
    answer = await lab.ask(method, path, headers=headers)
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    assert "unix socket" in answer.json["hint"]
    schemas.ProblemForm.model_validate(answer.json)
    assert not lab.context.operations.all()


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:80", "x", "linkmgr", "127.0.0.1", "[::1]:8"]
)
async def test_programs_on_this_host_may_call_it_as_they_like(lab: Lab, host: str) -> None:
    assert (await lab.ask("POST", "/v1/gc", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "media",
    ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", "json"],
)
@pytest.mark.parametrize("body", [b"", b'{"dry_run": true}'])
async def test_what_a_form_sends_is_refused(lab: Lab, media: str, body: bytes) -> None:
    answer = await lab.ask("POST", "/v1/gc", raw=body, headers={"Content-Type": media})
    assert (answer.status, answer.json["code"]) == (400, "bad-request")
    assert "application/json" in answer.json["hint"]


@pytest.mark.parametrize(
    ("encoding", "status"), [("gzip", 415), ("br, gzip", 415), ("identity", 200), ("", 200)]
)
async def test_a_compressed_body_is_refused(lab: Lab, encoding: str, status: int) -> None:
    body = {"name": "blue", "driver": "bridge", "options": {"bridge": "br0"}}
    answer = await lab.ask("POST", "/v1/networks", body, headers={"Content-Encoding": encoding})
    assert answer.status == status
    assert bool(lab.api.the_networks) is (status == 200)


@pytest.mark.parametrize("path", ["/v1/nics", "/v1/nics/web1/net0", "/healthz", "/openapi.json"])
async def test_head_is_get_without_its_body(lab: Lab, path: str) -> None:
    whole = await lab.ask("GET", path)
    reader, writer = await lab.connect()
    writer.write(request("HEAD", path) + request("GET", "/healthz"))
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert int(head.split()[1]) == whole.status
        assert f"content-length: {whole.headers['content-length']}" in head
        assert (await reader.readline()).startswith(b"HTTP/1.1 200"), "the next answer, no body"


async def test_head_of_the_events_ends(lab: Lab) -> None:
    reader, writer = await lab.connect()
    writer.write(request("HEAD", "/v1/events") + request("GET", "/healthz"))
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"text/event-stream" in head
        assert b'"ok"' in await reader.readuntil(b'"ok"')


async def test_head_of_what_cannot_be_read_is_refused(lab: Lab) -> None:
    reader, writer = await lab.connect()
    writer.write(request("HEAD", "/v1/gc"))
    async with asyncio.timeout(5):
        assert b" 405 " in await reader.readline()
