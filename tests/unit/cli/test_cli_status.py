"""`linkmgr status` tells a tired operator what is where, troubles first and what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from linkmgr.cli.output import age, aligned, natural, printable
from linkmgr.cli.status import lines, report
from linkmgr.model import Finding, LinkState, MonitorTransport, NicState
from linkmgr.state.codec import JsonReader, read_nic, read_vm, to_json
from tests.unit import samples
from tests.unit.cli_runner import run
from tests.unit.http_peer import Exchange, FakeService, serving
from tests.unit.samples import NOW, nic, vm


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


def test_a_plugged_nic_says_where_how_long_and_its_link() -> None:
    (line,) = lines([vm()], [nic()], [], NOW)
    assert line.subject == "web1/net0"
    assert line.text == "plugged into blue (bridge br0, lm3f9a1c2e) for 3 h, link up"
    assert line.todo is None


def test_a_nic_on_an_fd_says_what_is_known_of_its_device() -> None:
    (line,) = lines([vm()], [samples.fd_nic()], [], NOW)
    assert line.text == "plugged into fd:0.up (fd 0.up, device mytap) for 3 h, link up"


@pytest.mark.parametrize(
    ("state", "text", "todo"),
    [
        (NicState.UNPLUGGED, "unplugged for 3 h", None),
        (NicState.UNMANAGED, "its cable cannot change: 'linkmgr plug' says why", None),
        (
            NicState.FOREIGN,
            "on a cable that linkmgr did not plug, for 3 h",
            "'linkmgr plug web1/net0 NETWORK'",
        ),
        (NicState.UNKNOWN, "unknown: QEMU has not answered for 3 h", "guest web1 is stopped"),
        (NicState.GONE, "gone: its guest ended 3 h ago", "'linkmgr vm remove web1'"),
    ],
)
def test_every_state_is_a_sentence_and_a_trouble_says_what_to_do(
    state: NicState, text: str, todo: str | None
) -> None:
    (line,) = lines([vm()], [nic(state=state)], [], NOW)
    assert line.text == text
    assert (todo is None) == (line.todo is None)
    assert todo is None or todo in (line.todo or "")


def test_a_link_that_is_not_as_wanted_is_a_trouble() -> None:
    down = nic(link=LinkState.DOWN)
    (line,) = lines([vm()], [down], [], NOW)
    assert line.text.endswith("link down, but should be up")
    assert line.todo == "run 'linkmgr link web1/net0 up'"
    (wanted,) = lines([vm()], [nic(link=LinkState.DOWN, wanted=LinkState.DOWN)], [], NOW)
    assert wanted.todo is None


def test_troubles_come_first_then_names_with_their_numbers_in_order() -> None:
    nics = [nic(f"web{n}/net{m}") for n in (10, 2) for m in (10, 9)]
    nics.append(nic("zoo/net0", NicState.GONE))
    found = lines([], nics, [], NOW)
    assert [line.subject for line in found] == [
        "zoo/net0", "web2/net9", "web2/net10", "web10/net9", "web10/net10",
    ]  # fmt: skip


def test_a_finding_of_the_check_is_a_trouble_unless_it_is_said_already() -> None:
    moved = Finding("moved", "web1/net0", "device lm1 is not on br0 any more", "plug it again")
    unknown = Finding("unknown", "web2/net0", "in an unknown state", "see")
    found = lines([], [nic(), nic("web2/net0", NicState.UNKNOWN)], [moved, unknown], NOW)
    assert [(line.subject, line.todo is None) for line in found] == [
        ("web1/net0", False),
        ("web2/net0", False),
        ("web1/net0", True),
    ]
    assert found[0].todo == "plug it again"


def test_a_guest_without_nics_is_not_forgotten() -> None:
    (line,) = lines([vm("bare", nics=0)], [], [], NOW)
    assert (line.subject, line.text) == ("bare", "a guest without NICs, for 3 h")


@pytest.mark.parametrize(
    ("transport", "end"),
    [
        (MonitorTransport.SOCKET, "link up"),
        (MonitorTransport.INBOUND, "link up (inbound monitor)"),
        (MonitorTransport.LIBVIRT, "link up (through libvirt)"),
    ],
)
def test_how_a_guest_is_reached_is_said_if_not_over_its_own_socket(
    transport: MonitorTransport, end: str
) -> None:
    (line,) = lines([replace(vm(), transport=transport)], [nic()], [], NOW)
    assert line.text.endswith(end)
    (bare,) = lines([replace(vm(nics=0), transport=transport)], [], [], NOW)
    assert bare.text.endswith(end.removeprefix("link up"))


def test_what_to_do_stands_under_its_trouble() -> None:
    text = report(lines([], [nic("web1/net10"), nic(state=NicState.GONE)], [], NOW))
    assert [line.replace("\x1b[31m", "").replace("\x1b[0m", "") for line in text] == [
        "! web1/net0   gone: its guest ended 3 h ago",
        "    to do: start the guest and add it again, or forget it with 'linkmgr vm remove web1'",
        "  web1/net10  plugged into blue (bridge br0, lm3f9a1c2e) for 3 h, link up",
    ]


async def test_status_asks_for_nics_guests_and_the_check(service: FakeService) -> None:
    fresh = datetime.now(UTC) - timedelta(minutes=5, seconds=3)
    plugged = to_json(nic())
    plugged["connection"]["since"] = fresh.isoformat()
    answers = {
        "/v1/nics": {"nics": [plugged]},
        "/v1/vms": {"vms": [to_json(vm())]},
        "/v1/check": {"findings": []},
    }
    service.script = lambda exchange: exchange.answer(answers[exchange.request.target])
    result = await run(service.path, "status")
    assert result.exit_code == 0
    assert result.stdout == (
        "  web1/net0  plugged into blue (bridge br0, lm3f9a1c2e) for 5 min, link up\n"
    )
    as_json = await run(service.path, "status", "--json")
    assert json.loads(as_json.stdout) == {
        "vms": [to_json(vm())],
        "nics": [plugged],
        "findings": [],
    }


async def test_a_check_that_takes_long_does_not_hold_up_the_status(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.cli.status.CHECK_TIMEOUT_S", 0.2)

    async def script(exchange: Exchange) -> None:
        if exchange.request.target == "/v1/check":
            await asyncio.sleep(30)
        key = exchange.request.target.removeprefix("/v1/")
        exchange.answer({key: [to_json(nic() if key == "nics" else vm())]})

    service.script = script
    async with asyncio.timeout(10):
        result = await run(service.path, "status")
    assert result.exit_code == 0
    assert "web1/net0" in result.stdout
    assert "check takes long" in result.stderr


async def test_a_check_that_fails_leaves_the_rest_of_the_status(service: FakeService) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.request.target == "/v1/check":
            exchange.refuse(503, code="host-error", what="the kernel is busy", hint="try again")
            return
        key = exchange.request.target.removeprefix("/v1/")
        exchange.answer({key: [to_json(nic() if key == "nics" else vm())]})

    service.script = script
    result = await run(service.path, "status")
    assert result.exit_code == 0
    assert "web1/net0" in result.stdout
    assert "the check failed: the kernel is busy; only states are shown" in result.stderr


async def test_without_any_guest_status_says_how_to_add_one(service: FakeService) -> None:
    service.answers({"vms": [], "nics": [], "findings": []})
    result = await run(service.path, "status")
    assert "linkmgr vm add" in result.stdout
    assert "linkmgr prepare DOMAIN --define" in result.stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (86400, "1 d"), (1e7, "115 d")],
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == text


def test_columns_stand_under_each_other_without_blanks_at_the_end() -> None:
    assert aligned([["a", "bb", ""], ["ccc", "d", "e"]]) == ["a    bb", "ccc  d   e"]


def test_what_would_steer_a_terminal_is_shown_as_what_it_is() -> None:
    assert printable("a\x1b[2Jb\nü") == "a\\x1b[2Jb\\nü"


def test_numbers_in_names_sort_as_numbers() -> None:
    names = ["net10", "net9", "a", "net", "10", "9"]
    assert sorted(names, key=natural) == ["9", "10", "a", "net", "net9", "net10"]


def test_samples_are_what_the_service_would_tell() -> None:
    assert read_nic(JsonReader(to_json(samples.nic()))) == samples.nic()
    assert read_vm(JsonReader(to_json(samples.vm()))) == samples.vm()
