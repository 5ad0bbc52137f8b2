"""A user with rules for guests of his own does not get root's guest by exchanging a monitor's path.

Mallory is a process without rights (uid 65534) that may add VMs called mallory-* and plug their
NICs. Root's guest is not known to linkmgr: whoever may add it gets its NICs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from bench.served import ServiceProcess
from linkmgr import Client, hub_args
from linkmgr.errors import LinkmgrError, NotFound
from linkmgr.model import VmState
from linkmgr.testing import Guest
from linkmgr.testing.process import Child, execute, until

MALLORY = 65534
RACE_S = 3.0  #: for which he races; before the mend he won within one
RULES = f"""
[limits]
monitor_seconds = 2.0
[[access.rules]]
user = {MALLORY}
verbs = ["add_vm", "remove_vm", "plug", "unplug", "set_link"]
nics = ["mallory-*/*"]
networks = ["*"]
"""
AS_MALLORY = ["setpriv", f"--reuid={MALLORY}", f"--regid={MALLORY}", "--clear-groups"]

# Listens at PATH, and has PATH lead to root's monitor and back, for so many seconds.
FLIP = """
import os, socket, sys, threading, time
path, target, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
listener = socket.socket(socket.AF_UNIX)
listener.bind(path + ".own")
listener.listen(100)
def hang_up():
    while True:
        listener.accept()[0].close()
threading.Thread(target=hang_up, daemon=True).start()
end = time.monotonic() + seconds
while time.monotonic() < end:
    os.link(path + ".own", path + ".1")
    os.rename(path + ".1", path)
    os.symlink(target, path + ".2")
    os.rename(path + ".2", path)
"""
# Asks for one VM after the other; prints what he was answered, and ends when he was served.
ASK = """
import json, socket, sys, time
where, path, seconds, number = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
end, answers = time.monotonic() + seconds, {}
while time.monotonic() < end:
    body = json.dumps({"name": f"mallory-{number}", "qmp": path}).encode()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(where)
        sock.sendall(b"POST /v1/vms HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n"
                     b"Content-Type: application/json\\r\\n"
                     b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
        raw = b""
        while got := sock.recv(65536):
            raw += got
    answer = json.loads(raw.partition(b"\\r\\n\\r\\n")[2])
    what = "WON" if raw.startswith(b"HTTP/1.1 200") else answer.get("what", "")
    answers[what] = answers.get(what, 0) + 1
    if what == "WON":
        break
print(json.dumps(answers))
"""


@dataclass
class World:
    """The service, root's guest, and a folder of Mallory's."""

    served: ServiceProcess
    root_guest: Guest
    folder: Path

    async def root_is_untouched(self) -> None:
        """Nobody has spoken to the monitor of root's guest: its NIC is as it booted."""
        said = await self.root_guest.qmp(
            "human-monitor-command", **{"command-line": "info network"}
        )
        assert "lmp-" not in said


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        mallory = folder / "mallory"
        mallory.mkdir()
        os.chown(mallory, MALLORY, MALLORY)
        roots = folder / "root"
        roots.mkdir(mode=0o755)
        args = hub_args("net0", mac="52:54:00:00:01:00")
        async with (
            ServiceProcess(folder, config=RULES) as served,
            Guest("root1", nic_args=args, workdir=roots) as guest,
        ):
            yield World(served, guest, mallory)


@asynccontextmanager
async def child(argv: list[str], output: IO[bytes]) -> AsyncIterator[Child]:
    made = Child([*AS_MALLORY, *argv], output=output)
    try:
        yield made
    finally:
        await made.end()


@asynccontextmanager
async def mallorys_guest(world: World, path: Path) -> AsyncIterator[Child]:
    """A QEMU of his own, added as mallory-0."""
    args = hub_args("net0", mac="52:54:00:00:02:00")
    argv = [
        *("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-machine", "q35"),
        *("-accel", "tcg", "-m", "16", "-qmp", f"unix:{path},server=on,wait=off", *args),
    ]
    with tempfile.TemporaryFile() as output:
        async with child(argv, output) as qemu:

            async def is_there() -> bool:
                return path.exists()

            await until(is_there, timeout=20, what="his QEMU listens")
            (answers,) = await ask(world, path, askers=1, number=0)
            assert answers == {"WON": 1}, "he may add a guest of his own"
            yield qemu


async def ask(
    world: World, path: Path, *, askers: int, number: int = 1, seconds: float = RACE_S
) -> list[dict[str, int]]:
    async def one(each: int) -> dict[str, int]:
        words = [str(world.served.socket), str(path), str(seconds), str(number + each)]
        argv = [*AS_MALLORY, sys.executable, "-I", "-c", ASK, *words]
        found: dict[str, int] = json.loads((await execute(argv, timeout=seconds + 20)).output)
        return found

    return list(await asyncio.gather(*(one(each) for each in range(askers))))


async def replace_by_a_link(world: World, path: Path) -> None:
    script = f"ln -s {world.root_guest.qmp_path} {path}.new && mv -T {path}.new {path}"
    await execute([*AS_MALLORY, "sh", "-c", script])


async def test_the_race_between_the_look_at_a_path_and_the_connect_gets_him_nothing(
    world: World,
) -> None:
    path = world.folder / "qmp"
    argv = [sys.executable, "-I", "-c", FLIP, str(path), str(world.root_guest.qmp_path)]
    with tempfile.TemporaryFile() as output:
        async with child([*argv, str(RACE_S + 20)], output):
            await asyncio.sleep(0.3)
            found = await ask(world, path, askers=3)
    answers = {what: sum(each.get(what, 0) for each in found) for one in found for what in one}
    assert "WON" not in answers
    raced = sum(count for what, count in answers.items() if "belongs to uid 0, pid" in what)
    assert raced > 0, f"he never got as far as root's monitor: {answers}"
    async with world.served.client() as links:
        assert await links.vms() == []
    await world.root_is_untouched()


async def test_a_socket_that_is_replaced_before_a_restart_leads_nowhere(world: World) -> None:
    """His own guest still runs, so its VM stays known, as one that does not answer."""
    path = world.folder / "own.qmp"
    async with mallorys_guest(world, path):
        await world.served.stop(signal.SIGKILL)
        await replace_by_a_link(world, path)
        await world.served.start()
        async with world.served.client() as links:
            for _ in range(3):
                (vm,) = await links.vms()
                assert (vm.name, vm.state) == ("mallory-0", VmState.UNKNOWN)
                await asyncio.sleep(0.5)
            (found,) = await links.check()
            assert "another process listens" in found.what
            assert found.hint
            with pytest.raises(LinkmgrError, match="another process listens"):
                await links.set_link("mallory-0/net0", "down")
        await world.root_is_untouched()
        record = json.loads((world.served.state / "vms" / "mallory-0.json").read_text())
        assert (record["adder"], record["owner"]) == (MALLORY, MALLORY)


async def test_a_guest_that_has_ended_behind_a_replaced_socket_is_forgotten_at_a_restart(
    world: World,
) -> None:
    path = world.folder / "own.qmp"
    async with mallorys_guest(world, path):
        await world.served.stop(signal.SIGKILL)
    await replace_by_a_link(world, path)
    await world.served.start()
    async with world.served.client() as links:

        async def forgotten() -> bool:
            return await links.vms() == []

        await until(forgotten, timeout=10, what="the VM is forgotten")
    await world.root_is_untouched()


async def test_a_socket_that_is_replaced_before_a_reconnect_leads_nowhere(world: World) -> None:
    path = world.folder / "own.qmp"
    async with mallorys_guest(world, path) as qemu, world.served.client() as links:
        await replace_by_a_link(world, path)
        qemu.signal(signal.SIGKILL)

        async def gone() -> bool:
            (vm,) = await links.vms()
            return vm.state is VmState.GONE

        await until(gone, timeout=10, what="the VM has ended")
        with contextlib.suppress(NotFound):
            (nic,) = await links.nics()
            assert nic.connection is None
    await world.root_is_untouched()


async def test_root_may_add_what_is_root_s_and_finds_it_after_a_restart(world: World) -> None:
    async with world.served.client() as links:
        await links.add_vm("root1", world.root_guest.qmp_path)
    await world.served.stop(signal.SIGKILL)
    await world.served.start()
    async with world.served.client() as links:
        await answers(links, "root1")


async def answers(links: Client, name: str) -> Any:
    async def there() -> bool:
        (vm,) = await links.vms()
        return (vm.name, vm.state) == (name, VmState.ANSWERS)

    return await until(there, timeout=10, what="it is here again")
