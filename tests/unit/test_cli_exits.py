"""How a command ends: a sentence on stderr, and one exit code for each family of errors."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr import errors
from linkmgr.cli.exits import Exit, exit_of
from linkmgr.errors import LinkmgrError
from tests.unit.cli_runner import run
from tests.unit.http_peer import Exchange, Service, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
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
    service: Service, code: str, status: int, expected: int
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


async def test_with_json_an_error_is_told_in_parts_too(service: Service) -> None:
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


async def test_no_service_is_exit_code_9_and_says_how_to_start_it(tmp_path: Path) -> None:
    result = await run(tmp_path / "none.sock", "status")
    assert result.exit_code == 9
    assert "systemctl start linkmgr" in result.stderr


async def test_a_service_that_goes_away_is_exit_code_10(service: Service) -> None:
    async def hang_up(exchange: Exchange) -> None:
        """End without an answer."""

    service.script = hang_up
    result = await run(service.path, "plug", "web1/net0", "blue")
    assert result.exit_code == 10
    assert "may or may not have done" in result.stderr
    assert len(service.seen) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["plug", "web1/net0"],
        ["plug", "web1", "blue"],
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
    service: Service, words: list[str]
) -> None:
    result = await run(service.path, *words)
    assert result.exit_code == 2, result.output
    assert result.stderr
    assert not service.seen


async def test_findings_make_check_exit_with_1(service: Service) -> None:
    service.answers({"findings": []})
    good = await run(service.path, "check")
    assert (good.exit_code, good.stdout) == (0, "Every NIC is as it should be.\n")
    finding = {"code": "moved", "subject": "web1/net0", "what": "it moved", "hint": "plug again"}
    service.answers({"findings": [finding]})
    bad = await run(service.path, "check")
    assert (bad.exit_code, bad.stdout) == (1, "web1/net0: it moved\n    to do: plug again\n")
    as_json = await run(service.path, "check", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (1, {"findings": [finding]})


async def test_a_stray_that_cannot_be_removed_makes_gc_exit_with_1(service: Service) -> None:
    stray = {"device": "lm1", "owner": "web1/net0", "id": "1", "seen": 70.0, "removed": True}
    service.answers({"strays": [stray]})
    assert (await run(service.path, "gc")).exit_code == 0
    service.answers({"strays": [stray | {"removed": False, "error": "it is busy"}]})
    result = await run(service.path, "gc", "--older-than", "5")
    assert result.exit_code == 1
    assert "it is busy" in result.stdout
    assert service.seen[-1].body == {"older_than": 5, "dry_run": False}


def test_every_error_has_the_exit_code_of_a_family() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, LinkmgrError)
    ]
    others = {kind.__name__ for kind in kinds if exit_of(kind) is Exit.OTHER}
    assert others == {"LinkmgrError"}, "give it a family in linkmgr/cli/exits.py"


def test_the_exit_codes_are_tabulated() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)
    assert rows == [(str(int(code)), code.name) for code in Exit]
    page = (ROOT / "packaging/linkmgr.1").read_text()
    assert re.findall(r"^\.B (\d+)$", page, re.MULTILINE) == [str(int(code)) for code in Exit]
