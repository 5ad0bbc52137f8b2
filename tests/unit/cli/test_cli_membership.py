"""A new member of the group is told that it is the login that is too old."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.client import membership
from linkmgr.errors import Forbidden
from tests.unit.cli_runner import run
from tests.unit.http_peer import FakeService, serving

WHAT = "uid 1000 may not plug web1/net0 blue: not in the group users"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        made.script = lambda exchange: exchange.refuse(
            403, code="forbidden", what=WHAT, hint="ask as root"
        )
        yield made


async def test_a_refusal_of_the_service_is_explained_to_a_new_member(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "groups_since_login", lambda: {"users", "x"})
    result = await run(service.path, "plug", "web1", "blue")
    assert result.exit_code == 8
    assert "To do: log in again, or 'newgrp users' in this shell" in result.stderr
    monkeypatch.setattr(membership, "groups_since_login", lambda: {"x"})
    assert "To do: ask as root" in (await run(service.path, "plug", "web1", "blue")).stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_a_group_that_the_process_lacks_is_found_in_the_database() -> None:
    """The user daemon (1) is a member of its own group, which this process is without."""
    code = (
        "import os; from linkmgr.client.membership import groups_since_login;"
        "os.setgroups([]); os.setgid(65534); os.setuid(1); print(groups_since_login())"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'daemon'}\n"
    assert membership.groups_since_login() == set()


def test_a_refusal_by_a_rule_stays_as_it_is() -> None:
    error = Forbidden("uid 1 may not gc: no rule allows it", hint="ask as root")
    assert membership.explained(error).hint == "ask as root"
