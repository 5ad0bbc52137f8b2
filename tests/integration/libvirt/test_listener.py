"""Guests that dial: a real service, a real libvirtd, prepared domains, and those who pretend."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bench.served import ServiceProcess
from linkmgr import Client, EventKind, NicState
from linkmgr.aio.unix_sockets import UnixSocket
from linkmgr.libvirt.monitor.listener import MonitorListener
from linkmgr.libvirt.monitor.peer_identity import ConnectedQemu, UntrustedPeer, peer_pid
from linkmgr.model import MonitorTransport, Nic, VmInfo, VmState
from linkmgr.testing.process import Child, execute, until
from tests.integration.lab import bridge_of
from tests.integration.libvirtd import DomainGuest, Libvirtd, private_libvirtd, tiny_domain
from tests.prepared_once import prepared_once, prepared_open

PROGRAM = str(Path(sys.executable).with_name("linkmgr"))
NIC = "web1/ua-net0"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
#: Dials three times, and prints what it is answered.
STRANGER = """
import socket, sys, time
for _ in range(3):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(sys.argv[1])
        try:
            sock.sendall(b'{"QMP": {"version": {}, "capabilities": []}}')
            print(sock.recv(100), flush=True)
        except OSError:  # hung up on, before or after it was heard
            print(b"", flush=True)
    time.sleep(0.3)
"""

#: Without rights: gets a pid, locks a file of root's as far as it may, and dials as STRANGER does.
THIEF = """
import fcntl, os, socket, sys
path, wanted, pid_file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for _ in range(3000):
    child = os.fork()
    if child and child != wanted:
        os.waitpid(child, 0)
    elif child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    elif os.getpid() != wanted:
        os._exit(0)
    else:
        break
else:
    sys.exit(2)
file = open(pid_file)
fcntl.lockf(file, fcntl.LOCK_SH)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(path)
    try:
        version = b'{"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}'
        sock.sendall(b'{"QMP": {"version": %s, "capabilities": []}}%c' % (version, 10))
        print(sock.recv(100), flush=True)
    except OSError:
        print(b"", flush=True)
"""


@pytest.fixture
async def libvirtd() -> AsyncIterator[Libvirtd]:
    async with private_libvirtd() as made:
        yield made


def service(libvirtd: Libvirtd, folder: Path) -> ServiceProcess:
    """The service, dialled under its usual path. Its state outlives libvirt's /run."""
    config = f"""
        [libvirt]
        uri = "{libvirtd.uri}"
        run_dir = "{libvirtd.run}/libvirt/qemu"
        [networks.blue]
        driver = "bridge"
        options = {{ bridge = "br-blue" }}
        [networks.green]
        driver = "bridge"
        options = {{ bridge = "br-green" }}
    """
    made = ServiceProcess(folder, config=config)
    made.socket = libvirtd.run / "linkmgr/lm.sock"
    return made


async def define(libvirtd: Libvirtd, name: str, *, more: str = "") -> str:
    """Define a prepared domain; return its uuid."""
    words = "lm.ip.eth0=10.1.0.2/24 lm.ip.eth0=10.2.0.2/24"
    nic = "<interface type='user'><model type='virtio'/></interface>"
    await libvirtd.define(tiny_domain(libvirtd, name, [nic], cmdline=words, more=more))
    await execute([PROGRAM, "prepare", "--connect", libvirtd.uri, "--define", name], timeout=60)
    return await libvirtd.virsh("domuuid", name)


async def vm(links: Client, name: str = "web1") -> VmInfo | None:
    """What the service knows of a VM."""
    return next((each for each in await links.vms() if each.name == name), None)


async def comes(links: Client, right: Callable[[VmInfo], bool], *, within: float) -> float:
    """Wait until the VM is as it should be; return how many seconds it took."""
    begun = time.monotonic()

    async def asked() -> bool:
        found = await vm(links)
        return found is not None and right(found)

    await until(asked, timeout=within, what="web1", interval=0.02)
    return time.monotonic() - begun


def answers(found: VmInfo) -> bool:
    return found.state is VmState.ANSWERS


def devices() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


@pytest.mark.newer_debian
async def test_a_guest_that_dials_is_found_kept_and_lost_by_itself(
    libvirtd: Libvirtd, tmp_path: Path
) -> None:
    before = devices()
    uuid = await define(libvirtd, "web1")
    other = await define(
        libvirtd, "web2",
        more=f"<qemu:commandline xmlns:qemu='{QEMU}'><qemu:arg value='-uuid'/>"
        f"<qemu:arg value='{uuid}'/></qemu:commandline>",
    )  # fmt: skip
    assert other != uuid
    served = service(libvirtd, tmp_path)
    async with AsyncExitStack() as stack:
        for name in ("blue", "green"):
            await stack.enter_async_context(bridge_of(name))
        guest = await stack.enter_async_context(DomainGuest(libvirtd, "web1"))

        # It boots, and runs, without the service.
        await libvirtd.virsh("start", "web1")
        await guest.connect()
        first_pid = guest.pid

        await stack.enter_async_context(served)
        links = await stack.enter_async_context(served.client())
        assert await comes(links, answers, within=5) < 1.6
        (info,) = await links.vms()
        assert (info.name, info.qmp) == ("web1", f"inbound:{uuid}")
        assert (info.transport, info.running) == (MonitorTransport.INBOUND, True)
        assert (await links.nic(NIC)).state is NicState.UNPLUGGED
        assert not await guest.carrier("eth0")

        # The cable: descriptors go over the connection that QEMU has made.
        await links.plug(NIC, "blue")
        await guest.wait_carrier("eth0", up=True)
        assert (await guest.ping("10.1.0.1")).received
        await links.plug(NIC, "green")
        assert (await guest.ping("10.2.0.1")).received
        said = await execute([PROGRAM, "--socket", str(served.socket), "status"])
        assert "web1/ua-net0  plugged into green" in said.output
        assert "(inbound monitor)" in said.output
        listed = await execute([PROGRAM, "--socket", str(served.socket), "vm", "list"])
        assert f"yes   inbound  inbound:{uuid}" in listed.output

        # virsh pauses it behind our back.
        events = links.events()
        await libvirtd.virsh("suspend", "web1")
        await comes(links, lambda found: found.running is False, within=2)
        await libvirtd.virsh("resume", "web1")
        await comes(links, lambda found: found.running is True, within=2)
        kinds = []
        async with asyncio.timeout(5):
            async for event in events:
                if event.subject == "web1":
                    kinds.append(event.kind)
                if event.kind is EventKind.VM_RESUMED:
                    break
        events.close()
        assert kinds == [EventKind.VM_PAUSED, EventKind.VM_RESUMED]

        await strangers_are_refused(served, uuid)
        await a_forged_uuid_is_refused(libvirtd, served, uuid)
        plugged = await links.nic(NIC)
        assert plugged.connection is not None
        assert (await guest.ping("10.2.0.1")).received
        assert [each.name for each in await links.vms()] == ["web1"]

        # Killed, and started again.
        await served.stop(signal.SIGKILL)
        assert (await guest.ping("10.2.0.1")).received
        took = await served.start()
        assert await comes(links, answers, within=5) < 1.6, took
        again = await links.nic(NIC)
        assert (again.state, again.connection) == (NicState.PLUGGED, plugged.connection)
        assert (await guest.ping("10.2.0.1")).received
        assert (await links.plug(NIC, "blue")).changed
        assert (await guest.ping("10.1.0.1")).received
        assert await links.check() == []

        # libvirtd is of no concern.
        await libvirtd.stop(signal.SIGKILL)
        await served.stop(signal.SIGKILL)
        await served.start()
        assert await comes(links, answers, within=5) < 1.6
        await links.plug(NIC, "green")
        assert (await guest.ping("10.2.0.1")).received
        await libvirtd.start()

        # Its end, and another start.
        await libvirtd.virsh("destroy", "web1")
        await is_forgotten(links)
        await libvirtd.virsh("start", "web1")
        assert await comes(links, answers, within=5) < 1.6
        await is_new(links, guest, first_pid)
        await links.plug(NIC, "blue")
        await guest.connect()
        assert (await guest.ping("10.1.0.1")).received
        second_pid = guest.pid

        # Both while nobody looks: what the old one held is freed, the new one has no cable.
        await served.stop(signal.SIGKILL)
        await libvirtd.virsh("destroy", "web1")
        await libvirtd.virsh("start", "web1")
        await served.start()
        assert await comes(links, answers, within=5) < 1.6
        await is_new(links, guest, second_pid)
        assert list(Path("/sys/class/net/br-blue/brif").iterdir()) == [
            Path("/sys/class/net/br-blue/brif/v-blue")
        ]

        await libvirtd.virsh("destroy", "web1")
        await is_forgotten(links)
        assert not list((served.state / "vms").iterdir())
        assert "Traceback" not in served.said(), served.said()
    assert not [name for name in devices() - before if name.startswith("lm")]


@pytest.mark.newer_debian
async def test_a_user_who_gets_the_pid_of_a_guest_that_ended_is_not_taken_for_it(
    libvirtd: Libvirtd, tmp_path: Path
) -> None:
    await define(libvirtd, "web1")
    served = service(libvirtd, tmp_path)
    pid_file = libvirtd.run / "libvirt/qemu/web1.pid"
    async with served, served.client() as links:
        await libvirtd.virsh("start", "web1")
        await comes(links, answers, within=5)
        pid = int(pid_file.read_text())
        # libvirtd does not see its end, so its files stay.
        await libvirtd.stop(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        await is_forgotten(links)
        assert int(pid_file.read_text()) == pid

        heard = await stolen(pid, served.socket.with_name("qmp.sock"), pid_file)
        assert heard == "b''"
        assert f"pid {pid} was refused: it does not hold the write lock" in served.said()
        assert await vm(links) is None
        await libvirtd.start()


@pytest.mark.newer_debian
async def test_a_guest_that_could_speak_as_its_qemu_is_hung_up_on_and_named(
    libvirtd: Libvirtd, tmp_path: Path
) -> None:
    nic = "<interface type='user'/>"
    await libvirtd.define(prepared_once(tiny_domain(libvirtd, "web1", [nic])))
    await libvirtd.define(prepared_open(tiny_domain(libvirtd, "web2", [nic])))
    served = service(libvirtd, tmp_path)
    async with served, served.client() as links:
        await libvirtd.virsh("start", "--paused", "web2")
        old = await libvirtd.try_virsh("start", "--paused", "web1")
        takes_old = old.status == 0  # as an older linkmgr prepared it: QEMU until 10.1
        assert takes_old or "Invalid parameter 'reconnect'" in old.output
        if takes_old:
            assert await comes(links, answers, within=5) < 5
        what = "domain web2: its guest could speak to the service as its QEMU"
        await until(lambda: _said(served, what), timeout=5, what="the refusal")
        assert [each.name for each in await links.vms()] == ["web1"] * takes_old
        shown = await execute([PROGRAM, "--socket", str(served.socket), "nics"])
        assert shown.output.count("linkmgr prepare web1 --refresh") == 1
        assert shown.output.count("linkmgr prepare web2 --refresh") == 1

        async def named() -> bool:
            return "guest-could-speak" in {each.code for each in await links.check()}

        await until(named, timeout=10, what="the finding")
        for name in ("web1", "web2"):
            if name == "web2" or takes_old:
                await libvirtd.virsh("destroy", name)
            argv = [PROGRAM, "prepare", "--connect", libvirtd.uri, "--refresh", name]
            await execute(argv, timeout=60)
            await libvirtd.virsh("start", "--paused", name)
        await until(lambda: _known(links, 2), timeout=5, what="both")


async def _known(links: Client, number: int) -> bool:
    return len([each for each in await links.vms() if answers(each)]) == number


async def stolen(pid: int, socket: Path, pid_file: Path) -> str:
    """What a local user hears who has got a pid; others may get it first, so he tries again."""
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "/usr/bin/python3", "-c", THIEF, str(socket), str(pid), str(pid_file)]  # fmt: skip
    for _ in range(20):
        # What other processes do in months.
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 20))
        done = await execute(argv, timeout=30, check=False)
        if done.status == 0:
            return done.output.strip()
    raise AssertionError(f"the pid cannot be had: {done.output}")


async def is_forgotten(links: Client) -> None:
    """Wait until nothing is known of the VM any more."""

    async def asked() -> bool:
        return await vm(links) is None

    await until(asked, timeout=3, what="web1's end")


async def is_new(links: Client, guest: DomainGuest, old: int) -> None:
    assert guest.pid != old
    nic: Nic = await links.nic(NIC)
    assert (nic.state, nic.connection) == (NicState.UNPLUGGED, None)


async def strangers_are_refused(served: ServiceProcess, uuid: str) -> None:
    """A process that dials, and a plain QEMU that says what web1's would say."""
    path = served.socket.with_name("qmp.sock")
    with tempfile.TemporaryFile() as output:
        child = Child([sys.executable, "-c", STRANGER, str(path)], output=output)
        assert await child.wait(10) == 0
        output.seek(0)
        assert output.read().split() == [b"b''"] * 3
    assert served.said().count(f"pid {child.pid} was refused") == 1

    again = await redials("qemu-system-x86_64")
    with tempfile.TemporaryFile() as output:
        forged = Child(
            [
                "qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none",
                "-name", "guest=web1", "-uuid", uuid, "-mon", "chardev=m,mode=control",
                "-chardev", f"socket,id=m,path={path},server=off,{again}",
            ],
            output=output,
        )  # fmt: skip
        try:
            await until(
                lambda: _said(served, f"pid {forged.pid} was refused: its pid is in no file"),
                timeout=5, what="the refusal",
            )  # fmt: skip
            await asyncio.sleep(1.5)  # it dials again
            assert served.said().count(f"pid {forged.pid} was refused") == 1
        finally:
            await forged.end()


async def a_forged_uuid_is_refused(libvirtd: Libvirtd, served: ServiceProcess, uuid: str) -> None:
    """A domain of libvirt whose command line claims to be another one."""
    await libvirtd.virsh("start", "web2")
    what = f"it is the QEMU of domain web2, and says that its uuid is '{uuid}'"
    await until(lambda: _said(served, what), timeout=5, what="the refusal")
    assert "running" in await libvirtd.virsh("domstate", "web2")
    await libvirtd.virsh("destroy", "web2")


async def _said(served: ServiceProcess, what: str) -> bool:
    return what in served.said()


async def redials(qemu: str) -> str:
    """The word for "dial again each second" of a QEMU."""
    said = (await execute([*shlex.split(qemu), "--version"])).output
    version = re.search(r"version (\d+)\.(\d+)", said)
    assert version is not None, said
    return "reconnect-ms=1000" if (int(version[1]), int(version[2])) >= (9, 2) else "reconnect=1"


@pytest.mark.newer_debian
async def test_a_qemu_that_is_refused_while_it_starts_goes_on(qemu: str, tmp_path: Path) -> None:
    """QEMU ends by SIGSEGV if its monitor's connection is closed before its main loop runs."""
    calls = Counter[int]()

    def refuse(sock: socket.socket) -> ConnectedQemu:
        calls[peer_pid(sock)] += 1
        raise UntrustedPeer("no")

    async def offered(who: ConnectedQemu) -> None:
        raise AssertionError(who)

    path = tmp_path / "qmp.sock"
    listening = UnixSocket.make()
    listening.bind(str(path))
    listening.listen()
    dial = f"socket,id=m,path={path},server=off,{await redials(qemu)}"
    argv = [*shlex.split(qemu), "-S", "-nodefaults", "-display", "none", "-machine", "q35",
            "-m", "64", "-chardev", dial, "-mon", "chardev=m,mode=control"]  # fmt: skip
    async with MonitorListener(listening, refuse, offered), AsyncExitStack() as stack:
        output = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack's
        for _ in range(3):
            child = Child(argv, output=output)
            stack.push_async_callback(child.end)

            async def lives_on(child: Child = child) -> bool:
                assert child.status is None, f"QEMU has ended with status {child.status}"
                return calls[child.pid] >= 2  # it was hung up on, and dialled again

            await until(lives_on, timeout=30, what="a second call")
