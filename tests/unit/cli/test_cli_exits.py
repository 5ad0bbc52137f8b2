"""How a command ends: a sentence on stderr, and one exit code for each family of errors."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import click
import pytest

from linkmgr import errors
from linkmgr.cli import main
from linkmgr.cli.app import cli
from linkmgr.cli.exit_codes import Exit, exit_of
from linkmgr.errors import LinkmgrError
from tests.unit.cli_runner import run
from tests.unit.http_peer import Exchange, FakeService, serving

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("bad-name", 400, 2),
        ("bad-option", 400, 2),
        ("unknown-nic", 404, 3),
        ("already-exists", 409, 4),
        ("port-in-use", 409, 4),
        ("not-on-hub", 422, 5),
        ("link-missing", 424, 6),
        ("denied", 424, 6),
        ("monitor-timeout", 424, 7),
        ("switch-failed", 424, 7),
        ("forbidden", 403, 8),
        ("state-error", 507, 11),
        ("internal", 500, 12),
    ],
)
async def test_an_error_of_the_service_is_a_sentence_and_the_exit_code_of_its_family(
    service: FakeService, code: str, status: int, expected: int
) -> None:
    service.script = lambda exchange: exchange.refuse(
        status,
        code=code,
        what="it cannot be",
        hint="do something else",
        nic="web1/net0",
        state="unplugged",
    )
    result = await run(service.path, "plug", "web1/net0", "blue")
    assert result.exit_code == expected
    assert result.stdout == ""
    assert result.stderr == (
        "linkmgr: web1/net0: it cannot be. web1/net0 is unplugged. To do: do something else.\n"
    )


async def test_with_json_an_error_is_told_in_parts_too(service: FakeService) -> None:
    service.script = lambda exchange: exchange.refuse(
        404, code="unknown-vm", what="there is no VM web1", hint="add it"
    )
    for words in (["--json", "unplug", "web1/net0"], ["unplug", "--json", "web1/net0"]):
        result = await run(service.path, *words)
        assert result.exit_code == 3
        assert json.loads(result.stdout) == {
            "error": {
                "code": "unknown-vm",
                "what": "there is no VM web1",
                "hint": "add it",
                "nic": None,
                "state": None,
            }
        }
        assert result.stderr == "linkmgr: there is no VM web1. To do: add it.\n"


def _leaves(group: click.Group, *path: str) -> Iterator[list[str]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _leaves(command, *path, name)
        else:
            yield [*path, name]


@pytest.mark.parametrize("words", list(_leaves(cli)), ids=" ".join)
async def test_with_json_a_wrong_call_of_any_command_is_told_in_parts_too(
    tmp_path: Path, words: list[str]
) -> None:
    for line in (["--json", *words, "--shout"], [*words, "--shout", "--json"]):
        result = await run(tmp_path, *line)
        assert result.exit_code == 2, result.output
        error = json.loads(result.stdout)["error"]
        assert error["code"] == "bad-request"
        assert "--shout" in error["what"]
        assert error["hint"] == f"see 'linkmgr {' '.join(words)} --help'"
        assert (error["nic"], error["state"]) == (None, None)
        assert result.stderr.startswith("Usage: linkmgr ")


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        ([], "bad-request", "Missing command"),
        (["vm"], "bad-request", "Missing command"),
        (["fly"], "bad-request", "No such command 'fly'"),
        (["plug", "web1/", "blue"], "bad-name", "'web1/' does not name a NIC"),
        (["unplug"], "bad-request", "Missing argument 'NIC'"),
        (["unplgu", "web1"], "bad-request", "No such command 'unplgu'"),
        (["attach", "web1"], "bad-request", "No such command 'attach'. Did you mean 'plug'?"),
        (["network", "rm", "x"], "bad-request", "No such command 'rm'. Did you mean 'delete'?"),
        (["vm", "rm", "x"], "bad-request", "No such command 'rm'. Did you mean 'remove'?"),
        (
            ["network", "show", "blue"],
            "bad-request",
            "No such command 'show'. Did you mean 'linkmgr show network'?",
        ),
        (
            ["link", "web1", "on"],
            "bad-request",
            "Invalid value for '{up|down}': 'on' is not one of 'up', 'down'",
        ),
        (
            ["plug", "web1", "blue", "--notify", "flip"],
            "bad-request",
            "Invalid value for '--notify': 'flip' is not one of 'auto', 'flap', 'announce', "
            "'silent'. Did you mean flap?",
        ),
        (["--shout", "unplug"], "bad-request", "No such option"),
        (["network", "create", "b", "d", "a=1", "a=2"], "bad-request", "The option 'a' is given"),
        (["serve", "--config", "/none/x.toml"], "bad-request", "Invalid value for '--config'"),
    ],
)
async def test_with_json_what_is_wrong_with_a_call_is_told_wherever_json_stands(
    tmp_path: Path, words: list[str], code: str, what: str
) -> None:
    for line in (["--json", *words], [*words, "--json"]):
        result = await run(tmp_path, *line)
        assert result.exit_code == 2, result.output
        error = json.loads(result.stdout)["error"]
        assert error["code"] == code
        assert error["what"].startswith(what)
        assert error["hint"]
    assert (await run(tmp_path, *words)).stdout == ""


async def test_an_error_that_ends_with_a_question_has_no_full_stop(service: FakeService) -> None:
    service.script = lambda exchange: exchange.refuse(
        404, code="unknown-nic", what="VM web1 has no NIC nte1", hint="did you mean net1?"
    )
    result = await run(service.path, "unplug", "web1/nte1")
    assert result.stderr == "linkmgr: VM web1 has no NIC nte1. To do: did you mean net1?\n"


async def test_json_behind_two_dashes_is_no_option(tmp_path: Path) -> None:
    result = await run(tmp_path, "fly", "--", "--json")
    assert (result.exit_code, result.stdout) == (2, "")


async def test_a_group_of_commands_takes_the_common_options_too(service: FakeService) -> None:
    service.answers({"networks": []})
    result = await run(service.path, "network", "--json", "list")
    assert json.loads(result.stdout) == {"networks": []}


async def test_no_service_is_exit_code_9_and_says_how_to_start_it(tmp_path: Path) -> None:
    result = await run(tmp_path / "none.sock", "status")
    assert result.exit_code == 9
    assert "systemctl start linkmgr" in result.stderr


async def test_a_service_that_goes_away_is_exit_code_10(service: FakeService) -> None:
    async def hang_up(exchange: Exchange) -> None:
        """End without an answer."""

    service.script = hang_up
    result = await run(service.path, "plug", "web1/net0", "blue")
    assert result.exit_code == 10
    assert "may or may not have done" in result.stderr
    # Not asked twice; only its health is looked at, to say why.
    assert [each.method for each in service.seen if each.target != "/healthz"] == ["PUT"]


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["plug", "web1/net0"],
        ["plug", "-web1", "blue"],
        ["plug", "../net0", "blue"],
        ["plug", "web1/net0", "blue", "--notify", "shout"],
        ["link", "web1/net0", "sideways"],
        ["network", "create", "blue", "bridge", "br0"],
        ["network", "create", "blue", "bridge", "bridge=br0", "bridge=br1"],
        ["network", "create", "blue", "bridge", "driver=direct"],
        ["network", "create", "blue", "bridge", "a-b=1"],
        ["gc", "--older-than", "-1"],
        ["args", "web1/net0", "--mtu", "3"],
        ["args", "web1/net0", "--mac", "01:00:00:00:00:00"],
        ["args", "web1/net0", "--model", "virtio-net-pci,netdev=x"],
    ],
)
async def test_a_wrong_call_is_exit_code_2_and_asks_nobody(
    service: FakeService, words: list[str]
) -> None:
    result = await run(service.path, *words)
    assert result.exit_code == 2, result.output
    assert result.stderr
    assert not service.seen


async def test_findings_make_check_exit_with_1(service: FakeService) -> None:
    service.answers({"findings": []})
    good = await run(service.path, "check")
    assert (good.exit_code, good.stdout) == (0, "Every NIC is as it should be.\n")
    finding = {"code": "moved", "subject": "web1/net0", "what": "it moved", "hint": "plug again"}
    service.answers({"findings": [finding]})
    bad = await run(service.path, "check")
    assert (bad.exit_code, bad.stdout) == (1, "web1/net0: it moved\n    to do: plug again\n")
    as_json = await run(service.path, "check", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (1, {"findings": [finding]})


ORPHAN = {"device": "lm1", "owner": "web1/net0", "id": "1", "seen": 70.0, "removed": False}


@pytest.mark.parametrize(
    ("dry", "facts", "says", "code"),
    [
        (False, {"removed": True}, "removed", 0),
        (False, {"error": "in use by qemu"}, "left alone: in use by qemu", 1),
        (False, {}, "gone by itself", 0),
        (False, {"seen": 1.0, "error": "first seen 1 s ago"}, "left alone: first seen 1 s ago", 0),
        (True, {}, "would be removed", 1),
        (True, {"error": "in use by qemu"}, "left alone: in use by qemu", 1),
        (True, {"seen": 1.0, "error": "first seen 1 s ago"}, "left alone: first seen 1 s ago", 0),
    ],
)
async def test_gc_says_what_becomes_of_an_orphan_and_exits_with_1_if_it_is_due_and_still_there(
    service: FakeService, dry: bool, facts: dict[str, object], says: str, code: int
) -> None:
    orphan = ORPHAN | facts
    service.answers({"orphans": [orphan]})
    words = ["gc", *(["--dry-run"] if dry else [])]
    result = await run(service.path, *words)
    _, row = result.stdout.splitlines()
    assert row == f"lm1     web1/net0  {orphan['seen']:.0f} s".ljust(29) + says
    assert result.exit_code == code
    as_json = await run(service.path, *words, "--json")
    assert as_json.exit_code == code
    assert json.loads(as_json.stdout) == {"orphans": [{"error": None} | orphan]}


async def test_an_orphan_is_due_for_gc_after_the_seconds_that_were_said(
    service: FakeService,
) -> None:
    service.answers({"orphans": [ORPHAN | {"seen": 1.0}]})
    assert (await run(service.path, "gc", "--dry-run", "--older-than", "0")).exit_code == 1
    assert service.seen[-1].body == {"older_than": 0, "dry_run": True}


async def test_an_orphan_that_cannot_be_removed_makes_gc_exit_with_1(service: FakeService) -> None:
    orphan = ORPHAN | {"removed": True}
    service.answers({"orphans": [orphan]})
    assert (await run(service.path, "gc")).exit_code == 0
    service.answers({"orphans": [orphan | {"removed": False, "error": "it is busy"}]})
    result = await run(service.path, "gc", "--older-than", "5")
    assert result.exit_code == 1
    assert "it is busy" in result.stdout
    assert service.seen[-1].body == {"older_than": 5, "dry_run": False}


def test_a_fault_of_ours_is_not_taken_for_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(**_: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("linkmgr.cli.app.cli", fault)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == Exit.OTHER
    assert "ZeroDivisionError: a fault" in capsys.readouterr().err


def test_every_error_has_the_exit_code_of_a_family() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, LinkmgrError)
    ]
    others = {kind.__name__ for kind in kinds if exit_of(kind) is Exit.OTHER}
    assert others == {"LinkmgrError"}, "give it a family in linkmgr/cli/exit_codes.py"


def test_the_exit_codes_are_tabulated() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)
    assert rows == [(str(int(code)), code.name) for code in Exit]
    page = (ROOT / "packaging/linkmgr.1").read_text()
    assert re.findall(r"^\.B (\d+)$", page, re.MULTILINE) == [str(int(code)) for code in Exit]
