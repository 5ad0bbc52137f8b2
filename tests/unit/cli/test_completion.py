"""The shell completes commands and names: what the service, virsh and a file know."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr.model import Port
from linkmgr.state.codec import to_json
from tests.unit import samples
from tests.unit.http_peer import Exchange, FakeService, serving

LINKMGR = [sys.executable, "-W", "error", "-c", "from linkmgr.cli import main; main()"]
DOMAIN = """<domain type='qemu'><name>web9</name><devices>
<interface type='user'><mac address='52:54:00:00:00:01'/><alias name='ua-red'/></interface>
<interface type='user'><mac address='52:54:00:AA:00:02'/></interface>
</devices></domain>"""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


def running(name: str) -> dict[str, Any]:
    return {**to_json(samples.domain(name)), "state": "running"}


async def complete(service: FakeService, line: str, path: str | None = None) -> set[str]:
    """What is offered where a line ends.

    :param path: for the programs that are called.
    """
    words = line.split(" ")
    process = await asyncio.create_subprocess_exec(
        *LINKMGR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ
        | {
            "_LINKMGR_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            "LINKMGR_SOCKET": str(service.path),
            "PATH": path or os.environ["PATH"],
        },
    )
    async with asyncio.timeout(20):
        out, said = await process.communicate()
    assert said == b""
    return {each.partition(",")[2] for each in out.decode().split()}


async def test_the_shell_completes_commands_nics_networks_and_ports(service: FakeService) -> None:
    answers = {
        "/v1/nics": {"nics": [to_json(samples.nic(f"web{n}/net0")) for n in (1, 2)]},
        "/v1/vms": {"vms": [to_json(samples.vm("web1")), to_json(samples.vm("db"))]},
        "/v1/domains": {"domains": [to_json(samples.domain("web3"))]},
        "/v1/networks": {"networks": [to_json(samples.BLUE)]},
        "/v1/ports?network=blue": {"ports": [to_json(Port(samples.BLUE, "p1"))]},
    }
    service.script = lambda exchange: exchange.answer(answers[exchange.request.target])
    assert await complete(service, "linkmgr un") == {"unplug"}
    nics = {"web1/net0", "web2/net0", "web3/ua-net0"}
    assert await complete(service, "linkmgr plug web") == nics
    assert await complete(service, "linkmgr prepare w") == {"web3"}
    assert await complete(service, "linkmgr plug web1/net0 b") == {"blue", "blue:p1"}
    assert await complete(service, "linkmgr vm remove ") == {"web1", "db"}
    assert await complete(service, "linkmgr port list ") == {"blue"}
    assert await complete(service, "linkmgr link web1/net0 d") == {"down"}


async def test_completion_gives_up_quietly_when_the_service_is_slow_or_away(
    service: FakeService,
) -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.client_left()

    service.script = never
    began = time.monotonic()
    assert await complete(service, "linkmgr unplug web") == set()
    await service.stop()
    assert await complete(service, "linkmgr unplug web") == set()
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(shell: str) -> None:
    done = subprocess.run(
        [*LINKMGR, "completion", shell], capture_output=True, text=True, check=True
    )
    assert f"_LINKMGR_COMPLETE={shell}_complete" in done.stdout


async def test_the_nics_of_the_domain_that_is_prepared_are_offered(
    service: FakeService, tmp_path: Path
) -> None:
    nics = {"ua-red", "52:54:00:00:00:01", "52:54:00:aa:00:02"}
    file = tmp_path / "web9.xml"
    file.write_text(DOMAIN)
    (tmp_path / "bin").mkdir()
    virsh = tmp_path / "bin/virsh"
    virsh.write_text(
        '#!/bin/sh\n[ "$*" = "--quiet --connect test:///x dumpxml --inactive --domain web9" ] &&'
        f" exec /bin/cat {file}\nexit 1\n"
    )
    virsh.chmod(0o755)
    path = str(virsh.parent)
    assert await complete(service, f"linkmgr prepare {file} --nic ", path) == nics
    assert await complete(service, f"linkmgr prepare {file} --undo --nic u", path) == {"ua-red"}
    assert await complete(service, f"linkmgr prepare {file} --nic=52:54:00:A", path) == {
        "52:54:00:aa:00:02"
    }
    assert await complete(service, "linkmgr prepare -c test:///x web9 --nic ", path) == nics
    for nobody in ("web8", "-", str(tmp_path), str(tmp_path / "none.xml"), ""):
        assert await complete(service, f"linkmgr prepare {nobody} --nic ", path) == set()


async def test_domains_that_run_and_are_no_vms_yet_are_offered_for_the_passthrough(
    service: FakeService,
) -> None:
    domains = [running(f"web{n}") for n in (1, 2, 3)]
    domains[1]["state"] = "shut off"
    answers = {
        "/v1/vms": {"vms": [to_json(samples.vm("web1"))]},
        "/v1/domains": {"domains": domains},
    }
    service.script = lambda exchange: exchange.answer(answers[exchange.request.target])
    assert await complete(service, "linkmgr vm add web3 libv") == {"libvirt:web3"}
    assert await complete(service, "linkmgr vm add web3 libvirt:w") == {"libvirt:web3"}
    assert await complete(service, "linkmgr vm add web3 libvirt:x") == set()
    assert await complete(service, "linkmgr vm add web3 /ru") == {"/ru"}  # the shell's own work
    await service.stop()
    assert await complete(service, "linkmgr vm add web3 libvirt:") == set()


# --- a bash in a terminal ---


class Bash:
    """A bash in a terminal, with the printed script and a `linkmgr` in its PATH."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self._log = folder / "said"
        self._log.touch()
        script = subprocess.run([*LINKMGR, "completion", "bash"], capture_output=True, check=True)
        (folder / "script").write_bytes(script.stdout)
        (folder / "rc").write_text(
            f". {folder}/script\nPS1=; unset HISTFILE\n"
            f"said() {{ printf '%s\\n' \"$*\" >>{self._log}; }}\n"
        )
        program = folder / "linkmgr"
        words = " ".join(f"'{word}'" for word in LINKMGR)
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
        self._terminal, theirs = pty.openpty()
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--rcfile", str(folder / "rc"), "-i"],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, start_new_session=True,
            env=os.environ | {
                "PATH": f"{folder}:{os.environ['PATH']}", "TERM": "dumb", "INPUTRC": "/dev/null",
                "LINKMGR_SOCKET": str(socket),
            },
        )  # fmt: skip
        os.close(theirs)
        os.set_blocking(self._terminal, False)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.wait()
        os.close(self._terminal)

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    async def tab(self, line: str) -> str:
        """The words of a line after the tabulator was pressed behind it."""
        before = len(self._log.read_text().splitlines())
        # To the line's begin and back again, where `said` makes a command of it.
        os.write(self._terminal, f"{line}\t\x01said \x05\n".encode())
        async with asyncio.timeout(20):
            while len(said := self._log.read_text().splitlines()) == before:
                await asyncio.sleep(0.05)
                with contextlib.suppress(BlockingIOError):  # what it echoes
                    os.read(self._terminal, 65536)
        return said[-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
async def test_bash_completes_behind_a_colon_where_it_breaks_words(
    service: FakeService, tmp_path: Path
) -> None:
    answers = {
        "/v1/vms": {"vms": []},
        "/v1/domains": {"domains": [running("web3")]},
        "/v1/networks": {"networks": [to_json(samples.BLUE)]},
        "/v1/ports?network=blue": {"ports": [to_json(Port(samples.BLUE, "p1"))]},
    }
    service.script = lambda exchange: exchange.answer(answers[exchange.request.target])
    (tmp_path / "web9.xml").write_text(DOMAIN)
    (tmp_path / "web3").write_text("a file that is not meant")
    bash = await asyncio.to_thread(Bash, tmp_path, service.path)
    try:
        for line, becomes in (
            ("linkmgr plug web1/net0 blue:", "linkmgr plug web1/net0 blue:p1"),
            ("linkmgr plug web1/net0 blue:p", "linkmgr plug web1/net0 blue:p1"),
            ("linkmgr plug  web1/net0  bl", "linkmgr plug web1/net0 blue"),
            ("linkmgr vm add web3 libvirt:", "linkmgr vm add web3 libvirt:web3"),
            ("linkmgr vm add web3 libvirt:y", "linkmgr vm add web3 libvirt:y"),
            ("linkmgr vm add web3 ./we", "linkmgr vm add web3 ./web"),
            ("linkmgr prepare ./web9.xml --nic 52:54:00:a", "linkmgr prepare ./web9.xml --nic "
             "52:54:00:aa:00:02"),
            ("linkmgr prepare ./web9.xml --nic=52:54:00:a", "linkmgr prepare ./web9.xml "
             "--nic=52:54:00:aa:00:02"),
            ("linkmgr prepare ./web9.xml --nic=u", "linkmgr prepare ./web9.xml --nic=ua-red"),
            ("linkmgr prepare ./web9.xml --und", "linkmgr prepare ./web9.xml --undo"),
            ('linkmgr plug web1/net0 "blue:p', "linkmgr plug web1/net0 blue:p1"),
        ):  # fmt: skip
            assert await bash.tab(line) == becomes
        bash.type("COMP_WORDBREAKS=${COMP_WORDBREAKS//[:=]}\n")
        for line, becomes in (
            ("linkmgr plug web1/net0 blue:p", "linkmgr plug web1/net0 blue:p1"),
            ("linkmgr prepare ./web9.xml --nic=u", "linkmgr prepare ./web9.xml --nic=ua-red"),
        ):
            assert await bash.tab(line) == becomes
    finally:
        bash.close()
