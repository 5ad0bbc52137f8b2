"""The Debian package, in a minimal Debian 12: it installs, answers, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.testing.process import execute
from tests.integration.machine import CHECKOUT, Machine, boot
from tests.integration.readme import blocks_of

# Whatever a service or a package could leave: files, units, sockets.
EVERYTHING = (
    "find / -xdev -path /var/log -prune -o -path /var/cache -prune -o -path /shared -prune"
    " -o -name '*-old' -prune -o -print | sort; find /run/linkmgr 2>/dev/null || true"
)


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
    units = "linkmgr linkmgr.socket linkmgr-admin.socket linkmgr-fd.socket linkmgr-qmp.socket"
    assert (await machine.says(f"systemctl is-active {units}")).split() == ["active"] * 5
    # QEMU dials as the user that libvirt runs it as.
    assert await machine.says("stat -c %a /run/linkmgr /run/linkmgr/qmp.sock") == "755\n666"
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
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)  # it is wanted again
    assert (await machine.says(f"systemctl is-active {units}")).split() == ["active"] * 5
    assert (await machine.says(f"systemctl is-enabled {units}")).split() == ["enabled"] * 5
    await machine.run("systemctl disable linkmgr.service && dpkg -r linkmgr", timeout=60)
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)  # as it was
    assert (await machine.run("systemctl is-active linkmgr", check=False)).status != 0
    await machine.run("dpkg -P linkmgr", timeout=60)
    assert new(before, await machine.says(EVERYTHING)) == []


async def test_the_commands_of_the_readme_install_it(machine: Machine, package: Path) -> None:
    tools, make, install, doctor = blocks_of("Install")
    assert tools == "apt install -y git make python3-venv"
    dry = ["env", "-u", "MAKEFLAGS", "make", "-C", str(CHECKOUT), "-n", "-B", *make.split()[1:]]
    recipe = (await execute(dry)).output
    assert "packaging/deb.sh" in recipe
    (machine.shared / "build").mkdir()
    shutil.copy(package, machine.shared / "build")
    # What it recommends is not here, and there is no network.
    install = install.replace("apt install", "apt-get install --no-install-recommends")
    await machine.run(f"cd /shared && {install}", timeout=60)
    said = (await machine.run(doctor, check=False)).output
    assert "linkmgr" in await machine.says("getent group linkmgr")
    assert "service        answer" in said


async def test_an_upgrade_brings_a_socket_that_the_package_before_did_not_have(
    machine: Machine,
) -> None:
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)
    units = "/usr/lib/systemd/system"
    await machine.run(
        "systemctl stop linkmgr.service linkmgr-qmp.socket && systemctl disable linkmgr-qmp.socket"
        f" && sed -i 's/ linkmgr-qmp.socket//' {units}/linkmgr.service"
        f" && rm {units}/linkmgr-qmp.socket && systemctl daemon-reload"
        " && systemctl start linkmgr.service"
    )
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)
    assert await machine.says("systemctl is-active linkmgr linkmgr-qmp.socket") == "active\nactive"


async def test_a_timer_that_is_off_by_default_writes_the_metrics_for_node_exporter(
    machine: Machine,
) -> None:
    before = await machine.says(EVERYTHING)
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)
    timer = "linkmgr-metrics.timer"
    state = await machine.run(
        f"systemctl is-enabled {timer}; systemctl is-active {timer}", check=False
    )
    assert state.output.split() == ["disabled", "inactive"]
    await machine.run("systemctl start linkmgr-metrics.service")  # without node_exporter: nothing
    assert await machine.property("linkmgr-metrics.service", "ConditionResult") == "no"

    folder = "/var/lib/prometheus/node-exporter"
    await machine.run(f"mkdir -p {folder} && chown daemon: {folder}")
    await machine.run(f"systemctl enable --now {timer} && systemctl start linkmgr-metrics.service")
    assert await machine.says(f"ls -A {folder}; stat -c '%a %U' {folder}/*") == (
        "linkmgr.prom\n644 root"
    )
    assert "linkmgr_nics{" in await machine.says(f"su daemon -s /bin/cat {folder}/linkmgr.prom")
    timer_says = await machine.says(f"systemctl list-timers --no-legend {timer}")
    assert timer in timer_says
    assert not timer_says.startswith(("-", "n/a")), "it elapses again"

    await machine.run("dpkg -r linkmgr", timeout=60)
    await machine.run(f"dpkg -P linkmgr; rm -r {folder} && rmdir {Path(folder).parent}", timeout=60)
    assert new(before, await machine.says(EVERYTHING)) == []


async def test_a_wrong_configuration_is_warned_of_and_the_package_is_configured(
    machine: Machine,
) -> None:
    await machine.run("mkdir /etc/linkmgr && echo '[networks' >/etc/linkmgr/linkmgr.toml")
    for _ in range(2):  # the first time, and an upgrade
        done = await machine.run("dpkg -i /shared/linkmgr.deb 2>&1", timeout=90)
        assert "linkmgr: warning: linkmgr.service does not start" in done.output
        assert "'linkmgr doctor'" in done.output
        assert await machine.says("dpkg-query -W -f '${Status}' linkmgr") == "install ok installed"
    said = await machine.run("linkmgr doctor", check=False)
    assert "/etc/linkmgr/linkmgr.toml" in said.output
    await machine.run("rm /etc/linkmgr/linkmgr.toml")
    await machine.run("systemctl reset-failed; systemctl restart linkmgr.socket linkmgr")
    assert json.loads(await machine.says("linkmgr vm list --json")) == {"vms": []}
    await machine.run("dpkg -P linkmgr", timeout=60)


async def test_policy_rc_d_decides_whether_anything_is_started_or_stopped(machine: Machine) -> None:
    policy = "/usr/sbin/policy-rc.d"
    await machine.run(f"printf '#!/bin/sh\nexit 101\n' >{policy} && chmod 755 {policy}")
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)
    units = (
        "linkmgr.service linkmgr.socket linkmgr-admin.socket linkmgr-fd.socket linkmgr-qmp.socket"
    )
    state = await machine.run(f"systemctl is-active {units}", check=False)
    assert state.output.split() == ["inactive"] * 5
    assert (await machine.says(f"systemctl is-enabled {units}")).split() == ["enabled"] * 5
    await machine.run("systemctl start linkmgr.socket linkmgr")
    pid = await machine.property("linkmgr", "MainPID")
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)
    assert await machine.property("linkmgr", "MainPID") == pid, "it is left alone"
    await machine.run(f"rm {policy} && dpkg -P linkmgr", timeout=60)


async def test_what_make_install_left_is_taken_over_or_told_of_and_can_be_uninstalled(
    machine: Machine,
) -> None:
    before = await machine.says(EVERYTHING)
    tree = machine.shared / "local"
    wheels = CHECKOUT / "build" / "wheels"
    words = ["make", "--silent", "-C", str(CHECKOUT), "install", f"DESTDIR={tree}"]
    await execute([*words, f"WHEELS={wheels}"], timeout=90)
    shutil.copy(CHECKOUT / "packaging" / "uninstall.sh", machine.shared)
    await machine.run("cp -a /shared/local/. / && systemctl daemon-reload", timeout=60)
    hook = "/etc/libvirt/hooks/qemu.d/50-linkmgr"
    assert "/usr/local/bin/linkmgr" in await machine.says(f"cat {hook}")

    done = await machine.run("dpkg -i /shared/linkmgr.deb </dev/null 2>&1", timeout=90)
    assert "goes before this package: remove it with 'make uninstall'" in done.output
    await machine.run(f"cmp {hook} /usr/lib/linkmgr/hooks/qemu")
    await machine.run("sh /shared/uninstall.sh")
    await machine.run(f"cmp {hook} /usr/lib/linkmgr/hooks/qemu")  # it is the package's now
    assert (await machine.run("ls /usr/local/bin /usr/local/lib/linkmgr", check=False)).status != 0
    await machine.run("systemctl daemon-reload; systemctl restart linkmgr.socket linkmgr")
    fragment = await machine.property("linkmgr", "FragmentPath")
    assert fragment.startswith(("/usr/lib/", "/lib/"))
    assert json.loads(await machine.says("linkmgr vm list --json")) == {"vms": []}
    await machine.run("dpkg -P linkmgr", timeout=60)
    left = new(before, await machine.says(EVERYTHING))
    assert [path for path in left if not await _is_folder(machine, path)] == []


async def test_an_edited_hook_of_make_install_is_never_thrown_away(
    machine: Machine, package: Path
) -> None:
    hook = "/etc/libvirt/hooks/qemu.d/50-linkmgr"
    await machine.run(f"mkdir -p {Path(hook).parent} && echo '#!/bin/sh # mine' >{hook}")
    await machine.run(f"chmod 755 {hook}")
    done = await machine.run("dpkg -i --force-confold /shared/linkmgr.deb </dev/null", timeout=90)
    assert done.status == 0
    assert "# mine" in await machine.says(f"cat {hook}")
    copy = f"{hook}.dpkg-dist"
    await machine.run(f"test -x {copy}")
    said = await machine.says("mkdir -p /run/libvirt; touch /run/libvirt/libvirt-sock;"
                              " linkmgr doctor 2>&1 || true")  # fmt: skip
    assert f"{copy} is executable, so libvirt runs it too" in said
    ran = await machine.run(f"echo '<domain/>' | {copy} web1 started begin - 2>&1")
    assert ran.output == ""


async def test_a_state_directory_that_is_a_symbolic_link_is_told_of(machine: Machine) -> None:
    await machine.run("mkdir /srv/linkmgr && ln -s /srv/linkmgr /var/lib/linkmgr")
    done = await machine.run("dpkg -i /shared/linkmgr.deb 2>&1", timeout=90)
    assert "/var/lib/linkmgr is a symbolic link" in done.output
    assert await machine.says("dpkg-query -W -f '${Status}' linkmgr") == "install ok installed"
    said = await machine.run("linkmgr --timeout 8 vm list", check=False)
    if said.status:  # a later systemd may take it
        assert "/var/lib/linkmgr must be a directory" in said.output
    mount = "mount --bind /srv/linkmgr /var/lib/linkmgr"
    await machine.run(f"rm /var/lib/linkmgr && mkdir /var/lib/linkmgr && {mount}")
    await machine.run("systemctl reset-failed; systemctl restart linkmgr.socket linkmgr")
    await machine.run("linkmgr network create blue bridge bridge=br0")
    assert await machine.says("find /srv/linkmgr -type f | grep -c .") != "0"


def test_the_copyright_names_the_licence_of_everything_that_is_bundled(
    tmp_path: Path, package: Path
) -> None:
    subprocess.run(["dpkg-deb", "-x", str(package), str(tmp_path)], check=True)
    text = (tmp_path / "usr/share/doc/linkmgr/copyright").read_text(encoding="utf-8")
    bundled = [path.name.removesuffix(".dist-info") for path in tmp_path.rglob("*.dist-info")]
    assert len(bundled) > 20
    for name in bundled:
        if not name.startswith("linkmgr-"):
            (part,) = [each for each in text.split("\n\n") if f"/{name}.dist-info\n" in each]
            assert re.search(r"^License: \S+", part, re.MULTILINE), name
            (first, *_) = re.findall(r"^ (/\S+)$", part, re.MULTILINE)
            assert (tmp_path / first.lstrip("/")).stat().st_size, name
    assert "Apache License" in text


async def _is_folder(machine: Machine, path: str) -> bool:
    return (await machine.run(f"test -d '{path}' -a ! -L '{path}'", check=False)).status == 0


def test_its_python_finds_the_libvirt_python_of_debian_and_nothing_else_there(
    tmp_path: Path, package: Path
) -> None:
    said = subprocess.run(
        ["dpkg-deb", "-f", str(package), "Recommends"], check=True, capture_output=True, text=True
    )
    assert said.stdout.split() == ["python3-libvirt"]
    subprocess.run(["dpkg-deb", "-x", str(package), str(tmp_path)], check=True)
    look = (
        "import importlib.util;"
        "from linkmgr.libvirt.client.libvirt_python import load_libvirt_python;"
        "found = load_libvirt_python();"
        "print(found.libvirt.__file__, hasattr(found.qemu, 'qemuMonitorCommandWithFiles'),"
        "importlib.util.find_spec('libvirt_lxc'))"
    )
    python = tmp_path / "usr/lib/linkmgr/bin/python3"
    done = subprocess.run([python, "-I", "-c", look], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["/usr/lib/python3/dist-packages/libvirt.py", "True", "None"]


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


async def test_the_hook_stays_silent_when_only_the_package_is_removed(machine: Machine) -> None:
    before = await machine.says(EVERYTHING)
    abstraction = "/etc/apparmor.d/abstractions/libvirt-qemu"
    site = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
    hook = "/etc/libvirt/hooks/qemu.d/50-linkmgr"
    rules = "/etc/apparmor.d/abstractions/libvirt-qemu.d/linkmgr"
    include = "include if exists <abstractions/libvirt-qemu.d/linkmgr>"
    await machine.run(f"mkdir -p {Path(site).parent} /etc/linkmgr && echo '# mine' >{site}")
    await machine.run("printf '[hook]\\nfail_closed = true\\n' >/etc/linkmgr/linkmgr.toml")
    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)
    prepare = f"echo '<domain/>' | {hook} web1 prepare begin - 2>&1"
    assert await machine.says(f"stat -c %a {hook}") == "755"
    assert await machine.says(f"cmp {hook} /usr/lib/linkmgr/hooks/qemu && cat {site}") == "# mine"
    await machine.run(_PACKAGE.format(file=abstraction))  # as libvirt, which comes later
    assert await machine.says(f"cat {site}") == f"# mine\n{include}"
    await machine.run("systemctl stop linkmgr.service linkmgr.socket")
    refused = await machine.run(prepare, check=False)
    assert refused.status == 1
    assert "domain web1 is not started" in refused.output
    assert "'systemctl start linkmgr'" in refused.output
    said = await machine.says("mkdir -p /run/libvirt; touch /run/libvirt/libvirt-sock;"
                              " linkmgr doctor 2>&1 || true")  # fmt: skip
    assert f"{hook}, as in this version" in said

    await machine.run("dpkg -i /shared/linkmgr.deb", timeout=60)  # as an upgrade does
    assert await machine.says(f"cat {site}") == f"# mine\n{include}"
    await machine.run("dpkg -r linkmgr", timeout=60)
    removed = await machine.run(prepare, check=False)
    assert (removed.status, removed.output) == (0, "")
    assert await machine.says(f"cat {site}; ls {rules}") == f"# mine\n{rules}"
    await machine.run("dpkg -P linkmgr", timeout=60)
    left = new(before, await machine.says(EVERYTHING))
    assert [path for path in left if "hooks" in path or "qemu.d" in path] == []


def new(before: str, after: str) -> list[str]:
    """What is there now and was not there before; a group stays, as Debian wants it."""
    return sorted(set(after.splitlines()) - set(before.splitlines()))


_PACKAGE = """
mkdir -p /shared/p/DEBIAN "/shared/p$(dirname {file})"
echo '  /dev/kvm rw,' >/shared/p{file}
printf '%s\\n' 'Package: stand-in' 'Version: 1' 'Architecture: all' 'Maintainer: x' \
    'Description: brings the profile of guests' >/shared/p/DEBIAN/control
dpkg-deb -b /shared/p /shared/p.deb && dpkg -i /shared/p.deb
"""
_GET = """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('/run/linkmgr/linkmgr.sock')
s.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')
print(s.makefile().read())
"""
