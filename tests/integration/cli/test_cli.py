"""The service and its command line as they are used: processes, a socket, a real guest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from linkmgr import Client, EventKind
from linkmgr.errors import Forbidden, NotOnHub, UnknownNic
from linkmgr.model import NicState
from linkmgr.testing.process import Child, execute, until
from tests.integration.lab import Lab

ROOT = Path(__file__).parents[3]
PROGRAMS = Path(sys.executable).parent


@dataclass
class Host:
    """A host with a service of its own, and a shell on it."""

    folder: Path
    child: Child | None = None
    log: Any = field(default_factory=tempfile.TemporaryFile)

    @property
    def socket(self) -> Path:
        return self.folder / "lm.sock"

    @property
    def environment(self) -> list[str]:
        return [
            "env",
            f"PATH={PROGRAMS}:{os.environ['PATH']}",
            f"LINKMGR_SOCKET={self.socket}",
            "PYTHONWARNINGS=error",
        ]

    def start(self, command: str = "linkmgr serve") -> None:
        """Start the service; who asks it waits until it answers."""
        line = f"exec {command} --state-dir {self.folder}/state"
        self.child = Child([*self.environment, "sh", "-c", line], output=self.log)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """End the service."""
        assert self.child is not None
        self.child.signal(number)
        return await self.child.wait(10)

    async def ready(self) -> None:
        """Wait until it answers."""
        async with Client(self.socket, patience=20) as links:
            await links.vms()

    async def run(self, line: str, *, status: int = 0) -> str:
        """Run a command line in a shell and return what it printed."""
        result = await execute([*self.environment, "sh", "-c", line], timeout=30, check=False)
        assert result.status == status, f"{line}: {result.status}: {result.output}{self.said()}"
        return result.output

    async def json(self, line: str, *, status: int = 0) -> Any:
        """Run a command that prints JSON."""
        return json.loads(await self.run(f"{line} --json", status=status))

    def said(self) -> str:
        """The service's log."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode()


@asynccontextmanager
async def make_host(folder: Path, command: str = "linkmgr serve") -> AsyncIterator[Host]:
    host = Host(folder)
    host.start(command)
    try:
        await host.ready()
        yield host
    finally:
        assert host.child is not None
        await host.child.end(10)
        host.log.close()


@pytest.fixture
async def host(tmp_path: Path, lab: Lab) -> AsyncIterator[Host]:
    async with make_host(tmp_path) as made:
        yield made


async def test_the_program_of_the_clients_documentation_works(host: Host, lab: Lab) -> None:
    guest = await lab.guest(boot=False, add=False)
    (program,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/client.md").read_text(), re.DOTALL
    )
    program = program.replace("/run/web1.qmp", str(guest.qmp_path))
    said = await host.run(shlex.join([sys.executable, "-c", program]))
    assert said == "vm-added web1\nnetwork-added blue\nplugged web1/net0\n"


@pytest.mark.timeout(180)
async def test_a_guest_is_plugged_swapped_and_unplugged_from_the_shell(
    host: Host, lab: Lab
) -> None:
    await lab.network("blue")
    await lab.network("green")
    args = shlex.split(await host.run("linkmgr args web1/net0"))
    guest = await lab.guest(nic_args=args, boot=False, add=False, cmdline="lm.ip.eth0=10.1.0.2/24")
    watching = Child(
        [*host.environment, "linkmgr", "watch", "--json"], output=(log := _log(host.folder))
    )

    async def written(word: str) -> bool:
        log.seek(0)
        return word.encode() in log.read()

    try:
        await until(lambda: written("listening"), timeout=20, what="watch to listen")
        assert await host.run(f"linkmgr vm add web1 {guest.qmp_path}") == "web1/net0  unplugged\n"
        await guest.cont()
        await guest.wait_boot()
        assert (await guest.run("cat /sys/class/net/eth0/carrier")).output.strip() == "0"
        await host.run("linkmgr network create blue bridge bridge=br-blue")
        await host.run("linkmgr network create green direct parent=v-green mode=bridge")

        assert "plugged into blue" in await host.run("linkmgr plug web1/net0 blue")
        await _reaches(guest, "10.1.0.1")
        again = await host.run("linkmgr plug web1/net0 blue")
        assert again.endswith("(it was so already)\n")

        moved = await host.json("linkmgr plug web1/net0 green")
        assert moved["changed"]
        assert moved["nic"]["connection"]["endpoint"]["parent"] == "v-green"
        await guest.run("ip addr add 10.2.0.2/24 dev eth0", check=True)
        await _reaches(guest, "10.2.0.1")

        assert "link down" in await host.run("linkmgr link web1/net0 down")
        assert (await guest.run("cat /sys/class/net/eth0/carrier")).output.strip() == "0"
        await host.run("linkmgr link web1/net0 up")
        assert await host.run("linkmgr check") == "Every NIC is as it should be.\n"
        assert "There are no orphan devices" in await host.run("linkmgr gc --dry-run")
        (row,) = (await host.run("linkmgr connections")).splitlines()[1:]
        assert row.startswith("web1/net0  green  direct on v-green mode bridge")
        assert "linkmgr_" in await host.run("linkmgr metrics")

        assert await host.run("linkmgr unplug web1/net0") == "web1/net0  unplugged\n"
        await host.run("linkmgr unplug web1/net0")
        assert await host.run("linkmgr vm remove web1") == "web1  removed\n"
        assert "No VM is known" in await host.run("linkmgr status")
        await until(lambda: written("vm-removed"), timeout=20, what="the last event")
    finally:
        watching.signal(signal.SIGINT)
        ended = await watching.wait(10)
    assert ended == 130
    log.seek(0)
    events = [json.loads(line) for line in log if line.startswith(b"{")]
    log.close()
    assert [each["kind"] for each in events] == [
        "vm-added", "vm-resumed", "network-added", "network-added", "plugged", "replugged",
        "link", "link", "unplugged", "vm-removed",
    ]  # fmt: skip


async def test_a_nic_is_found_by_its_address_its_device_and_its_vm(host: Host, lab: Lab) -> None:
    await lab.network("blue")
    guest = await lab.guest(boot=False, add=False, nics=1)
    await host.run(f"linkmgr vm add web1 {guest.qmp_path}")
    await host.run("linkmgr network create blue bridge bridge=br-blue")
    plugged = await host.json("linkmgr plug web1 blue")
    assert plugged["nic"]["ref"] == "web1/net0"
    device = plugged["nic"]["connection"]["device"]
    for name in (device, "52:54:00:00:01:00", "web1/52:54:00:00:01:00"):
        again = await host.json(f"linkmgr plug {name} blue")
        assert (again["nic"]["ref"], again["changed"]) == ("web1/net0", False)
        assert (await host.json(f"linkmgr link {name} up"))["nic"]["ref"] == "web1/net0"
    assert await host.run(f"linkmgr unplug {device}") == "web1/net0  unplugged\n"
    said = await host.run(f"linkmgr unplug {device}", status=3)
    assert said.startswith(f"linkmgr: there is no VM {device}, and no NIC whose device has that")
    other = await lab.guest("web2", boot=False, add=False, nics=2)
    await host.run(f"linkmgr vm add web2 {other.qmp_path}")
    said = await host.run("linkmgr unplug web2", status=2)
    assert "name one of them: web2/net0, web2/net1" in said


async def test_each_family_of_errors_has_its_exit_code(host: Host, lab: Lab) -> None:
    guest = await lab.guest(
        nic_args=["-netdev", "user,id=u0", "-device", "virtio-net-pci,id=net0,netdev=u0"],
        boot=False,
        add=False,
    )
    said = await host.run("linkmgr plug web1/net0 blue", status=3)
    assert said.startswith("linkmgr: there is no VM web1. To do: ")
    await host.run(f"linkmgr vm add web1 {guest.qmp_path}")
    await host.run("linkmgr plug web1/net0 blue", status=3)
    await host.run("linkmgr plug web1/net9 blue", status=3)
    await host.run("linkmgr network create blue bridge bridge=br7")
    await host.run("linkmgr network create blue bridge bridge=br8", status=4)
    await host.run("linkmgr network create red bridge bride=br8", status=2)
    await host.run("linkmgr network create red tunnel", status=2)
    said = await host.run("linkmgr plug web1/net0 blue", status=5)
    assert "web1/net0: " in said
    assert "To do: " in said
    await host.run(f"linkmgr vm add web2 {host.folder}/none.qmp", status=7)
    problem = (await host.run("linkmgr unplug web9/net0 --json 2>/dev/null", status=3)).strip()
    assert json.loads(problem)["error"]["code"] == "unknown-vm"
    await host.run("linkmgr --socket /none/lm.sock status", status=9)


async def test_who_is_not_root_may_look_but_change_nothing(host: Host) -> None:
    for folder in (host.folder, *host.folder.parents[:2]):  # pytest's own are for root only
        folder.chmod(0o755)
    await host.run("linkmgr network create blue bridge bridge=br7")
    os.seteuid(65534)  # what the service sees of this process
    try:
        async with Client(host.socket) as links:
            (network,) = await links.networks()
            for change in (
                links.delete_network("blue"),
                links.create_network("red", "bridge", bridge="br8"),
                links.gc(),
            ):
                with pytest.raises(Forbidden):
                    await change
            assert await links.networks() == [network]
    finally:
        os.seteuid(0)


async def test_the_client_raises_what_the_manager_would(host: Host, lab: Lab) -> None:
    guest = await lab.guest(
        nic_args=["-netdev", "user,id=u0", "-device", "virtio-net-pci,id=net0,netdev=u0"],
        boot=False,
        add=False,
    )
    async with Client(host.socket) as links:
        # A monitor serves one client at a time.
        for manager, monitor in ((links, guest.qmp_path), (lab.links, guest.qmp2_path)):
            (nic,) = await manager.add_vm("web1", monitor)
            assert nic.state is NicState.UNMANAGED
            await manager.create_network("blue", "bridge", bridge="br7")
        raised = []
        for manager in (links, lab.links):
            with pytest.raises(NotOnHub) as caught:
                await manager.plug("web1/net0", "blue")
            raised.append(str(caught.value))
            with pytest.raises(UnknownNic) as unknown:
                await manager.nic("web1/net9")
            raised.append(str(unknown.value))
        assert raised[:2] == raised[2:]


@pytest.mark.timeout(180)
async def test_client_and_guest_outlive_a_restart_of_the_service(host: Host, lab: Lab) -> None:
    await lab.network("blue")
    guest = await lab.guest(add=False, boot=False, cmdline="lm.ip.eth0=10.1.0.2/24")
    async with Client(host.socket, patience=20) as links:
        events = links.events()
        await links.add_vm("web1", guest.qmp_path)
        await guest.cont()
        await guest.wait_boot()
        await links.create_network("blue", "bridge", bridge="br-blue")
        before = (await links.plug("web1/net0", "blue")).nic
        await _reaches(guest, "10.1.0.1")

        await host.stop(signal.SIGKILL)
        host.start()
        after = await links.nic("web1/net0")
        assert after.state is NicState.PLUGGED
        assert after.connection == before.connection
        await _reaches(guest, "10.1.0.1")
        await links.unplug("web1/net0")
        kinds = []
        async with asyncio.timeout(20):
            async for event in events:
                kinds.append(event.kind)
                if event.kind is EventKind.UNPLUGGED:
                    break
        first = [EventKind.VM_ADDED, EventKind.VM_RESUMED, EventKind.PLUGGED]
        assert [kind for kind in kinds if kind is not EventKind.NETWORK_ADDED][:3] == first
        assert EventKind.RESET in kinds
        await links.remove_vm("web1")


async def test_a_service_that_hangs_is_noticed_by_the_heartbeat_that_it_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "linkmgr.toml").write_text("[limits]\nheartbeat_seconds = 0.2\n")
    async with make_host(tmp_path, f"linkmgr serve --config {tmp_path}/linkmgr.toml") as host:
        assert host.child
        async with Client(host.socket) as links:
            events = links.events()
            async with asyncio.timeout(10):
                await events.settled.wait()
            await asyncio.sleep(1)  # idle, and alive
            assert not caplog.records
            host.child.signal(signal.SIGSTOP)
            try:

                async def noticed() -> bool:
                    return "the events of the service have stopped" in caplog.text

                await until(noticed, timeout=10, what="the client to notice")
            finally:
                host.child.signal(signal.SIGCONT)
            await links.create_network("blue", "bridge", bridge="br7")
            events.close()


async def test_who_waits_for_a_stopped_service_is_told_so_and_how_to_mend_it(host: Host) -> None:
    assert host.child
    host.child.signal(signal.SIGSTOP)
    try:
        said = await host.run("linkmgr --timeout 5 status", status=14)
    finally:
        host.child.signal(signal.SIGCONT)
    assert re.search(r"its process (\d+) is stopped\. To do: 'kill -CONT \1' lets it go on", said)
    await host.run("linkmgr --timeout 5 status")


async def test_a_service_that_ends_leaves_no_socket_and_says_nothing_of_errors(
    tmp_path: Path,
) -> None:
    async with make_host(tmp_path) as host:
        assert await host.stop() == 0
        assert not host.socket.exists()
        assert "Traceback" not in host.said()
        await host.run("linkmgr status", status=9)


def _log(folder: Path) -> Any:
    return (folder / "watch.log").open("w+b")


async def _reaches(guest: Any, address: str) -> None:
    async def ping() -> bool:
        result = await guest.run(f"ping -c 1 -W 1 {address}", timeout=10)
        return not result.status

    with contextlib.suppress(TimeoutError):
        await until(ping, timeout=15, what=f"an answer of {address}")
        return
    pytest.fail(f"{guest.name} does not reach {address}")
