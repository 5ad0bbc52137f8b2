"""The command line and libvirt's guests: --live, --config, --persistent; all of them in `nics`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from linkmgr.model import MonitorTransport, Nic, NicState, Outcome
from linkmgr.state.codec import to_json
from tests.unit import samples
from tests.unit.cli_runner import run
from tests.unit.http_peer import Exchange, FakeService, serving


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


NEXT = "from its next start on it is plugged into blue, link up"
GONE = Outcome(samples.nic(state=NicState.GONE), changed=True, notes=(NEXT, "it is not prepared"))


@pytest.mark.parametrize(
    ("line", "request_line", "body"),
    [
        ("plug web1/net0 blue --live", "PUT /v1/connections/web1/net0",
         {"target": "blue", "notify": "auto"}),
        ("plug web1/net0 blue --config", "PUT /v1/connections/web1/net0",
         {"target": "blue", "notify": "auto", "affects": "config"}),
        ("plug web1/net0 blue --live --config", "PUT /v1/connections/web1/net0",
         {"target": "blue", "notify": "auto", "affects": "persistent"}),
        ("unplug web1/net0", "DELETE /v1/connections/web1/net0", None),
        ("unplug web1/net0 --persistent", "DELETE /v1/connections/web1/net0?affects=persistent",
         None),
        ("link web1/net0 down --config", "PUT /v1/nics/web1/net0/link",
         {"state": "down", "affects": "config"}),
    ],
)  # fmt: skip
async def test_virshs_words_say_what_is_changed(
    service: FakeService, line: str, request_line: str, body: Any
) -> None:
    service.answers(to_json(GONE))
    result = await run(service.path, *line.split())
    assert result.exit_code == 0, result.output
    assert [(str(each), each.body) for each in service.seen] == [(request_line, body)]


async def test_what_holds_from_the_next_start_on_is_told_and_notes_are_on_stderr(
    service: FakeService,
) -> None:
    service.answers(to_json(GONE))
    for words in (["--config"], ["--persistent"]):
        result = await run(service.path, "plug", "web1/net0", "blue", *words)
        assert result.stdout == f"web1/net0  {NEXT}\n"
        assert result.stderr == "note: it is not prepared.\n"
    service.answers(to_json(Outcome(samples.nic(), changed=False, notes=("libvirt is away",))))
    result = await run(service.path, "plug", "web1/net0", "blue")
    assert result.stdout.endswith("link up (it was so already)\n")
    assert result.stderr == "note: libvirt is away.\n"
    as_json = await run(service.path, "--json", "plug", "web1/net0", "blue")
    assert json.loads(as_json.stdout)["notes"] == ["libvirt is away"]


def answers(service: FakeService, *nics: Nic, domains: list[Any]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "nics": [to_json(each) for each in nics],
        "vms": [to_json(replace(samples.vm(), transport=MonitorTransport.INBOUND))],
        "domains": [to_json(each) for each in domains],
    }
    service.script = lambda exchange: exchange.answer(
        {(key := exchange.request.target.rpartition("/")[2]): said[key]}
    )
    return said


async def test_nics_lists_every_guest_and_how_one_would_be_prepared(service: FakeService) -> None:
    off = samples.domain("web10", prepared=True, network=None, wanted="plugged into red, link up")
    down = samples.domain("web11", prepared=True, network=None, wanted="unplugged, link down")
    silent = replace(off, name="web12", state="running")
    again = replace(samples.domain("web13", restart=True), state="running", command=None)
    others = [samples.domain("web3"), off, down, silent, again]
    said = answers(service, samples.nic(), domains=others)
    result = await run(service.path, "nics")
    heads, *rows = [line.split(maxsplit=20) for line in result.stdout.splitlines()]
    assert heads == (
        "NIC STATE LINK PORT DEVICE MAC MTU MODEL WIRING BY FOR TO DO".split()  # noqa: SIM905
    )
    assert [row[0] for row in rows] == [
        "web1/net0", "web3/ua-net0",
        "web10/ua-net0", "web11/ua-net0", "web12/ua-net0", "web13/ua-net0",
    ]  # fmt: skip
    assert rows[0][:5] == ["web1/net0", "plugged", "up", "blue", "lm3f9a1c2e"]
    assert rows[0][8:10] == ["hub", "inbound"]
    text = result.stdout.splitlines()[2]
    assert "shut off" in text
    assert "bridge br7" in text
    assert text.endswith("linkmgr prepare web3 --define")
    assert "fixed" in text
    ports = result.stdout.splitlines()[3:6]
    assert "at its start: red" in ports[0]
    assert "at its start: unplugged, link down" in ports[1]
    assert "desired: red" in ports[2], "it runs, and its QEMU has not dialled yet"
    assert result.stdout.splitlines()[6].endswith("shut web13 down and start it")
    as_json = await run(service.path, "nics", "--json")
    assert json.loads(as_json.stdout) == {"nics": said["nics"], "domains": said["domains"]}


async def test_nics_that_run_are_listed_also_when_libvirt_does_not_answer(
    service: FakeService,
) -> None:
    said = answers(service, samples.nic(), domains=[])
    well = service.script

    def script(exchange: Exchange) -> None:
        if exchange.request.target.endswith("domains"):
            exchange.refuse(424, code="libvirt-unreachable", what="libvirt does not answer")
        else:
            well(exchange)

    service.script = script
    result = await run(service.path, "nics")
    assert result.exit_code == 0
    assert "web1/net0" in result.stdout
    assert "other guests are not listed: libvirt does not answer" in result.stderr
    as_json = await run(service.path, "nics", "--json")
    assert json.loads(as_json.stdout) == {"nics": said["nics"], "domains": None}


async def test_nics_without_libvirts_guests_are_plain_columns(service: FakeService) -> None:
    unwired = samples.nic("web1/net9", NicState.UNMANAGED)
    answers(service, samples.nic(), unwired, domains=[])
    lines = (await run(service.path, "nics")).stdout.splitlines()
    assert lines[0].startswith("NIC        STATE      LINK  PORT  DEVICE")
    assert lines[0].endswith("WIRING  BY       FOR")
    assert "fixed" in lines[2]
    answers(service, domains=[])
    assert (await run(service.path, "nics")).stdout == ""
