"""An installation made for one Python, on a host whose python3 is another one: all of it says so.

As after an upgrade of the distribution with what `make install` has put there. A package is refused
by dpkg.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.cli.exit_codes import Exit
from linkmgr.testing.process import until
from tests.integration.machine import CHECKOUT, Machine, boot, suite

HOOK = "/etc/libvirt/hooks/qemu.d/50-linkmgr"
HOOK_TIMEOUT_S = 2.0  #: what the hook waits for the service by default
SLACK_S = 8.0  #: what a busy machine may take besides


@pytest.fixture(scope="module")
def installed() -> Path:
    """What ``make install`` puts under PREFIX=/usr, with this machine's Python."""
    subprocess.run(["make", "--silent", "-C", str(CHECKOUT), "install-tree"], check=True)
    return CHECKOUT / "build" / "install"


@pytest.fixture
async def machine(tmp_path: Path, installed: Path) -> AsyncIterator[Machine]:
    """The other Debian, with what was installed for this one."""
    async with boot(tmp_path, installed, root=CHECKOUT / "build" / suite("other")) as booted:
        yield booted


@pytest.mark.timeout(120)
async def test_the_command_the_unit_and_the_hook_say_that_it_is_for_another_python(
    machine: Machine,
) -> None:
    made_for = ".".join(platform.python_version_tuple()[:2])
    here = (await machine.says("python3 --version")).split()[1].rpartition(".")[0]
    assert made_for != here
    said = (
        f"linkmgr in /usr/lib/linkmgr was installed for Python {made_for}, and python3 of this "
        f"host is {here} now. To do: install it again ('make install', or this distribution's "
        "package), then 'systemctl restart linkmgr'."
    )
    for command in ("linkmgr status", "linkmgr doctor", "linkmgr --version"):
        done = await machine.run(command, check=False)
        assert (done.status, done.output) == (Exit.INSTALLATION, f"linkmgr: {said}\n")

    sockets = "linkmgr.socket linkmgr-admin.socket linkmgr-fd.socket linkmgr-qmp.socket"
    await machine.run(f"systemd-sysusers; systemctl start {sockets}")
    await machine.run("systemctl start linkmgr", check=False)

    async def failed() -> bool:
        return await machine.property("linkmgr", "ActiveState") == "failed"

    await until(failed, timeout=15, what="the unit to fail")
    assert await machine.property("linkmgr", "StatusText") == said
    assert await machine.property("linkmgr", "ExecMainStatus") == str(int(Exit.INSTALLATION))
    assert await machine.property("linkmgr", "NRestarts") == "0", (
        "the next start would fail as well"
    )
    assert said in await machine.journal("linkmgr")

    # The guest starts: the hook ends with 0, and does not hold it up for longer than it may.
    for operation in ("prepare", "start", "started", "stopped", "release"):
        begun = time.monotonic()
        done = await machine.run(
            f"echo '<domain/>' | {HOOK} web1 {operation} begin - 2>&1", check=False
        )
        assert done.status == 0, done.output
        assert time.monotonic() - begun < HOOK_TIMEOUT_S + SLACK_S
        assert "Traceback" not in done.output
        assert (operation == "started") == ("domain web1 has started" in done.output), done.output


@pytest.mark.timeout(240)
async def test_dpkg_does_not_configure_a_package_that_was_built_for_another_python(
    tmp_path: Path, package: Path
) -> None:
    made_for = platform.python_version_tuple()
    async with boot(tmp_path, root=CHECKOUT / "build" / suite("other")) as machine:
        shutil.copy(package, machine.shared / "linkmgr.deb")
        done = await machine.run("dpkg -i /shared/linkmgr.deb 2>&1", check=False, timeout=90)
        assert done.status == 1
        needed = rf"linkmgr depends on python3 \((<<|>=) {made_for[0]}\.\d+~?\)"
        assert re.search(needed, done.output), done.output
        status = await machine.says("dpkg-query -W -f '${Status}' linkmgr")
        assert status == "install ok unpacked"
