"""The Debian package, in a minimal Debian 12: it installs, answers, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.machine import CHECKOUT, Machine, boot

# Whatever a service or a package could leave: files, units, sockets.
EVERYTHING = (
    "find / -xdev -path /var/log -prune -o -path /var/cache -prune -o -path /shared -prune"
    " -o -name '*-old' -prune -o -print | sort; find /run/linkmgr 2>/dev/null || true"
)


@pytest.fixture(scope="module")
def package() -> Path:
    """The package of ``make deb``, built now."""
    subprocess.run(["make", "--silent", "-C", str(CHECKOUT), "deb"], check=True)
    (found,) = (CHECKOUT / "build").glob("linkmgr_*.deb")
    return found


@pytest.fixture
async def machine(tmp_path: Path, package: Path) -> AsyncIterator[Machine]:
    """A machine that has only the package file."""
    async with boot(tmp_path) as booted:
        shutil.copy(package, booted.shared / "linkmgr.deb")
        yield booted


async def test_it_installs_answers_and_purges_without_a_trace(machine: Machine) -> None:
    before = await machine.says(EVERYTHING)
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)
    assert "linkmgr" in await machine.says("getent group linkmgr")
    assert await machine.says("systemctl is-active linkmgr linkmgr.socket linkmgr-fd.socket") == (
        "active\nactive\nactive"
    )
    health = await machine.says('python3 -c "' + _GET.replace('"', '\\"') + '"')
    assert " 200 " in health.splitlines()[0]
    assert json.loads(await machine.says("linkmgr vm list --json")) == {"vms": []}
    await machine.run("linkmgr network create blue bridge bridge=br0")
    assert (await machine.says("systemctl --failed --no-legend")) == ""
    assert "modified" not in await machine.says("dpkg --verify linkmgr")

    pid = await machine.property("linkmgr", "MainPID")
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)  # as an upgrade does
    assert await machine.property("linkmgr", "MainPID") != pid
    (network,) = json.loads(await machine.says("linkmgr network list --json"))["networks"]
    assert network["name"] == "blue"

    await machine.run("dpkg -r linkmgr", timeout=60)
    assert (await machine.run("systemctl is-active linkmgr", check=False)).status != 0
    assert (await machine.run("ls /var/lib/linkmgr", check=False)).status == 0
    await machine.run("dpkg -P linkmgr", timeout=60)
    assert new(before, await machine.says(EVERYTHING)) == []


async def test_an_unprivileged_user_may_look_but_not_change(machine: Machine) -> None:
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)
    await machine.run("useradd nobody2 && useradd -G linkmgr operator2")
    create = "linkmgr network create green bridge bridge=br1"
    for user, may in (("nobody2", False), ("operator2", True)):
        assert (await machine.run(f"su {user} -c 'linkmgr status'")).status == 0
        done = await machine.run(f"su {user} -c '{create}'", check=False)
        assert (done.status == 0) is may, done.output


async def test_it_installs_in_a_chroot_where_no_systemd_runs(tmp_path: Path, package: Path) -> None:
    async with boot(tmp_path) as machine:
        shutil.copy(package, machine.shared / "linkmgr.deb")
        # Without /run there is no systemd to be talked to: as in a chroot or an image build.
        hidden = "unshare --mount sh -ec 'mount -t tmpfs tmpfs /run && exec \"$@\"' sh"
        before = await machine.says(EVERYTHING)
        await machine.run(f"{hidden} dpkg -i /shared/linkmgr.deb", timeout=60)
        assert (await machine.says("linkmgr --version")).startswith("linkmgr ")
        wants = "/etc/systemd/system/multi-user.target.wants/linkmgr.service"
        assert (await machine.run(f"test -L {wants}", check=False)).status == 0
        await machine.run(f"{hidden} dpkg -P linkmgr", timeout=60)
        assert new(before, await machine.says(EVERYTHING)) == []


def new(before: str, after: str) -> list[str]:
    """What is there now and was not there before; a group stays, as Debian wants it."""
    return sorted(set(after.splitlines()) - set(before.splitlines()))


_GET = """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('/run/linkmgr/linkmgr.sock')
s.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')
print(s.makefile().read())
"""
