"""A command whose streams, directory or limits are odd ends with a sentence and an exit code."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from linkmgr.cli.exit_codes import Exit
from linkmgr.state.codec import to_json
from tests.unit import samples
from tests.unit.cli.test_cli_process import LINKMGR, ROOT, start
from tests.unit.http_peer import FakeService, serving

FULL_DEVICE = Path("/dev/full")
FULL = "linkmgr: the output cannot be written: No space left on device; what was asked is done "


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


def shell(script: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which ``$@`` is the command line."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *LINKMGR],
        capture_output=True, text=True, check=False, timeout=60, env=os.environ | more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words", ["--help", "plug --help", "--version", "args web1/net0", "completion bash --json"]
)
def test_a_full_device_is_told_of_in_a_sentence(words: str) -> None:
    done = shell(f'"$@" {words} >/dev/full')
    assert (done.returncode, done.stdout) == (12, "")
    assert done.stderr.startswith(FULL)
    assert done.stderr.count("\n") == 1


async def test_a_full_device_does_not_hide_that_a_verb_failed(service: FakeService) -> None:
    service.script = lambda exchange: exchange.refuse(409, code="port-in-use", what="no", hint="x")
    with FULL_DEVICE.open("w") as full:  # noqa: ASYNC230 - a device
        process = await start(service, "plug", "web1/net0", "blue", "--json", stdout=full)
        _, said = await process.communicate()
    assert process.returncode == 4
    assert said == b"linkmgr: no. To do: x.\n"


async def test_a_full_stderr_hides_no_exit_code(service: FakeService) -> None:
    service.script = lambda exchange: exchange.refuse(409, code="port-in-use", what="no", hint="x")
    with FULL_DEVICE.open("w") as full:  # noqa: ASYNC230 - a device
        process = await start(service, "plug", "web1/net0", "blue", stderr=full)
        out, _ = await process.communicate()
        assert (process.returncode, out) == (4, b"")
        process = await start(service, "plug", "web1", "blue", "--shout", stderr=full)
        await process.communicate()
        assert process.returncode == 2


def test_a_closed_stdout_is_told_of_and_nothing_else_gets_its_number() -> None:
    done = shell('"$@" args web1/net0 >&-')
    assert done.returncode == 12
    assert done.stderr.startswith("linkmgr: the output cannot be written: Bad file descriptor; ")
    for script in ('"$@" args web1/net0 2>&-', '"$@" args web1/net0 <&-', '"$@" fly <&- >&- 2>&-'):
        done = shell(script)
        assert (done.returncode, done.stderr) == (2 if "fly" in script else 0, "")
        assert done.stdout.startswith("" if "fly" in script else "-netdev hubport")


@pytest.mark.parametrize("words", ["--help", "plug --help", "args web1/net0", "doctor"])
def test_whoever_stops_reading_ends_the_command_quietly(words: str) -> None:
    done = shell(f'{{ sleep 0.3; "$@" {words}; echo "rc $?" >&2; }} | true')
    assert done.stderr == "rc 141\n"
    closed = shell(f'{{ sleep 0.3; "$@" {words} --shout 2>&1; echo "rc $?" >&3; }} 3>&2 | true')
    assert closed.stderr in ("rc 2\n", "rc 141\n")


@pytest.mark.parametrize("limit", [5, 6, 9, 12])
def test_too_few_open_files_are_told_of_in_a_sentence(limit: int) -> None:
    done = shell(f'ulimit -n {limit}; "$@" vm list')
    assert done.returncode == 12, done.stderr
    assert done.stderr == (
        f"linkmgr: too many files are open, and the limit is {limit}. To do: raise it with "
        "'ulimit -n', to 16 or more.\n"
    )


async def test_a_low_limit_that_may_be_raised_is_raised(service: FakeService) -> None:
    service.answers({"vms": []})
    status, _, said = await start_shell(service, 'ulimit -S -n 6; "$@" vm list')
    assert (status, said) == (0, "No VMs.\n")


async def start_shell(service: FakeService, script: str) -> tuple[int | None, str, str]:
    done = await asyncio.to_thread(shell, script, LINKMGR_SOCKET=str(service.path))
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", ["vm add web1 q.sock", "serve --state-dir x"])
def test_a_deleted_working_directory_is_told_of(tmp_path: Path, words: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f'cd {gone}; rmdir {gone}; timeout 20 "$@" {words} --socket {tmp_path}/lm.sock')
    assert done.returncode not in (0, 1, 124), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("linkmgr: ")
    for fine in ("--help", "args web1/net0", "completion zsh"):
        done = shell(f'mkdir {gone}; cd {gone}; rmdir {gone}; "$@" {fine}')
        assert (done.returncode, done.stderr) == (0, ""), fine


LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "C"},
    {"LC_ALL": "xx_XX.UTF-9"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "utf-16"},
]


@pytest.mark.parametrize("locale", LOCALES, ids=str)
async def test_no_locale_makes_a_traceback(service: FakeService, locale: dict[str, str]) -> None:
    nic = to_json(samples.nic()) | {"model": "\u0416\u2026\u202e\x1b[2J\U0001f600"}
    service.script = lambda exchange: exchange.answer(
        {"nics": [nic], "vms": [], "domains": [], "findings": []}
    )
    for words in ("nics", "status", "nics --json", "plug '\u0416/\udcff' blue", "vm add \udcff q"):
        done = await _with(service, words, locale)
        assert b"Traceback" not in done.stderr, words
        assert done.returncode in (0, 2), (words, done.stderr)
        assert b"\x1b" not in done.stdout + done.stderr


async def _with(
    service: FakeService, words: str, locale: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(
        subprocess.run,
        [*LINKMGR, "--socket", str(service.path), *shlex.split(words)],
        capture_output=True, check=False, timeout=60, env=os.environ | locale,
    )  # fmt: skip


Launcher = Callable[[str], Path]


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    """The installed command, made for a version of Python, on one that has no linkmgr."""

    def make(made_for: str) -> Path:
        text = (ROOT / "packaging/linkmgr.launcher").read_text()
        text = text.replace("#!@LIBDIR@/bin/python3", f"#!{sys.base_prefix}/bin/python3")
        path = tmp_path / "linkmgr"
        path.write_text(text.replace("@LIBDIR@", "/usr/lib/linkmgr").replace("@PYTHON@", made_for))
        path.chmod(0o755)
        return path

    return make


HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.mark.parametrize(
    ("made_for", "why"),
    [
        ("3.7", f"was installed for Python 3.7, and python3 of this host is {HERE} now"),
        (HERE, "is not complete (No module named 'linkmgr')"),
    ],
)
@pytest.mark.parametrize("address", ["{0}/notify", "{0}/no@tify", "@linkmgr{0}"])
def test_an_installation_that_does_not_fit_says_what_to_do_also_to_systemd(
    launcher: Launcher, tmp_path: Path, made_for: str, why: str, address: str
) -> None:
    address = address.format(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + address[1:] if address.startswith("@") else address)
        systemd.settimeout(5)
        done = subprocess.run(
            [launcher(made_for), "status"], capture_output=True, text=True, check=False,
            env={"NOTIFY_SOCKET": address},
        )  # fmt: skip
        status = systemd.recv(4096).decode()
    assert done.returncode == Exit.INSTALLATION
    assert done.stderr.startswith(f"linkmgr: linkmgr in /usr/lib/linkmgr {why}. To do: install it")
    assert json.dumps(done.stderr).count("\\n") == 1
    assert status == "STATUS=" + done.stderr.removeprefix("linkmgr: ").rstrip("\n")


def test_an_installation_that_does_not_fit_says_so_where_systemd_does_not_listen(
    launcher: Launcher, tmp_path: Path
) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody")}
    done = subprocess.run(
        [launcher("3.7")], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr.count("\n")) == (Exit.INSTALLATION, 1)
