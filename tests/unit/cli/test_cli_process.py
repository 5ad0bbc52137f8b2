"""The command line as a process of its own: quick to start, and well-behaved at its end."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.cli.app import cli
from tests.unit import samples
from tests.unit.client.test_client_events import message, stream
from tests.unit.http_peer import Exchange, FakeService, serving

ROOT = Path(__file__).parents[3]
LINKMGR = [sys.executable, "-W", "error", "-c", "from linkmgr.cli import main; main()"]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


async def start(service: FakeService, *words: str, **more: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *LINKMGR,
        "--socket",
        str(service.path),
        *words,
        stdout=more.get("stdout", subprocess.PIPE),  # type: ignore[arg-type]
        stderr=more.get("stderr", subprocess.PIPE),  # type: ignore[arg-type]
        env=os.environ | {"COLUMNS": "100", "TERM": "xterm"} | more.get("env", {}),  # type: ignore[operator]
    )


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {
    "fastapi",
    "uvicorn",
    "pydantic",
    "pyroute2",
    "qemu",
    "httpx",
    "rich",
    "asyncio",
    "libvirt",
}


def test_help_loads_nothing_that_it_does_not_need() -> None:
    code = """
from linkmgr.cli.app import cli
try:
    cli(["--help"])
except SystemExit:
    print()
"""
    assert not loaded_by(code) & HEAVY


def test_args_loads_neither_netlink_nor_a_client() -> None:
    code = """
from linkmgr.cli.app import cli
try:
    cli(["args", "web1/net0"])
except SystemExit:
    print()
"""
    assert not loaded_by(code) & HEAVY


def test_asking_the_service_loads_neither_netlink_nor_the_service() -> None:
    assert not loaded_by("import linkmgr.cli.app, linkmgr.client") & {
        "fastapi", "uvicorn", "pydantic", "pyroute2", "qemu", "libvirt",
    }  # fmt: skip


def test_serving_loads_no_client() -> None:
    assert not loaded_by("import linkmgr.cli.app, linkmgr.service.main") & {
        "httpx", "rich", "libvirt", "schemathesis", "linkmgr.client",
    }  # fmt: skip


def test_help_comes_at_once() -> None:
    """In CPU time, as a multiple of what `click` alone takes: neither load nor a slow machine."""

    def cpu_of(*words: str) -> float:
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, *words],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )
        _, status, used = os.wait4(child, 0)
        assert status == 0
        return used.ru_utime + used.ru_stime

    runs = [(cpu_of(*LINKMGR[1:], "--help"), cpu_of("-c", "import click")) for _ in range(5)]
    ours, yardstick = (min(each) for each in zip(*runs, strict=True))
    # about 2 times; 3.8 with a model of pydantic, 8 with FastAPI
    assert ours < 3 * yardstick, (ours, yardstick)


async def test_watch_prints_events_as_lines_until_it_is_interrupted(service: FakeService) -> None:
    service.script = stream(message(1), message(2, "unplugged"), message(3, "reset"))
    process = await start(service, "watch", env={"TZ": "UTC"})
    assert process.stdout
    assert process.stderr
    async with asyncio.timeout(20):
        lines = [(await process.stdout.readline()).decode() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert lines == [
        "2026-05-01 12:00:00  web1/net0  plugged port=blue\n",
        "2026-05-01 12:00:00  web2/net0  unplugged port=blue\n",
        "2026-05-01 12:00:00  web3/net0  the service has started anew; "
        "look with 'linkmgr status'\n",
    ]
    assert await process.stderr.read() == b"listening\n"


async def test_watch_with_json_prints_one_object_per_line(service: FakeService) -> None:
    service.script = stream(message(1), message(2))
    process = await start(service, "watch", "--json")
    assert process.stdout
    async with asyncio.timeout(20):
        first, _ = [json.loads(await process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert first == {
        "kind": "plugged",
        "subject": "web1/net0",
        "details": {"port": "blue"},
        "at": samples.NOW.isoformat(),
    }


async def test_watch_ends_quietly_when_nobody_reads_any_more(service: FakeService) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.open_stream()
        for number in range(1000):
            exchange.send(message(number))
            await asyncio.sleep(0.02)

    service.script = script
    reader, writer = os.pipe()
    process = await start(service, "watch", stdout=writer)
    os.close(writer)
    await asyncio.to_thread(os.read, reader, 1)
    os.close(reader)
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert (process.returncode, said) == (141, b"listening\n")


async def test_a_verb_that_is_interrupted_ends_with_130_and_no_traceback(
    service: FakeService,
) -> None:
    asked = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        asked.set()
        await exchange.client_left()

    service.script = script
    process = await start(service, "plug", "web1/net0", "blue")
    async with asyncio.timeout(20):
        await asked.wait()
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
    assert (process.returncode, said) == (130, b"")


@pytest.mark.parametrize("slow", [False, True])
async def test_only_a_slow_verb_shows_progress_and_only_on_a_terminal(
    service: FakeService, slow: bool
) -> None:
    async def script(exchange: Exchange) -> None:
        await asyncio.sleep(1.5 * slow)
        exchange.answer(samples.outcome())

    service.script = script
    ours, theirs = pty.openpty()
    process = await start(service, "plug", "web1/net0", "blue", stderr=theirs)
    os.close(theirs)
    try:
        async with asyncio.timeout(20):
            out, _ = await process.communicate()
            said = await asyncio.to_thread(_rest_of, ours)
    finally:
        os.close(ours)
    assert process.returncode == 0
    assert out.startswith(b"web1/net0  plugged into blue")
    assert (b"plugging web1/net0 ..." in said) == slow
    piped = await start(service, "plug", "web1/net0", "blue")
    assert (await piped.communicate())[1] == b""


async def test_a_list_on_a_terminal_is_a_table_that_no_name_can_break(service: FakeService) -> None:
    ours, theirs = pty.openpty()
    network = {"name": "blue", "driver": "[red]x\x1b[2J", "options": {}, "drift": "repair"}
    service.answers({"networks": [network]})
    process = await start(service, "network", "list", stdout=theirs)
    os.close(theirs)
    try:
        async with asyncio.timeout(20):
            assert await process.wait() == 0
            shown = (await asyncio.to_thread(_rest_of, ours)).decode()
    finally:
        os.close(ours)
    assert "[red]x\\x1b[2J" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b[2J" not in shown


def _rest_of(terminal: int) -> bytes:
    """What was written to a terminal whose other end is closed."""
    said = b""
    while True:
        try:
            said += os.read(terminal, 65536)
        except OSError:  # EIO is the end
            return said


# ---------------------------------------------------------------------- documentation


def test_every_command_is_in_the_manual_page_and_in_the_documentation() -> None:
    page = re.sub(r"\\f.|[\\\"]", "", (ROOT / "packaging/linkmgr.1").read_text())
    text = (ROOT / "docs/cli.md").read_text()
    for name, command in cli.commands.items():
        for line in [f"{name} {sub}" for sub in getattr(command, "commands", [])] or [name]:
            assert re.search(rf"^\.BI? {line}\b", page, re.MULTILINE) or re.search(
                rf"^\.BR {line}\b", page, re.MULTILINE
            ), line
            assert f"`{line}" in text, line


def test_every_command_has_a_help_that_fits_on_its_line() -> None:
    for name, command in cli.commands.items():
        assert command.get_short_help_str(200) == command.get_short_help_str(63), name
