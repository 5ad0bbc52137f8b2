"""A network of our own for a test: nothing in it outlives the process, not even after kill -9."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

from linkmgr.testing.guest import images
from linkmgr.testing.process import Child, ProcessFailed, Result, execute, finish
from linkmgr.testing.station import Job, Station

__all__ = ["NetnsPeer", "SandboxError", "enter_sandbox", "in_sandbox"]

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
NETNS = Path("/run/netns")  # where ip-netns(8) keeps named namespaces

_entered_by: int | None = None


class SandboxError(Exception):
    """This process cannot have, or does not have, a network of its own."""


def in_sandbox() -> bool:
    """Tell whether this process has entered the sandbox, or was forked from one that has."""
    return _entered_by is not None


def enter_sandbox() -> None:
    """Move this process into a network and a mount namespace of its own. Idempotent.

    Afterwards there is only a loopback interface, which is up, /sys/class/net shows this namespace,
    and named namespaces are private. Links, namespaces and mounts go away with the last process
    inside. It cannot be left.

    :raise SandboxError: not root, or threads run already (they would stay outside).
    """
    global _entered_by  # noqa: PLW0603 - a namespace is a property of the process
    if in_sandbox():
        return
    if os.geteuid() != 0:
        raise SandboxError("a network namespace of our own needs root")
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - no Path is wanted
    if threads > 1:
        raise SandboxError(
            f"enter_sandbox() comes first, but this process already has {threads} threads:"
            " all but one would stay in the old network"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS):
        number = ctypes.get_errno()
        raise SandboxError(f"unshare: {os.strerror(number)}; is this a container without rights?")
    _entered_by = os.getpid()
    NETNS.mkdir(exist_ok=True)
    for command in (
        "mount --make-rprivate /",
        "mount -t sysfs sysfs /sys",  # a sysfs shows the network namespace that it was mounted in
        "mount -t tmpfs -o mode=755 tmpfs /run/netns",
        "ip link set lo up",
    ):
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SandboxError(f"{command}: {done.stderr.strip()}")


class NetnsPeer(Station):
    """A machine on a network: a named namespace with one cable out of it; ``async with`` owns both.

    The inside end is ``eth0`` with ``addresses`` ("10.1.0.1/24", "fd00:1::1/64"). The outside end,
    ``ifname_outside``, is up, says nothing by itself, and is the caller's to attach: as a bridge
    port, or as the parent of a macvtap. With ``dhcp_range`` (first and last address) the peer
    leases addresses for ``lease_seconds``, and names its own address as the router.
    """

    def __init__(
        self,
        name: str,
        ifname_outside: str,
        *,
        addresses: Sequence[str] = (),
        dhcp_range: tuple[str, str] | None = None,
        lease_seconds: int = 120,
        mac: str | None = None,
    ) -> None:
        self.name = name
        self.ifname = "eth0"
        self.ifname_outside = ifname_outside
        self.addresses = tuple(addresses)
        self.busybox = str(images() / "busybox")
        self.frames = str(images() / "frames")
        self.wakeups = 20_000  # it is not emulated
        self.iperf3 = str(images() / "iperf3")
        self._dhcp_range = dhcp_range
        self._lease_seconds = lease_seconds
        self._mac = mac
        self._undo = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        if not in_sandbox():
            raise SandboxError("a peer makes links and namespaces: call enter_sandbox() first")
        try:
            await self._build()
        except BaseException:
            await finish(self._undo.aclose())
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await finish(self._undo.aclose())

    async def run(self, command: str, *, timeout: float = 10.0, check: bool = False) -> Result:
        """Run a shell command in the namespace to its end, at most ``timeout`` seconds.

        :raise ProcessFailed: its status is not 0, and ``check`` is set.
        :raise TimeoutError: it took too long, and was killed.
        """
        result = await execute(self._inside("sh", "-c", command), timeout=timeout, check=False)
        if check and result.status:
            raise ProcessFailed(self.name, command, result)
        return result

    async def spawn(self, command: str) -> Job:
        """Start one program with its arguments in the namespace; it ends with the peer."""
        job = _PeerJob(self._inside(*shlex.split(command)))
        self._undo.push_async_callback(job.stop)
        return job

    def _inside(self, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    async def _build(self) -> None:
        await execute(["ip", "netns", "add", self.name])
        self._undo.push_async_callback(execute, ["ip", "netns", "del", self.name], check=False)
        outside = self.ifname_outside
        await execute(
            shlex.split(f"ip link add {outside} type veth peer name eth0 netns {self.name}")
        )
        # The link goes first, at once: a namespace is taken apart some time after it is deleted.
        self._undo.push_async_callback(execute, ["ip", "link", "del", outside], check=False)
        await execute(shlex.split(f"ip link set {outside} addrgenmode none up"))
        quick = "echo 0 >/proc/sys/net/ipv6/conf/eth0"  # no duplicate address detection
        commands = [f"{quick}/accept_dad", f"{quick}/dad_transmits", "ip link set lo up"]
        commands += [f"ip link set eth0 address {self._mac}"] if self._mac else []
        commands += ["ip link set eth0 up"]
        commands += [f"ip addr add {address} dev eth0" for address in self.addresses]
        await self.run("\n".join(["set -e", *commands]), check=True)
        if self._dhcp_range is not None:
            await self._serve_dhcp(*self._dhcp_range)

    async def _serve_dhcp(self, first: str, last: str) -> None:
        own = next(
            interface
            for interface in map(ipaddress.ip_interface, self.addresses)
            if ipaddress.ip_address(first) in interface.network
        )
        configuration = (
            f"start {first}\nend {last}\ninterface eth0\n"
            "pidfile /run/netns/pid\nlease_file /run/netns/leases\n"
            f"option subnet {own.netmask}\noption router {own.ip}\n"
            f"option lease {self._lease_seconds}\nmin_lease {self._lease_seconds}\n"
        )
        # ip-netns(8) gives every program mounts of its own: the server's files are gone with it.
        # -a: ask for 1 ms, not for 2 s, whether somebody else has the address that is offered.
        script = (
            'mount -t tmpfs tmpfs /run/netns && printf %s "$1" >/run/netns/conf &&'
            f" exec {shlex.quote(self.busybox)} udhcpd -f -a 1 /run/netns/conf"
        )
        await self.spawn(shlex.join(["sh", "-c", script, "sh", configuration]))


class _PeerJob(Job):
    def __init__(self, argv: Sequence[str]) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - until stop()
        self._said: str | None = None  # all of it, once the file is closed
        try:
            self._child = Child(argv, output=self._file)
        except BaseException:
            self._file.close()
            raise

    async def output(self) -> str:
        if self._said is not None:
            return self._said
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode(errors="backslashreplace")

    async def wait(self, timeout: float = 10.0) -> Result:
        return Result(await self._child.wait(timeout), await self.output())

    async def stop(self) -> Result:
        status = await self._child.end()
        self._said = await self.output()
        self._file.close()
        return Result(status, self._said)
