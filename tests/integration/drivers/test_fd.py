"""A tap that the caller opened itself, anywhere, becomes a NIC's cable, and stays the caller's."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import json
import os
import shlex
import socket
import stat
import struct
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from linkmgr import LinkManager, LinkState, NicState
from linkmgr.errors import (
    BadFd,
    BadName,
    CommandFailed,
    LinkmgrError,
    MtuTooLarge,
    PortInUse,
    UnknownPort,
)
from linkmgr.host import Fd
from linkmgr.model import FdEndpoint, NicRef
from linkmgr.service.fd_socket import FdSocket, bind
from linkmgr.swap.steps import Step
from linkmgr.testing import NetnsPeer
from tests.integration.lab import Lab, mac_of, make_lab

NIC = "web1/net0"
LEAVE = Path(__file__).parents[3] / "examples" / "leave_fd.py"
STATIC = "lm.ip.eth0=10.1.0.2/24 lm.ip.eth0=10.9.0.2/24"

# linux/if_tun.h
TUN, TAP, NO_PI, VNET_HDR, MULTI_QUEUE, DETACH = 0x1, 0x2, 0x1000, 0x4000, 0x0100, 0x0400
TUNSETIFF, TUNSETQUEUE, TUNGETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D9, 0x800454D2, 0x400454D0
CSUM_AND_TSO = 0x1 | 0x2 | 0x4
SIOCETHTOOL, ETHTOOL_GTSO = 0x8946, 0x1E  # linux/sockios.h, linux/ethtool.h
IFREQ = struct.Struct("=16sH22x")


def open_tap(name: str, flags: int = TAP | NO_PI) -> Fd:
    """Open a tap in the namespace of this test."""
    fd = Fd(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        fcntl.ioctl(fd.number, TUNSETIFF, IFREQ.pack(name.encode(), flags))
    except BaseException:
        fd.close()
        raise
    return fd


def open_macvtap(name: str) -> Fd:
    """Open a macvtap as it is, which is with a virtio-net header."""
    (folder,) = Path("/sys/class/net", name, "macvtap").iterdir()
    major, minor = (folder / "dev").read_text().split(":")
    node = Path("/dev") / f"test-{os.getpid()}"
    os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(int(major), int(minor)))
    try:
        return Fd(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    finally:
        node.unlink()


def sends_unsegmented(device: str) -> bool:
    """Whether the kernel leaves it to the reader of a tap to cut TCP into segments."""
    value = array.array("I", [ETHTOOL_GTSO, 0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sP16x", device.encode(), value.buffer_info()[0])
        fcntl.ioctl(sock, SIOCETHTOOL, request)
    return bool(value[1])


async def leave(lab: Lab, name: str, fd: int) -> dict[str, Any]:
    """Leave an fd as a caller of its own does."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        sock.connect(str(lab.workdir / "fd.sock"))
        socket.send_fds(sock, [json.dumps({"name": name}).encode()], [fd])
        answer = json.loads(await loop.sock_recv(sock, 65536))
    assert isinstance(answer, dict)
    return answer


async def leave_from(lab: Lab, peer: NetnsPeer, name: str, device: str, *options: str) -> None:
    """Open a tap in a peer's namespace and leave it; the process that did it has ended then."""
    command = [sys.executable, str(LEAVE), name, device, *options]
    await peer.run(shlex.join([*command, "--socket", str(lab.workdir / "fd.sock")]), check=True)
    await peer.run(f"ip addr add 10.9.0.1/24 dev {device} && ip link set {device} up", check=True)


def open_devices() -> list[str]:
    """The tun and tap files that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()))
    return sorted(path for path in found if "/net/tun" in path or path.startswith("/dev/t"))


@contextlib.asynccontextmanager
async def fd_socket(links: LinkManager, path: Path) -> AsyncIterator[None]:
    async with FdSocket(links.fds, bind(path), path=path):
        yield


@pytest.fixture
async def lab(lab: Lab) -> AsyncIterator[Lab]:
    """The lab, with its fd socket."""
    async with fd_socket(lab.links, lab.workdir / "fd.sock"):
        yield lab


@pytest.fixture
async def vault() -> AsyncIterator[NetnsPeer]:
    """A network namespace that linkmgr does not know."""
    async with NetnsPeer("vault", "v-vault") as peer:
        yield peer


@pytest.mark.next_qemu
@pytest.mark.parametrize("options", [(), ("--vnet-hdr",)], ids=["plain", "vnet_hdr"])
async def test_a_tap_of_another_namespace_carries_a_guest_between_two_bridges(
    lab: Lab, vault: NetnsPeer, options: tuple[str, ...]
) -> None:
    await lab.network("blue")
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.plug(NIC, "blue")
    assert (await guest.ping("10.1.0.1")).received

    await leave_from(lab, vault, "uplink", "up0", *options)
    outcome = await lab.links.plug(NIC, "fd:uplink")
    assert outcome.changed
    connection = outcome.nic.connection
    assert connection
    assert str(connection.port) == "fd:0.uplink"
    assert connection.endpoint == FdEndpoint("0.uplink", "up0", vnet_hdr=bool(options), mtu=1500)
    assert connection.device == ""
    await guest.wait_carrier("eth0", True)
    assert (await guest.ping("10.9.0.1")).received
    assert (await vault.ping("10.9.0.2")).received
    assert not (await guest.ping("10.1.0.1", count=2)).received
    assert await lab.links.check() == []
    for target in ("fd:uplink", "fd:0.uplink", connection.port):
        assert not (await lab.links.plug(NIC, target)).changed

    await lab.links.plug(NIC, "blue")
    assert (await guest.ping("10.1.0.1")).received
    assert (await vault.run("ip link show up0")).status, "the last fd is closed, so it is gone"
    assert open_devices() == ["/dev/net/tun"], "of the tap on blue"

    await leave_from(lab, vault, "uplink", "up0", *options)
    await lab.links.plug(NIC, "fd:uplink")
    assert (await vault.ping("10.9.0.2")).received
    await lab.links.unplug(NIC)
    assert (await lab.links.nic(NIC)).link is LinkState.DOWN
    assert (await vault.run("ip link show up0")).status
    assert open_devices() == []


@pytest.mark.next_qemu
async def test_tcp_crosses_a_tap_whose_owner_had_offloads_on(lab: Lab) -> None:
    """With a header that QEMU strips, a checksum that is left to the other side would be lost."""
    with open_tap("up0", TAP | NO_PI | VNET_HDR) as fd:
        fcntl.ioctl(fd.number, TUNSETOFFLOAD, CSUM_AND_TSO)
        async with NetnsPeer("blue", "v-blue", addresses=["10.1.0.1/24"]) as peer:
            await lab.sh(
                "ip link add br0 type bridge; ip link set br0 up; ip link set up0 up;"
                "ip link set up0 master br0; ip link set v-blue master br0"
            )
            guest = await lab.guest(cmdline=STATIC)
            assert (await leave(lab, "uplink", fd.number))["ok"]
            assert sends_unsegmented("up0")
            await lab.links.plug(NIC, "fd:uplink")
            assert not sends_unsegmented("up0"), "QEMU turns it off"
            await guest.wait_carrier("eth0", True)
            for inward in (False, True):
                speed = await guest.tcp_throughput(peer, "10.1.0.1", inward=inward)
                assert speed > 10e6
            await lab.links.unplug(NIC)
            await lab.sh("ip link del br0")


async def test_a_macvtap_of_the_callers_is_taken_with_its_header(lab: Lab) -> None:
    async with NetnsPeer("green", "v-green", addresses=["10.9.0.1/24"]) as peer:
        address = mac_of(1, 0)
        await lab.sh(
            f"ip link add link v-green name up0 address {address} type macvtap mode bridge;"
            "ip link set up0 up"
        )
        guest = await lab.guest(cmdline=STATIC)
        with open_macvtap("up0") as fd:
            assert (await leave(lab, "uplink", fd.number))["ok"]
        outcome = await lab.links.plug(NIC, "fd:uplink")
        assert outcome.nic.connection
        assert outcome.nic.connection.endpoint == FdEndpoint(
            "0.uplink", "up0", vnet_hdr=True, mtu=1500
        )
        await guest.wait_carrier("eth0", True)
        assert (await guest.ping("10.9.0.1")).received
        assert (await peer.ping("10.9.0.2")).received
        await lab.links.unplug(NIC)
        assert open_devices() == []
        assert "up0" in await lab.sh("ip link show up0"), "it is the caller's, and stays"
        await lab.sh("ip link del up0")


async def test_the_device_stays_as_its_owner_left_it(lab: Lab) -> None:
    await lab.guest(boot=False)
    with open_tap("up0") as fd:
        await lab.sh("ip link set up0 mtu 1400 alias mine address 02:00:00:00:00:09")
        describe = "ip -o link show up0 | sed 's/qlen [0-9]*//; s/<.*>//'"
        before = await lab.sh(describe)
        assert (await leave(lab, "uplink", fd.number))["ok"]
        await lab.links.plug(NIC, "fd:uplink")
        assert await lab.links.check() == []
        assert await lab.sh(describe) == before
        await lab.links.unplug(NIC)
        assert await lab.sh(describe) == before
        # The name is free again, and the same tap can be left again.
        assert (await leave(lab, "uplink", fd.number))["ok"]
        await lab.links.plug(NIC, "fd:uplink")
        await lab.links.unplug(NIC)
        assert await lab.sh(describe) == before


def _file(path: Path) -> Fd:
    return Fd(os.open(path, os.O_RDWR | os.O_CREAT))


def _socket(_: Path) -> Fd:
    return Fd(socket.socket(socket.AF_UNIX).detach())


def _deleted(_: Path) -> Fd:
    fd = open_tap("t0")
    os.system("ip link del t0")
    return fd


def _detached(_: Path) -> Fd:
    fd = open_tap("t0", TAP | NO_PI | MULTI_QUEUE)
    fcntl.ioctl(fd.number, TUNSETQUEUE, IFREQ.pack(b"", DETACH))
    return fd


def _read_only(_: Path) -> Fd:
    fd = Fd(os.open("/dev/net/tun", os.O_RDONLY))
    fcntl.ioctl(fd.number, TUNSETIFF, IFREQ.pack(b"t0", TAP | NO_PI))
    return fd


REFUSED: dict[str, tuple[Callable[[Path], Fd], str]] = {
    "a regular file": (_file, "is a regular file, not a tap"),
    "a socket": (_socket, "is a socket, not a tap"),
    "/dev/null": (lambda _: Fd(os.open("/dev/null", os.O_RDWR)), "character device 1:3, not a tap"),
    "no file": (lambda _: Fd(os.eventfd(0)), "is something without a file behind it"),
    "never attached": (lambda _: Fd(os.open("/dev/net/tun", os.O_RDWR)), "attached to no device"),
    "only a path": (lambda _: Fd(os.open("/dev/net/tun", os.O_PATH)), "both read and written"),
    "read only": (_read_only, "both read and written"),
    "deleted": (_deleted, "attached to no device"),
    "tun": (lambda _: open_tap("t0", TUN | NO_PI), "the tun device t0: it carries IP packets"),
    "multi-queue": (lambda _: open_tap("t0", TAP | NO_PI | MULTI_QUEUE), "multi-queue device t0"),
    "detached": (_detached, "a queue that is detached from t0"),
    "packet information": (lambda _: open_tap("t0", TAP), "of t0, fd uplink, carry a packet-inf"),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_is_no_usable_tap_is_refused_before_qemu_sees_it(
    lab: Lab, tmp_path: Path, kind: str
) -> None:
    make, complaint = REFUSED[kind]
    with make(tmp_path / "file") as fd:
        answer = await leave(lab, "uplink", fd.number)
    assert (answer["ok"], answer["code"], answer["status"]) == (False, "bad-fd", 400)
    assert complaint in answer["what"]
    assert answer["hint"]
    with pytest.raises(UnknownPort):
        await lab.links.fds.claim("0.uplink", "aaaa0001", NicRef.parse(NIC))


async def test_packet_information_is_found_in_another_namespace_too(
    lab: Lab, vault: NetnsPeer
) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import leave_fd, json;"
        "leave_fd.IFF_NO_PI = 0;"
        "print(json.dumps(leave_fd.leave(sys.argv[2], 'uplink', leave_fd.open_tap('up0'))))"
    )
    command = [sys.executable, "-c", program, str(LEAVE.parent), str(lab.workdir / "fd.sock")]
    said = json.loads((await vault.run(shlex.join(command), check=True)).output)
    assert said["code"] == "bad-fd"
    assert "packet-information" in said["what"]


async def test_a_tap_that_is_deleted_before_it_is_plugged_is_refused_then(lab: Lab) -> None:
    await lab.network("blue")
    await lab.guest(boot=False)
    await lab.links.plug(NIC, "blue")
    with open_tap("up0") as fd:
        assert (await leave(lab, "uplink", fd.number))["ok"]
    await lab.sh("ip link del up0")
    with pytest.raises(BadFd, match="web1/net0 is plugged into blue"):
        await lab.links.plug(NIC, "fd:uplink")
    assert open_devices() == ["/dev/net/tun"]


async def test_a_tap_with_larger_frames_than_the_nic_takes_is_refused_and_waits_on(
    lab: Lab, vault: NetnsPeer
) -> None:
    await lab.guest(boot=False)
    await leave_from(lab, vault, "uplink", "up0")
    await vault.run("ip link set up0 mtu 9000", check=True)
    with pytest.raises(MtuTooLarge, match="9000 bytes"):
        await lab.links.plug(NIC, "fd:uplink")
    await vault.run("ip link set up0 mtu 1500", check=True)
    assert (await lab.links.plug(NIC, "fd:uplink")).changed


async def test_only_the_user_who_left_it_can_plug_it(lab: Lab) -> None:
    await lab.guest(boot=False)
    lab.workdir.chmod(0o755)
    with open_tap("up0") as fd:
        os.set_inheritable(fd.number, True)
        program = (
            "import os, sys; sys.path.insert(0, sys.argv[1]); import leave_fd, json;"
            "os.setresgid(1234, 1234, 1234); os.setgroups([]);"
            "os.setresuid(1234, 1234, 1234); os.chdir(int(sys.argv[2]));"
            "print(json.dumps(leave_fd.leave('fd.sock', 'uplink', int(sys.argv[3]))))"
        )
        folder = os.open(lab.workdir, os.O_RDONLY)
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, str(LEAVE.parent), str(folder), str(fd.number),
                stdout=asyncio.subprocess.PIPE,
                pass_fds=[folder, fd.number],
            )  # fmt: skip
            said, _ = await child.communicate()
        finally:
            os.close(folder)
        assert json.loads(said) == {"ok": True, "expires": 60.0}
    for target, uid in (
        ("fd:uplink", None),
        ("fd:uplink", 0),
        ("fd:1234.uplink", 0),
        ("fd:uplink", 1235),
        ("fd:1234.uplink", 1235),
    ):
        with pytest.raises(UnknownPort, match="uplink") as caught:
            await lab.links.plug(NIC, target, uid=uid)
        assert caught.value.hint
    assert (await lab.links.nic(NIC)).state is NicState.UNPLUGGED
    outcome = await lab.links.plug(NIC, "fd:uplink", uid=1234)
    assert str(outcome.nic.connection and outcome.nic.connection.port) == "fd:1234.uplink"


async def test_one_tap_is_not_plugged_into_two_nics(lab: Lab) -> None:
    await lab.guest(nics=2, boot=False)
    with open_tap("up0") as fd:
        for name in ("a", "b"):
            assert (await leave(lab, name, fd.number))["ok"]
        await lab.links.plug("web1/net0", "fd:a")
        with pytest.raises(PortInUse, match="web1/net0"):
            await lab.links.plug("web1/net1", "fd:a")
        with pytest.raises(PortInUse, match=r"device up0, fd 0\.b, is in use by web1/net0"):
            await lab.links.plug("web1/net1", "fd:b")
        assert (await leave(lab, "a", fd.number))["code"] == "port-in-use"
        await lab.links.unplug("web1/net0")
        await lab.links.plug("web1/net1", "fd:b")


async def test_a_guest_notices_that_it_goes_from_one_fd_to_another(lab: Lab) -> None:
    guest = await lab.guest(cmdline=STATIC)
    with open_tap("up0") as first, open_tap("up1") as second:
        for name, fd in (("a", first), ("b", second)):
            assert (await leave(lab, name, fd.number))["ok"]
        await lab.links.plug(NIC, "fd:a")
        await guest.wait_carrier("eth0", True)
        changes = await guest.carrier_changes("eth0")
        await lab.links.plug(NIC, "fd:b")
        await guest.wait_carrier("eth0", True)
        assert await guest.carrier_changes("eth0") > changes


@pytest.mark.parametrize("step", [Step.REALISE, Step.STAGE, Step.SWITCH, Step.ACTIVATE])
async def test_a_plug_that_fails_gives_the_fd_back(tmp_path: Path, step: Step) -> None:
    failing = True

    async def fail(at: Step) -> None:
        if failing and at is step:
            raise CommandFailed("a planted failure", command="none")

    async with (
        make_lab(tmp_path, probe=fail) as lab,
        fd_socket(lab.links, tmp_path / "fd.sock"),
    ):
        await lab.guest(boot=False)
        with open_tap("up0") as fd:
            assert (await leave(lab, "uplink", fd.number))["ok"]
        with pytest.raises(LinkmgrError, match="planted"):
            await lab.links.plug(NIC, "fd:uplink")
        assert (await lab.links.nic(NIC)).state is NicState.UNPLUGGED
        assert open_devices() == ["/dev/net/tun"]
        failing = False
        await lab.links.plug(NIC, "fd:uplink")
        await lab.links.unplug(NIC)
        assert open_devices() == []


async def test_the_fd_goes_with_the_guest(lab: Lab) -> None:
    guest = await lab.guest(boot=False)
    with open_tap("up0") as fd:
        assert (await leave(lab, "uplink", fd.number))["ok"]
    await lab.links.plug(NIC, "fd:uplink")
    guest.kill()
    await guest.wait_exit()
    assert await lab.links.remove_vm("web1")
    assert open_devices() == []


async def test_the_network_fd_is_nobodys_to_create_or_delete(lab: Lab) -> None:
    for attempt in (
        lambda: lab.links.create_network("fd", "bridge", bridge="br0"),
        lambda: lab.links.create_network("fd", "fd"),
        lambda: lab.links.create_network("mine", "fd"),
        lambda: lab.links.create_port("fd", "uplink"),
        lambda: lab.links.delete_network("fd"),
    ):
        with pytest.raises(BadName, match="reserved"):
            await attempt()
    assert await lab.links.networks() == []
    assert await lab.links.ports("fd") == []


async def test_to_plug_what_nobody_left_says_how_to_leave_it(lab: Lab) -> None:
    await lab.guest(boot=False)
    with pytest.raises(UnknownPort, match="uid 0 has left no fd under the name uplink") as caught:
        await lab.links.plug(NIC, "fd:uplink")
    assert "plug within 60 s" in str(caught.value)
    for target in ("fd", "fd:", "fd:a/b", "fd:a:b"):
        with pytest.raises(BadName):
            await lab.links.plug(NIC, target)
