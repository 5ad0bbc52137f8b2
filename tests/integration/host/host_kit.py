"""What the tests of the host layer share: cables, bridges, captures, frames. No tests."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from linkmgr.host import Fd, Host
from linkmgr.model import OwnerTag

TAG = OwnerTag("web1/net0", "0123abcd")
ETHERTYPE = b"\x88\xb5"  # IEEE 802 local experimental
NIC = "52:54:00:00:00:01"
PEER = "52:54:00:00:00:99"
ETH_P_ALL = 3

_numbers = itertools.count()


def ip(command: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


def _quiet(name: str) -> None:
    ip(f"link set {name} addrgenmode none")
    Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


@contextlib.contextmanager
def veth() -> Iterator[tuple[str, str]]:
    """A cable: two devices, both up, that say nothing by themselves."""
    one = f"ve{next(_numbers)}"
    other = f"{one}p"
    ip(f"link add {one} type veth peer name {other}")
    try:
        for name in (one, other):
            _quiet(name)
            ip(f"link set {name} up")
        yield one, other
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip(f"link del {one}")


@contextlib.contextmanager
def bridge(*ports: str, options: str = "mcast_snooping 0") -> Iterator[str]:
    """A bridge of somebody else, up and silent, with these ports."""
    name = f"br{next(_numbers)}"
    ip(f"link add {name} type bridge {options}")
    try:
        _quiet(name)
        ip(f"link set {name} up")
        for port in ports:
            ip(f"link set {port} master {name}")
        yield name
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip(f"link del {name}")


class Wire:
    """Sees every frame on a device, those that go out too; can send on it."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
        self._socket.bind((name, ETH_P_ALL))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def frames(self) -> list[bytes]:
        """All frames since the last call."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(65536))
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # said once when the device goes
                    raise


def frame(dst: str, src: str, text: str, ethertype: bytes = ETHERTYPE) -> bytes:
    """A frame with a text in it."""
    head = bytes.fromhex(dst.replace(":", "") + src.replace(":", ""))
    return head + ethertype + text.encode().ljust(46, b"\0")


def texts(frames: list[bytes]) -> list[str]:
    """The texts of our frames; other frames are left out."""
    return [f[14:].rstrip(b"\0").decode() for f in frames if f[12:14] == ETHERTYPE]


def read_all(fd: Fd) -> list[bytes]:
    """All frames that wait in a tap, without waiting."""
    found = []
    while True:
        try:
            found.append(os.read(fd.number, 65536))
        except BlockingIOError:
            return found


async def read_within(fd: Fd, seconds: float = 1.0) -> list[str]:
    """Texts that arrive at a tap: returns at the first, or empty when the time is over."""
    for _ in range(int(seconds / 0.002)):
        if found := texts(read_all(fd)):
            return found
        await asyncio.sleep(0.002)
    return []


@contextlib.asynccontextmanager
async def discarding(host: Host, *names: str) -> AsyncIterator[None]:
    """Delete these devices at the end, those that are there."""
    try:
        yield
    finally:
        for name in names:
            await host.delete_device(name)
