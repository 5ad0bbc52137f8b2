"""What the README shows works as it stands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from linkmgr.testing.guest import images
from linkmgr.testing.process import Child, execute, until
from tests.integration.lab import Lab
from tests.integration.readme import blocks_of, fenced, sections

ROOT = Path(__file__).parents[3]


#: Which file runs the commands of a section.
RUN_BY = {
    "Try it": "project/test_readme.py",
    "Install": "project/test_deb.py",
    "Quick start": "project/test_readme.py",
    "With libvirt": "libvirt/test_libvirt_walk.py",
    "Use it from Python": "project/test_readme.py",
}


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    assert sections() == list(RUN_BY)
    for section, file in RUN_BY.items():
        text = (Path(__file__).parents[1] / file).read_text()
        assert f'blocks_of("{section}")' in text, f"{file} does not read {section!r}"


async def test_what_the_readme_wants_tried_runs_the_demo_below_and_every_test() -> None:
    recipes = {}
    for command in blocks_of("Try it"):
        make = ["env", "-u", "MAKEFLAGS", "make", "-C", str(ROOT), "-n"]  # shows, runs nothing
        recipes[command] = (await execute([*make, *command.split()[1:]])).output
    assert "examples/demo.py" in recipes["make demo"]
    assert "scripts/test-files.py" in recipes["make test"]


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("lab")
async def test_the_quick_start_works_as_it_is_pasted_line_by_line(
    tmp_path: Path, qemu: str
) -> None:
    make, path, *commands = blocks_of("Quick start")
    assert make == "make setup images"
    assert path == 'export PATH="$PWD/.venv/bin:$PATH"'
    text = "\n".join(commands)
    for written, here in (
        ("linkmgr serve >serve.log", f"linkmgr serve --state-dir {tmp_path}/state >{tmp_path}/log"),
        ("qemu-system-x86_64 ", f"{qemu} "),
        ("/run/", f"{tmp_path}/"),
        ("build/vm-images/", f"{images()}/"),
    ):
        assert written in text
        text = text.replace(written, here)
    script = f"set -eu\nexport PATH={Path(sys.executable).parent}:$PATH\n{text}\nwait\n"
    environment = ["env", "-C", str(tmp_path), f"LINKMGR_SOCKET={tmp_path}/lm.sock"]
    try:
        result = await execute([*environment, "bash", "-c", script], timeout=120)
    finally:
        await execute(["ip", "link", "del", "br-blue"], check=False)
        for pid in _daemons_of(tmp_path):
            os.kill(pid, signal.SIGKILL)
    said = result.output
    assert "web1/net0  unplugged\n" in said
    assert re.search(
        r"^  web1/net0  plugged into blue \(bridge br-blue, lm\w+\) for ", said, re.MULTILINE
    )
    assert " 0% packet loss" in said
    assert "web1  removed" in said
    assert not list(tmp_path.glob("web1.*"))
    assert "Traceback" not in said + (tmp_path / "log").read_text()


def _daemons_of(folder: Path) -> list[int]:
    """The processes that were started with this folder in their arguments."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{folder}/".encode() in each.read_bytes():
                found.append(int(each.parent.name))
    return found


async def test_the_program_of_the_readme_runs_on_a_guest_that_was_started_as_it_says(
    lab: Lab, tmp_path: Path, qemu: str
) -> None:
    (_, example), (_, program) = fenced()
    arguments = example.splitlines()[-1]
    (start,) = blocks_of("Use it from Python")
    rest = "-nodefaults -display none -machine q35 -accel tcg -m 160"
    for written, here in (
        ("qemu-system-x86_64", qemu),
        ("/run/web1.qmp", f"{tmp_path}/web1.qmp"),
        ("ARGUMENTS ...", f"{arguments} {rest}"),
    ):
        assert written in start
        start = start.replace(written, here)
    program = program.replace("/run/web1.qmp", f"{tmp_path}/web1.qmp")
    await lab.sh("ip link add eth1 type veth peer name eth2")
    with tempfile.TemporaryFile() as output:
        guest = Child(["sh", "-c", f"exec {start}"], output=output)
        try:

            async def listens() -> bool:
                return (tmp_path / "web1.qmp").exists()

            await until(listens, timeout=20, what="QEMU's monitor")
            result = await execute([sys.executable, "-W", "error", "-c", program], timeout=60)
        finally:
            await guest.end()
    assert result.output == ""
    await lab.sh("ip link del eth1")
    assert not Path("/sys/class/net/br0").exists()


@pytest.mark.timeout(180)
async def test_the_demo_tells_its_story_and_writes_its_report(tmp_path: Path) -> None:
    environment = [f"{name}={os.environ[name]}" for name in ("LINKMGR_QEMU",) if name in os.environ]
    (tmp_path / "build").mkdir()
    command = (
        f"cd {tmp_path} && env {' '.join(environment)} {sys.executable} {ROOT}/examples/demo.py"
    )
    result = await execute(["sh", "-c", command], timeout=150)
    report = json.loads((tmp_path / "build" / "demo.json").read_text())
    assert report["ok"], report
    assert report["seconds"] < 60
    assert all({"name", "ms", "result"} <= step.keys() for step in report["steps"])
    swap = next(step for step in report["steps"] if step["name"].startswith("swap"))
    assert swap["lost"] < swap["sent"]
    assert "unplugged" in result.output
