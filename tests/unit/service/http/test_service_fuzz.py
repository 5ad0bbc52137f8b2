"""Requests made up from the OpenAPI document: no fault, no undocumented answer, no half change."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given

from linkmgr.service.auth.peer import Peer
from linkmgr.service.http import server
from tests.made_up import CHECKS, examples, operations, send
from tests.unit.service_lab import Lab, running


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path) as made:
        await made.api.add_vm("web1", "/nowhere")
        await made.api.create_network("blue", "bridge", bridge="br0")
        yield made


def state_of(lab: Lab) -> tuple[object, ...]:
    api = lab.api
    return (dict(api.the_nics), dict(api.the_networks), dict(api.the_ports))


def try_everything(lab: Lab, document: dict[str, Any], *, may_change: bool) -> dict[int, int]:
    """Send made-up requests to every path, in a thread; the number of answers by status."""
    statuses: dict[int, int] = {}
    transport = httpx.HTTPTransport(uds=str(lab.socket))
    with httpx.Client(transport=transport, base_url="http://x", timeout=20) as client:
        for operation, mode in operations(document):

            @given(case=operation.as_strategy(generation_mode=mode))
            @examples(12)
            def try_one(case: Any) -> None:
                before = state_of(lab)
                answer = send(client, case)
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                if answer.status_code == 202:  # else it would go on under the next request
                    while client.get(answer.headers["location"]).json()["ended"] is None:
                        time.sleep(0.01)
                if answer.status_code >= 400 or not may_change:
                    assert state_of(lab) == before, "a rejected request has changed something"
                if not may_change and case.method != "GET":
                    assert answer.status_code >= 400
                case.validate_response(answer, checks=CHECKS)

            try_one()
    return statuses


async def test_made_up_requests_of_root_find_no_fault(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    document = (await lab.ask("GET", "/openapi.json")).json
    statuses = await asyncio.to_thread(try_everything, lab, document, may_change=True)
    assert statuses.keys() >= {200, 400, 404}


async def test_made_up_requests_of_an_unprivileged_user_change_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(server, "peer_of", lambda sock: Peer(65534, 65534, 1, frozenset({65534})))
    document = (await lab.ask("GET", "/openapi.json")).json
    statuses = await asyncio.to_thread(try_everything, lab, document, may_change=False)
    assert statuses.keys() >= {200, 400, 403}
