"""A service that does not answer: why it is silent is told, and the wait can be bounded."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.cli import runner
from linkmgr.client import diagnose
from linkmgr.client.diagnose import Diagnosis, of_process
from tests.unit.cli_runner import run
from tests.unit.http_peer import Exchange, FakeService, serving


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SILENCE_NOTICE_S", 0.2)
    monkeypatch.setattr(diagnose, "HEALTH_TIMEOUT_S", 0.3)


async def never(exchange: Exchange) -> None:
    await exchange.client_left()


@pytest.mark.parametrize("words", [["status"], ["plug", "web1/net0", "blue"], ["watch"]])
async def test_a_silent_service_is_told_of_once_and_the_wait_ends_with_the_timeout(
    service: FakeService, words: list[str]
) -> None:
    service.script = never
    began = time.monotonic()
    result = await run(service.path, "--timeout", "1.5", *words)
    assert result.exit_code == 14
    assert 1.4 < time.monotonic() - began < 10
    assert result.stdout == ""
    first, last = result.stderr.splitlines()
    why = f"its process {os.getpid()} is busy, or hangs"
    assert first.startswith(
        f"linkmgr: the service at {service.path} does not answer: {why}. To do:"
    )
    assert f"has not answered within 1.5 s: {why}; what it was asked may still be done" in last
    assert " To do: " in last


async def test_a_verb_that_takes_long_in_a_service_that_is_well_is_waited_for_in_silence(
    service: FakeService,
) -> None:
    async def slow(exchange: Exchange) -> None:
        if exchange.request.target != "/healthz":
            await asyncio.sleep(1.2)
        exchange.answer({"version": "1", "changed": True})

    service.script = slow
    result = await run(service.path, "vm", "remove", "web1")
    assert (result.exit_code, result.output) == (0, "web1  removed\n")
    late = await run(service.path, "vm", "remove", "web1", "--timeout", "0.5")
    assert late.exit_code == 14
    assert "has not answered within 0.5 s, though it runs" in late.stderr


async def test_a_service_that_answers_administrators_is_well_though_its_other_socket_is_full(
    service: FakeService,
) -> None:
    service.script = never
    admins = service.path.with_name("admin.sock")
    answer = b'HTTP/1.1 200 OK\r\n\r\n{"version": "1"}'

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    assert await diagnose.diagnose(service.path) is not None
    server = await asyncio.start_unix_server(answers, admins)
    try:
        assert await diagnose.diagnose(service.path) is None
    finally:
        server.close()
    assert await diagnose.diagnose(service.path) is not None


async def test_the_timeout_may_stand_in_the_environment_and_the_option_goes_first(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.script = never
    monkeypatch.setenv("LINKMGR_TIMEOUT", "0.5")
    assert "within 0.5 s" in (await run(service.path, "nics")).stderr
    assert "within 0.7 s" in (await run(service.path, "--timeout", "0.7", "nics")).stderr
    as_json = await run(service.path, "nics", "--json")
    assert json.loads(as_json.stdout)["error"]["code"] == "service-timeout"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", "1s"])
async def test_what_is_no_time_is_a_wrong_call_and_asks_nobody(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    result = await run(service.path, "nics", "--timeout", value)
    assert result.exit_code == 2
    assert "--timeout" in result.stderr
    monkeypatch.setenv("LINKMGR_TIMEOUT", value)
    result = await run(service.path, "nics")
    assert result.exit_code == 2
    assert "'LINKMGR_TIMEOUT'" in result.stderr
    assert not service.seen
    assert (await run(service.path, "args", "web1/net0")).exit_code == 0, "it asks no service"


async def test_an_empty_variable_is_none(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINKMGR_TIMEOUT", "")
    service.answers({"vms": []})
    assert (await run(service.path, "vm", "list")).exit_code == 0


def test_a_stopped_process_is_told_from_one_that_hangs() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert "is busy, or hangs" in of_process(process.pid).why
        process.send_signal(19)
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "T":
            time.sleep(0.01)
        assert of_process(process.pid) == Diagnosis(
            f"its process {process.pid} is stopped", f"'kill -CONT {process.pid}' lets it go on"
        )
        process.kill()
    assert "cannot be seen" in of_process(process.pid).why


SYSTEMCTL = """#!/bin/sh
cat <<END
LoadState=loaded
{service}

LoadState=loaded
ActiveState=active
Listen={path} (Stream)
END
"""


@pytest.mark.parametrize(
    ("shown", "why", "hint"),
    [
        (
            "ActiveState=failed\nResult=exit-code\nExecMainStatus=78",
            "linkmgr.service has failed (exit code 78): its configuration is wrong",
            "'linkmgr doctor' says where",
        ),
        (
            "ActiveState=activating\nSubState=auto-restart\nResult=exit-code\nExecMainStatus=11",
            "ends whenever it starts (exit code 11): its state directory cannot be used",
            "df /var/lib/linkmgr",
        ),
        (
            "ActiveState=failed\nResult=oom-kill\nExecMainStatus=9",
            "linkmgr.service has failed (oom-kill)",
            "journalctl -u linkmgr",
        ),
        (
            "ActiveState=activating\nSubState=start\nNRestarts=0\nStatusText=asking 3 guests",
            "is still starting (asking 3 guests)",
            "wait",
        ),
        ("ActiveState=inactive\nSubState=dead", "linkmgr.service is inactive", "systemctl start"),
    ],
)
async def test_what_systemd_says_of_the_unit_is_told(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    shown: str, why: str, hint: str,
) -> None:  # fmt: skip
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(service=shown, path=service.path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(diagnose, "SYSTEMD", tmp_path)
    monkeypatch.setattr(diagnose, "_SAMPLE_INTERVAL_S", 0.01)
    service.script = never
    result = await run(service.path, "nics", "--timeout", "0.5")
    assert why in result.stderr
    assert hint in result.stderr
    await service.stop(leave_socket=True)
    result = await run(service.path, "nics")
    assert result.exit_code == 9
    assert "nobody listens there; " in result.stderr
    assert why in result.stderr
    program.write_text(SYSTEMCTL.format(service=shown, path="/run/linkmgr/other.sock"))
    assert why not in (await run(service.path, "nics")).stderr, "this is another service's socket"
