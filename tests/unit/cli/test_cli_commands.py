"""Each command asks the service for its verb, and prints what came of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr import hub_args
from linkmgr.model import NicState, Port
from linkmgr.state.codec import to_json
from tests.unit import samples
from tests.unit.cli_runner import run
from tests.unit.http_peer import Exchange, FakeService, serving


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


NIC, OUTCOME = to_json(samples.nic()), samples.outcome()
SAME = OUTCOME | {"changed": False}
PLUGGED = "web1/net0  plugged into blue (bridge br0, lm3f9a1c2e), link up"
PORT = to_json(Port(samples.BLUE, "p1", {"isolated": True}))


@pytest.mark.parametrize(
    ("line", "answer", "request_line", "body", "says"),
    [
        (
            "plug web1/net0 blue:p1 --notify flap", OUTCOME, "PUT /v1/connections/web1/net0",
            {"target": "blue:p1", "notify": "flap"}, PLUGGED,
        ),
        (
            "plug web1/net0 blue", SAME, "PUT /v1/connections/web1/net0",
            {"target": "blue", "notify": "auto"}, PLUGGED + " (it was so already)",
        ),
        (
            "plug 52:54:00:12:34:56 blue", OUTCOME, "PUT /v1/connections/52:54:00:12:34:56",
            {"target": "blue", "notify": "auto"}, PLUGGED,
        ),
        ("link web1 up", OUTCOME, "PUT /v1/nics/web1/link", {"state": "up"}, PLUGGED),
        (
            "unplug lm3f9a1c2e", samples.outcome(state=NicState.UNPLUGGED),
            "DELETE /v1/connections/lm3f9a1c2e", None, "web1/net0  unplugged",
        ),
        (
            "unplug web1/net0", samples.outcome(state=NicState.UNPLUGGED),
            "DELETE /v1/connections/web1/net0", None, "web1/net0  unplugged",
        ),
        ("link web1/net0 up", OUTCOME, "PUT /v1/nics/web1/net0/link", {"state": "up"}, PLUGGED),
        (
            "vm add web1 /run/q", {"nics": [NIC]}, "POST /v1/vms",
            {"name": "web1", "qmp": "/run/q"}, "web1/net0  plugged into blue, link up",
        ),
        (
            "vm add web1 /run/q", {"nics": []}, "POST /v1/vms",
            {"name": "web1", "qmp": "/run/q"}, "web1  has no NICs",
        ),
        ("vm remove web1", {"changed": True}, "DELETE /v1/vms/web1", None, "web1  removed"),
        ("vm remove web1", {"changed": False}, "DELETE /v1/vms/web1", None, "web1  was not known"),
        (
            "network create blue bridge bridge=br0 create=true mtu=1400 --drift report",
            to_json(samples.BLUE), "POST /v1/networks",
            {
                "name": "blue", "driver": "bridge", "drift": "report",
                "options": {"bridge": "br0", "create": True, "mtu": 1400},
            },
            "network blue  bridge bridge=br0",
        ),
        (
            "network create blue bridge 'a=\"1\"' b=-5 c=false d= e=x=y f=1e3",
            to_json(samples.BLUE), "POST /v1/networks",
            {
                "name": "blue", "driver": "bridge", "drift": "repair",
                "options": {"a": "1", "b": -5, "c": False, "d": "", "e": "x=y", "f": "1e3"},
            },
            "network blue  bridge bridge=br0",
        ),
        (
            "network delete blue", {"changed": True}, "DELETE /v1/networks/blue", None,
            "network blue  deleted",
        ),
        (
            "port create blue p1 isolated=true", PORT, "POST /v1/ports",
            {"network": "blue", "name": "p1", "options": {"isolated": True}},
            "port blue:p1  isolated=true",
        ),
        (
            "port delete blue p1", {"changed": False}, "DELETE /v1/ports/blue/p1", None,
            "port blue:p1  was not there",
        ),
        (
            "gc --dry-run", {"orphans": []}, "POST /v1/gc",
            {"older_than": 60, "dry_run": True}, "There are no orphan devices.",
        ),
    ],
)  # fmt: skip
async def test_a_change_is_asked_for_and_told(
    service: FakeService, line: str, answer: Any, request_line: str, body: Any, says: str
) -> None:
    def script(exchange: Exchange) -> None:  # what is asked besides, an older service has not
        if str(exchange.request) == request_line:
            exchange.answer(answer)
        else:
            exchange.refuse(404, code="not-found", what="there is no such path")

    service.script = script
    result = await run(service.path, *shlex.split(line))
    assert result.exit_code == 0, result.output
    changes = [each for each in service.seen if each.method != "GET"]
    assert [(str(each), each.body) for each in changes] == [(request_line, body)]
    assert result.stdout == says + "\n"
    assert result.stderr == ""
    as_json = await run(service.path, "--json", *shlex.split(line))
    shown = json.loads(as_json.stdout)
    assert shown == answer


@pytest.mark.parametrize(
    ("line", "answer", "heads", "row", "none"),
    [
        (
            "connections", {"connections": [NIC["connection"]]}, "NIC        PORT  ENDPOINT",
            "web1/net0  blue  bridge br0  lm3f9a1c2e", "No NIC is plugged.",
        ),
        (
            "vm list", {"vms": [to_json(samples.vm())]}, "VM    STATE    FOR",
            "web1  answers ", "No VMs.",
        ),
        (
            "network list", {"networks": [to_json(samples.BLUE)]}, "NETWORK  DRIVER  DRIFT",
            "blue     bridge  repair  bridge=br0", "No networks.",
        ),
        (
            "port list blue", {"ports": [PORT]}, "PORT     OPTIONS", "blue:p1  isolated=true",
            "No ports.",
        ),
    ],
)  # fmt: skip
async def test_a_list_is_plain_columns_in_a_pipe(
    service: FakeService, line: str, answer: Any, heads: str, row: str, none: str
) -> None:
    service.answers(answer)
    result = await run(service.path, *line.split())
    first, second = result.stdout.splitlines()
    assert first.startswith(heads)
    assert second.startswith(row)
    as_json = await run(service.path, *line.split(), "--json")
    assert json.loads(as_json.stdout) == answer
    key = next(iter(answer))
    service.answers({key: []})
    empty = await run(service.path, *line.split())
    assert (empty.stdout, empty.stderr) == ("", f"{none}\n")
    as_json = await run(service.path, *line.split(), "--json")
    assert (json.loads(as_json.stdout), as_json.stderr) == ({key: []}, "")


async def test_ports_are_listed_on_all_networks(service: FakeService) -> None:
    def script(exchange: Any) -> None:
        networks = exchange.request.target == "/v1/networks"
        exchange.answer({"networks": [to_json(samples.BLUE)]} if networks else {"ports": [PORT]})

    service.script = script
    result = await run(service.path, "port", "list")
    assert "blue:p1" in result.stdout
    assert str(service.seen[1]) == "GET /v1/ports?network=blue"


async def test_the_socket_may_be_named_before_the_command_after_it_or_in_the_environment(
    service: FakeService, tmp_path: Path
) -> None:
    service.answers({"connections": []})
    nobody, here = tmp_path / "none.sock", str(service.path)
    assert (await run(service.path, "connections")).exit_code == 0
    assert (await run(nobody, "connections", "--socket", here)).exit_code == 0
    assert (await run(nobody, "--socket", here, "connections")).exit_code == 0
    assert (
        await run(nobody, "--socket", str(nobody), "connections", "--socket", here)
    ).exit_code == 0
    assert len(service.seen) == 4
    assert (await run(service.path, "--socket", str(nobody), "connections")).exit_code == 9


async def test_args_prints_what_a_shell_gives_to_qemu_and_needs_no_service(tmp_path: Path) -> None:
    nobody = tmp_path / "none.sock"
    line = "args web1/net0 --mac 52:54:00:00:00:01 --model virtio-net-ccw --mtu 9000"
    result = await run(nobody, *line.split())
    expected = hub_args("net0", mac="52:54:00:00:00:01", model="virtio-net-ccw", host_mtu=9000)
    assert shlex.split(result.stdout) == expected
    as_json = await run(nobody, "args", "web1/net0", "--mac", "52:54:00:00:00:01", "--json")
    assert json.loads(as_json.stdout) == hub_args("net0", mac="52:54:00:00:00:01")


async def test_the_address_that_args_makes_is_always_the_same_and_each_nics_own(
    tmp_path: Path,
) -> None:
    async def mac(nic: str) -> str:
        return (await run(tmp_path, "args", nic)).stdout.rpartition("mac=")[2]

    macs = [await mac(nic) for nic in ("web1/net0", "web1/net1", "web2/net0", "web1/net0")]
    assert macs[0] == macs[3]
    assert len(set(macs)) == 3
    assert all(each.startswith("52:54:00:") for each in macs)


async def test_metrics_replace_their_file_as_a_whole(service: FakeService, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    file = folder / "linkmgr.prom"
    file.write_text("old")
    service.script = lambda exchange: exchange.answer("linkmgr_vms 1\n", kind="text/plain")
    result = await run(service.path, "metrics", "--textfile", str(file))
    assert (result.exit_code, result.stdout) == (0, "")
    assert file.read_text() == "linkmgr_vms 1\n"
    assert file.stat().st_mode & 0o777 == 0o644
    assert (await run(service.path, "metrics")).stdout == "linkmgr_vms 1\n"

    service.script = lambda exchange: exchange.refuse(500, code="internal", what="no", hint=None)
    assert (await run(service.path, "metrics", "--textfile", str(file))).exit_code == 12
    assert file.read_text() == "linkmgr_vms 1\n"
    assert list(folder.iterdir()) == [file]


async def test_metrics_that_cannot_be_written_are_an_error_without_a_traceback(
    service: FakeService, tmp_path: Path
) -> None:
    service.script = lambda exchange: exchange.answer("linkmgr_vms 1\n", kind="text/plain")
    words = ["metrics", "--textfile", str(tmp_path / "none" / "x.prom")]
    result = await run(service.path, *words)
    assert result.exit_code == 6
    assert result.stderr.startswith("linkmgr: ")
    assert "x.prom' cannot be written: No such file or directory. To do: " in result.stderr
    as_json = await run(service.path, *words, "--json")
    assert as_json.exit_code == 6
    assert json.loads(as_json.stdout)["error"]["code"] == "host-error"


async def test_with_json_metrics_are_objects(service: FakeService, tmp_path: Path) -> None:
    text = (
        "# HELP linkmgr_nics NICs\n# TYPE linkmgr_nics gauge\n"
        'linkmgr_nics{state="plugged"} 2.0\nlinkmgr_vms NaN\n'
    )
    service.script = lambda exchange: exchange.answer(text, kind="text/plain")
    figures = [
        {"name": "linkmgr_nics", "labels": {"state": "plugged"}, "value": 2.0},
        {"name": "linkmgr_vms", "labels": {}, "value": None},
    ]
    result = await run(service.path, "metrics", "--json")
    assert json.loads(result.stdout) == {"metrics": figures}
    file = tmp_path / "x.prom"
    result = await run(service.path, "metrics", "--json", "--textfile", str(file))
    assert json.loads(result.stdout) == {"metrics": figures}
    assert file.read_text() == text


async def test_with_json_a_completion_script_is_text_in_an_object(tmp_path: Path) -> None:
    plain = await run(tmp_path, "completion", "fish")
    as_json = await run(tmp_path, "completion", "fish", "--json")
    assert json.loads(as_json.stdout) == {"shell": "fish", "script": plain.stdout[:-1]}


async def test_an_fd_whose_device_cannot_be_seen_is_told_of_without_it(
    service: FakeService,
) -> None:
    cable = to_json(samples.fd_nic())
    service.answers({"connections": [cable["connection"]]})
    row = (await run(service.path, "connections")).stdout.splitlines()[1]
    assert row.startswith("web1/net0  fd:0.up  fd 0.up, device mytap  -  ")
    service.answers(OUTCOME | {"nic": cable})
    told = (await run(service.path, "plug", "web1/net0", "fd:up")).stdout
    assert told == "web1/net0  plugged into fd:0.up (fd 0.up, device mytap), link up\n"


async def test_a_network_whose_bridge_is_not_there_yet_is_created_and_noted(
    service: FakeService,
) -> None:
    def script(exchange: Exchange) -> None:
        made = to_json(samples.BLUE)
        info = {"network": made, "ports": [], "nics": [], "missing": "there is no bridge br0 yet"}
        exchange.answer(made if exchange.request.method == "POST" else info)

    service.script = script
    result = await run(service.path, "network", "create", "blue", "bridge", "bridge=br0")
    assert (result.exit_code, result.stdout) == (0, "network blue  bridge bridge=br0\n")
    assert result.stderr == "note: there is no bridge br0 yet.\n"


@pytest.mark.parametrize(
    ("line", "lists"),
    [
        ("network delete bleu", {"networks": [to_json(samples.BLUE)]}),
        ("vm remove wbe1", {"vms": [to_json(samples.vm())]}),
        ("port delete bleu p1", {"networks": [to_json(samples.BLUE)], "ports": [PORT]}),
    ],
)
async def test_a_removal_of_what_is_not_there_says_what_is(
    service: FakeService, line: str, lists: Any
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.answer({"changed": False} if exchange.request.method == "DELETE" else lists)

    service.script = script
    result = await run(service.path, *line.split())
    assert result.exit_code == 0
    assert result.stderr.startswith("note: did you mean ")
    assert result.stderr.endswith("?\n")
    service.script = lambda exchange: exchange.answer({"changed": True})
    assert (await run(service.path, *line.split())).stderr == ""
