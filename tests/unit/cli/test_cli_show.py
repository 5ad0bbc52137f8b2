"""show prints all that is known of one object, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr.model import Port
from linkmgr.state.codec import to_json
from tests.unit import samples
from tests.unit.cli_runner import run
from tests.unit.http_peer import Exchange, FakeService, serving

NIC = to_json(samples.nic())
PORT = Port(samples.BLUE, "p7", {"isolated": True})
FINDINGS = [
    {"code": "moved", "subject": "web1/net0", "what": "it moved", "hint": "plug again"},
    {"code": "moved", "subject": "db/net0", "what": "another", "hint": "-"},
]
INFO = {
    "network": to_json(samples.BLUE), "ports": [to_json(PORT)], "nics": ["web1/net0"],
    "missing": "there is no bridge br0 yet",
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "/v1/vms": {"vms": [to_json(samples.vm("web1")), to_json(samples.vm("db"))]},
    "/v1/nics": {"nics": [NIC]},
    "/v1/nics/web1/net0": NIC,
    "/v1/nics/web1": NIC,
    "/v1/check": {"findings": FINDINGS},
    "/v1/networks/blue": INFO,
    "/v1/ports?network=blue": {"ports": [to_json(PORT)]},
    "/v1/connections": {"connections": [NIC["connection"] | {"port": to_json(PORT)}]},
    "/v1/domains": {"domains": [to_json(samples.domain("web1", alias="net0", wanted="red"))]},
}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    def script(exchange: Exchange) -> None:
        target = exchange.request.target
        if target in ANSWERS:
            exchange.answer(ANSWERS[target])
        else:
            exchange.refuse(404, code="not-found", what=f"there is no {target}")

    async with serving(tmp_path) as made:
        made.script = script
        yield made


def facts(text: str) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in text.splitlines())
    return [(name, value.strip()) for name, _, value in pairs]


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (
            "vm web1",
            {
                "VM": "web1", "State": "answers for", "Monitor": "/run/web1.qmp",
                "NIC": "web1/net0  52:54:00:12:34:56  plugged into blue, link up",
                "Finding": "web1/net0: it moved. To do: plug again",
            },
        ),
        (
            "nic web1",
            {
                "NIC": "web1/net0", "Plugged into": "blue (bridge br0, lm3f9a1c2e)",
                "Device": "lm3f9a1c2e", "Options": "bridge=br0", "Link": "up, wanted up",
                "MTU": "1500 bytes", "Its domain asks for": "red", "Finding": "web1/net0: it moved",
            },
        ),
        (
            "network blue",
            {
                "Network": "blue", "Driver": "bridge", "Options": "bridge=br0", "Drift": "repair",
                "Missing": "there is no bridge br0 yet", "Port": "blue:p7  isolated=true",
                "NIC": "web1/net0",
            },
        ),
        (
            "port blue:p7",
            {"Port": "blue:p7", "Options": "isolated=true", "NIC": "web1/net0",
             "Endpoint": "bridge br0", "Device": "lm3f9a1c2e"},
        ),
        (
            "domain web1",
            {"Domain": "web1", "State": "shut off", "Prepared": "no",
             "To do": "linkmgr prepare web1 --define", "NIC": "web1/net0  52:54:00:00:00:03"},
        ),
    ],
)  # fmt: skip
async def test_each_object_is_shown_with_all_that_is_known(
    service: FakeService, words: str, known: dict[str, str]
) -> None:
    result = await run(service.path, "show", *words.split())
    assert result.exit_code == 0, result.output
    shown = facts(result.stdout)
    for name, value in known.items():
        assert any(at == name and said.startswith(value) for at, said in shown), (name, shown)
    assert "another" not in result.stdout
    as_json = await run(service.path, "show", *words.split(), "--json")
    assert as_json.exit_code == 0
    assert isinstance(json.loads(as_json.stdout), dict)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "vm wbe1",
            "there is no VM wbe1. To do: did you mean web1? Else add it first; the VMs are: db, w",
        ),
        ("port blue:pp7", "network blue has no port pp7. To do: did you mean p7?"),
        ("domain wbe1", "libvirt has no domain wbe1. To do: did you mean web1?"),
        ("network green", "there is no /v1/networks/green"),
        ("nic web9/net0", "there is no /v1/nics/web9/net0"),
    ],
)
async def test_what_is_not_there_is_not_found_and_what_was_meant_is_told(
    service: FakeService, words: str, says: str
) -> None:
    result = await run(service.path, "show", *words.split())
    assert (result.exit_code, result.stdout) == (3, "")
    assert says in result.stderr


async def test_a_port_is_named_with_its_network(service: FakeService) -> None:
    result = await run(service.path, "show", "port", "p7")
    assert result.exit_code == 2
    assert "'p7' is not of the form NETWORK:PORT" in result.stderr
    assert not service.seen
