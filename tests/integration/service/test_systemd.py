"""Our units under a real systemd: started by a caller, watched, reloaded; no fd is ever lost."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr import hub_args
from linkmgr.testing.process import Child, until
from tests.integration.machine import CHECKOUT, Machine, boot

INSTALLED = CHECKOUT / "build" / "install"
TINY = Path(__file__).parents[1] / "tiny_service.py"
DEVICE = "lm0123abcd"
# The real unit with all that it forbids; only what it runs and how patient it is differ.
DROP_IN = """
[Service]
ExecStart=
ExecStart=/usr/lib/linkmgr/bin/python3 -I /shared/tiny_service.py
ReadWritePaths=/shared
WatchdogSec=1s
"""


@pytest.fixture(scope="module")
def installed() -> Path:
    """What ``make install`` puts under PREFIX=/usr."""
    subprocess.run(["make", "--silent", "-C", str(CHECKOUT), "install-tree"], check=True)
    return INSTALLED


@pytest.fixture
async def machine(tmp_path: Path, installed: Path) -> AsyncIterator[Machine]:
    """A machine with linkmgr installed and its sockets listening, the tiny service in its place."""
    async with boot(tmp_path, installed) as booted:
        shutil.copy(TINY, booted.shared)
        (booted.shared / "override.conf").write_text(DROP_IN)
        await booted.run(
            "mkdir -p /etc/systemd/system/linkmgr.service.d"
            " && cp /shared/override.conf /etc/systemd/system/linkmgr.service.d/"
            " && systemctl daemon-reload"
            " && systemctl enable --now linkmgr.socket linkmgr-admin.socket"
            " linkmgr-fd.socket linkmgr-qmp.socket"
        )
        yield booted


def runs(machine: Machine) -> list[dict[str, Any]]:
    """What each start of the tiny service found."""
    file = machine.shared / "runs"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(15)
s.connect("/run/linkmgr/linkmgr.sock")
s.sendall(sys.argv[1].encode() + b"\\n")
print(s.makefile().read(), end="")
"""


async def ask(machine: Machine, expression: str) -> str:
    """Let the service carry out an expression; starts it if need be."""
    (machine.shared / "ask.py").write_text(ASK)
    quoted = expression.replace('"', '\\"')
    return await machine.says(f'python3 /shared/ask.py "{quoted}"')


async def main_pid(machine: Machine) -> int:
    return int(await machine.property("linkmgr", "MainPID"))


async def stored(machine: Machine) -> int:
    """How many fds systemd stores for the service."""
    return int(await machine.property("linkmgr", "NFileDescriptorStore"))


async def started_again(machine: Machine, count: int) -> dict[str, Any]:
    """Wait for the start with this number and that the service is ready then."""

    async def ready() -> bool:
        state = await machine.property("linkmgr", "ActiveState")
        return len(runs(machine)) == count and state == "active"

    await until(ready, timeout=15, what=f"start number {count}")
    return runs(machine)[-1]


async def test_the_first_caller_starts_the_service(machine: Machine) -> None:
    assert await machine.property("linkmgr", "ActiveState") == "inactive"
    assert (
        await machine.says("stat -c %a /run/linkmgr /run/linkmgr/*.sock")
        == "755\n660\n666\n666\n666"
    )
    assert await ask(machine, "os.getuid()") == "0"
    assert await machine.property("linkmgr", "ActiveState") == "active"
    assert await machine.property("linkmgr", "StatusText") == "serving"
    (run,) = runs(machine)
    assert sorted(run["names"]) == ["admin", "api", "fd", "qmp"]
    assert not run["taken"]


async def test_a_caller_during_a_restart_waits_and_is_answered(machine: Machine) -> None:
    slow = "/run/systemd/system/linkmgr.service.d/slow.conf"
    await machine.run(
        f"mkdir -p {slow.rpartition('/')[0]}"
        f" && printf '[Service]\\nExecStartPre=/bin/sleep 2\\n' > {slow}"
        " && systemctl daemon-reload"
    )
    first = await ask(machine, "os.getpid()")

    async def starts() -> bool:
        return await machine.property("linkmgr", "ActiveState") == "activating"

    await machine.run("systemctl --no-block restart linkmgr")
    await until(starts, timeout=10, what="the old process has ended, the new one is not there")
    answer = await ask(machine, "os.getpid()")
    assert answer.isdecimal()
    assert answer != first


async def test_a_taps_fd_survives_kill_9_restart_and_kill_9_again(machine: Machine) -> None:
    await ask(machine, "1")
    index = await machine.says(f"cat /sys/class/net/{DEVICE}/ifindex")
    assert await stored(machine) == 1
    for count, how in ((2, "kill -9"), (3, "restart"), (4, "kill -9")):
        pid = await main_pid(machine)
        await machine.run(f"kill -9 {pid}" if how == "kill -9" else "systemctl restart linkmgr")
        run = await started_again(machine, count)
        assert run["pid"] != pid, how
        assert sorted(run["names"]) == ["admin", "api", "fd", "lm-0123abcd", "qmp"], how
        assert (run["taken"], run["device"]) == (True, DEVICE), how
        # The same device, not one of the same name: it never went.
        assert await machine.says(f"cat /sys/class/net/{DEVICE}/ifindex") == index, how
        assert await stored(machine) == 1, how


async def test_a_dropped_fd_is_not_had_again_and_frees_the_device(machine: Machine) -> None:
    await ask(machine, "self.fd_store.drop(TAG.id)")
    await until(lambda: _is(stored(machine), 0), timeout=5, what="an empty store")
    await ask(machine, "self.tap.close()")
    gone = await machine.run(f"ip link show {DEVICE}", check=False)
    assert gone.status != 0
    await machine.run(f"kill -9 {await main_pid(machine)}")
    run = await started_again(machine, 2)
    assert (sorted(run["names"]), run["taken"]) == (["admin", "api", "fd", "qmp"], False)


async def test_the_fd_of_a_deleted_device_stays_until_it_is_dropped(machine: Machine) -> None:
    await ask(machine, "1")
    await machine.run(f"ip link del {DEVICE}")
    await asyncio.sleep(0.5)
    assert await stored(machine) == 1
    await ask(machine, "self.fd_store.drop(TAG.id)")
    await until(lambda: _is(stored(machine), 0), timeout=5, what="an empty store")


async def test_a_stopped_service_leaves_no_fd_and_no_device(machine: Machine) -> None:
    await ask(machine, "1")
    await machine.run("systemctl stop linkmgr.service 'linkmgr*.socket'")

    async def gone() -> bool:
        return (await machine.run(f"ip link show {DEVICE}", check=False)).status != 0

    await until(gone, timeout=5, what=f"the end of {DEVICE}")
    assert await stored(machine) == 0


async def test_a_service_that_hangs_is_killed_and_finds_its_fds_again(machine: Machine) -> None:
    await ask(machine, "1")
    await asyncio.sleep(2.5)  # it lives longer than its watchdog: the beats arrive
    assert len(runs(machine)) == 1
    hanging = asyncio.create_task(ask(machine, "time.sleep(60)"))
    run = await started_again(machine, 2)
    assert run["taken"]
    assert await machine.property("linkmgr", "NRestarts") == "1"
    assert "Watchdog timeout" in await machine.journal("linkmgr")
    await hanging


async def test_a_reload_reaches_the_running_service(machine: Machine) -> None:
    await ask(machine, "1")
    pid = await main_pid(machine)
    await machine.run("systemctl reload linkmgr")

    async def read() -> bool:
        return await machine.property("linkmgr", "StatusText") == "read"

    await until(read, timeout=5, what="the end of the reload")
    assert await main_pid(machine) == pid
    assert await machine.property("linkmgr", "ActiveState") == "active"


async def test_the_unit_grants_what_is_needed_and_refuses_the_rest(machine: Machine) -> None:
    await machine.run("ip link add v0 type veth peer name v1 && ip link set v0 up")
    assert (await ask(machine, "macvtap_on('v0')")).isdecimal()
    silent = await machine.says(f"cat /proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6")
    assert silent == "1"
    await machine.run("install -o daemon -m 600 /dev/null /run/of-somebody-else")
    await machine.run("cp /bin/true /tmp/true; cp /bin/true /var/lib/linkmgr/true")
    assert (await ask(machine, "os.posix_spawn('/bin/true', ['true'], {})")).isdecimal()
    assert await ask(machine, "open('/run/of-somebody-else').read()") == "''"
    await machine.run("for each in /home /root; do mkdir -p $each/a && echo b >$each/a/b; done")
    for home in ("/home", "/root"):
        assert await ask(machine, f"open('{home}/a/b').read()") == repr("b\n")
    assert await ask(machine, "Path('/var/lib/linkmgr/x').write_text('x')") == "1"
    for refused in (
        "Path('/etc/x').write_text('x')",
        "Path('/root/x').write_text('x')",
        "Path('/proc/sys/net/ipv4/ip_forward').write_text('1')",
        "Path('/proc/sys/net/ipv6/conf/../../ipv4/ip_forward').write_text('1')",
        "socket.socket(socket.AF_INET)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "os.setuid(1)",
        "Path('/home/a/c').write_text('x')",
        "socket.socket(socket.AF_UNIX).bind('/home/a/s')",
        "os.posix_spawn('/tmp/true', ['true'], {})",
        "os.posix_spawn('/var/lib/linkmgr/true', ['true'], {})",
        "os.chown('/run/of-somebody-else', 0, 0)",
        "os.mknod('/var/lib/linkmgr/disk', 0o60600, os.makedev(8, 0)) or "
        "open('/var/lib/linkmgr/disk', 'rb')",
    ):
        answer = await ask(machine, refused)
        assert re.match(r"(PermissionError|OSError|FileNotFoundError)", answer), (refused, answer)


async def use_the_real_service(machine: Machine) -> None:
    await machine.run("rm -r /etc/systemd/system/linkmgr.service.d && systemctl daemon-reload")


async def networks(machine: Machine) -> set[str]:
    said = await machine.says("linkmgr network list --json")
    return {each["name"] for each in json.loads(said)["networks"]}


async def test_a_reload_puts_a_changed_configuration_in_force_and_a_wrong_one_not(
    machine: Machine,
) -> None:
    await use_the_real_service(machine)
    section = '[networks.{0}]\ndriver = "bridge"\noptions = {{ bridge = "br-{0}" }}\n'
    config = machine.shared / "linkmgr.toml"
    config.write_text(section.format("blue"))
    await machine.run("mkdir /etc/linkmgr && ln -s /shared/linkmgr.toml /etc/linkmgr/")
    assert await networks(machine) == {"blue"}
    pid = await main_pid(machine)
    config.write_text(section.format("blue") + section.format("green"))
    await machine.run("systemctl reload linkmgr")
    await until(lambda: _is(networks(machine), {"blue", "green"}), timeout=5, what="the reload")
    config.write_text("[networks.blue]\ncolour = 1\n")
    await machine.run("systemctl reload linkmgr")

    async def told() -> bool:
        return "colour" in await machine.journal("linkmgr")

    await until(told, timeout=5, what="a word on the mistake")
    assert await networks(machine) == {"blue", "green"}
    assert await main_pid(machine) == pid
    assert await machine.property("linkmgr", "ActiveState") == "active"


async def test_who_asks_a_service_that_cannot_start_or_is_stopped_is_told_why(
    machine: Machine,
) -> None:
    await use_the_real_service(machine)
    wait = "linkmgr --timeout 8 vm list"
    await machine.run("mkdir /etc/linkmgr && echo '[networks' >/etc/linkmgr/linkmgr.toml")
    said = await machine.run(wait, check=False)
    assert said.status in (9, 14), said.output
    assert "its configuration is wrong. To do: 'linkmgr doctor' says where" in said.output
    assert "Traceback" not in said.output
    await machine.run("rm /etc/linkmgr/linkmgr.toml; systemctl reset-failed")
    await machine.run("systemctl restart linkmgr.socket linkmgr.service")
    assert (await machine.run(wait)).status == 0

    pid = await main_pid(machine)
    await machine.run(f"kill -STOP {pid}")
    said = await machine.run(wait, check=False)
    assert said.status == 14
    assert f"its process {pid} is stopped. To do: 'kill -CONT {pid}'" in said.output
    await machine.run(f"kill -CONT {pid}")
    assert (await machine.run(wait)).status == 0

    await machine.run("systemctl stop linkmgr.service")
    full = "mount -t tmpfs -o size=64k tmpfs /var/lib/linkmgr"
    await machine.run(f"{full} && dd if=/dev/zero of=/var/lib/linkmgr/fill 2>&1 || true")
    said = await machine.run(wait, check=False)
    assert said.status in (0, 9, 14), said.output
    if said.status:  # a service that starts all the same is as good
        assert "its state directory cannot be used" in said.output
        assert "df /var/lib/linkmgr" in said.output


async def test_systemd_networkd_takes_everything_but_linkmgrs_cables(machine: Machine) -> None:
    await machine.run(
        "printf '[Match]\\nName=*\\n[Network]\\nLinkLocalAddressing=no\\n'"
        " >/etc/systemd/network/20-all.network && systemctl start systemd-networkd"
        " && ip tuntap add mode tap name other0 && ip tuntap add mode tap name lm0123abcd"
        " && ip link set lm0123abcd up && ip link set other0 up"
    )

    async def state(name: str) -> str:
        file = f"/run/systemd/netif/links/$(cat /sys/class/net/{name}/ifindex)"
        said = await machine.run(f"sed -n s/^ADMIN_STATE=//p {file}", check=False)
        return said.output.strip()

    async def settled() -> bool:
        return await state("other0") in ("configured", "configuring")

    await until(settled, timeout=15, what="networkd to take the other device")
    assert await state("lm0123abcd") == "unmanaged"
    said = await machine.says("linkmgr doctor 2>&1 || true")
    (line,) = [each for each in said.splitlines() if "systemd-networkd" in each]
    assert "leaves linkmgr's cables alone" in line
    hide = "ln -s /dev/null /etc/systemd/network/05-linkmgr.network"
    await machine.run(f"{hide} && systemctl restart systemd-networkd")

    async def taken() -> bool:
        return await state("lm0123abcd") in ("configured", "configuring")

    await until(taken, timeout=15, what="networkd to take the cable without the drop-in")
    said = await machine.says("linkmgr doctor 2>&1 || true")
    (line,) = [each for each in said.splitlines() if "systemd-networkd" in each]
    assert "/etc/systemd/network/20-all.network takes linkmgr's cables" in line


async def tun_devices(machine: Machine) -> list[str]:
    """The devices behind the fds of /dev/net/tun that the service has open."""
    pid = await main_pid(machine)
    said = await machine.run(f"grep -h ^iff: /proc/{pid}/fdinfo/*", check=False)
    return [line.split()[1] for line in said.output.splitlines() if line.startswith("iff:")]


async def test_the_duplicate_of_a_plugged_cable_survives_kill_9_of_the_service(
    machine: Machine,
) -> None:
    await use_the_real_service(machine)
    await machine.run("ip link add br0 type bridge && ip link set br0 up")
    # QEMU is this side's, but it runs among the machine's processes: linkmgr looks after its pid.
    argv = [
        "nsenter", "--target", str(machine.pid), "--pid", "--net", "--",
        "qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-m", "16",
        "-pidfile", f"{machine.shared}/qemu.pid",
        "-qmp", f"unix:{machine.shared}/web1.qmp,server=on,wait=off",
        *hub_args("net0", mac="52:54:00:00:01:00"),
    ]  # fmt: skip
    with tempfile.TemporaryFile() as output:
        qemu = Child(argv, output=output)
        try:
            await _plug_kill_and_unplug(machine)
        finally:
            await machine.run("kill -9 $(cat /shared/qemu.pid)", check=False)
            await qemu.end()


async def _plug_kill_and_unplug(machine: Machine) -> None:
    qmp = machine.shared / "web1.qmp"
    await until(lambda: _is(_exists(qmp), True), timeout=10, what="QEMU's monitor")
    await machine.run("linkmgr vm add web1 /shared/web1.qmp")
    await machine.run("linkmgr network create blue bridge bridge=br0")
    await machine.run("linkmgr plug web1/net0 blue")
    (device,) = await tun_devices(machine)
    assert await stored(machine) == 1
    before = await machine.says(f"cat /sys/class/net/{device}/ifindex")
    for _ in range(2):
        pid = await main_pid(machine)
        await machine.run(f"kill -9 {pid}")
        (nic,) = json.loads(await machine.says("linkmgr nics --json"))["nics"]
        assert (nic["state"], nic["connection"]["device"]) == ("plugged", device)
        assert await main_pid(machine) != pid
        assert await tun_devices(machine) == [device]
        assert await stored(machine) == 1
        assert await machine.says(f"cat /sys/class/net/{device}/ifindex") == before
    await machine.run("ip link add br1 type bridge && ip link set br1 up")
    await machine.run("ip link add v0 type veth peer name v1 && ip link set v0 up")
    for network, option in (("red", "bridge=br1"), ("green", "parent=v0"), ("blue", "")):
        if option:
            driver = "direct" if network == "green" else "bridge"
            await machine.run(f"linkmgr network create {network} {driver} {option}")
        await machine.run(f"linkmgr plug web1/net0 {network}")
        (nic,) = json.loads(await machine.says("linkmgr nics --json"))["nics"]
        assert nic["connection"]["port"]["network"]["name"] == network
    device = nic["connection"]["device"]
    await machine.run("linkmgr unplug web1/net0")
    assert await tun_devices(machine) == []
    await until(lambda: _is(stored(machine), 0), timeout=5, what="an empty store")
    assert (await machine.run(f"ip link show {device}", check=False)).status != 0


async def test_the_exposure_is_what_the_documentation_says(machine: Machine) -> None:
    said = await machine.says("systemd-analyze security --no-pager linkmgr.service")
    (figure,) = re.findall(r"Overall exposure level for linkmgr.service: ([\d.]+)", said)
    assert f"**{figure}**" in (CHECKOUT / "docs" / "operations.md").read_text()


async def test_a_wrong_configuration_is_not_tried_for_ever_and_a_crash_is_followed_by_a_start(
    machine: Machine,
) -> None:
    await use_the_real_service(machine)
    await machine.run("mkdir /etc/linkmgr && echo '[networks' >/etc/linkmgr/linkmgr.toml")
    await machine.run("systemctl start linkmgr", check=False)
    assert await machine.property("linkmgr", "ExecMainStatus") == "78"
    assert await machine.property("linkmgr", "ActiveState") == "failed"
    assert await machine.property("linkmgr", "NRestarts") == "0"
    await machine.run("rm /etc/linkmgr/linkmgr.toml && systemctl start linkmgr")
    pid = await main_pid(machine)
    await machine.run(f"kill -9 {pid}")

    async def another() -> bool:
        return await main_pid(machine) not in (0, pid)

    await until(another, timeout=5, what="the next start")
    assert (
        await machine.says("cat /proc/$(systemctl show --value -p MainPID linkmgr)/oom_score_adj")
        == "0"
    )


async def _exists(path: Path) -> bool:
    return path.exists()


async def _is(asked: Any, wanted: object) -> bool:
    return bool(await asked == wanted)
