"""Which processes have a device open, while others have files open that nobody answers for."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from linkmgr.host import NetDevice, fd_holders
from tests.integration.silent_fuse import silent_fuse

ZERO = os.makedev(1, 5)  #: stands for the number of a macvtap: few have it open
TUN = os.makedev(10, 200)
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x2, 0x1000


def made_up(kind: str) -> NetDevice:
    return NetDevice(
        index=7, name="lm0", kind=kind, mac="52:54:00:00:00:01", mtu=1500, up=True, operstate="up",
        carrier=True, master=None, parent=None, alias=None, mode=None, promisc=False,
        allmulti=False,
    )  # fmt: skip


async def test_a_holder_of_a_tap_is_found_whatever_path_it_was_opened_by(tmp_path: Path) -> None:
    os.mknod(tmp_path / "tun", 0o600 | stat.S_IFCHR, TUN)
    tap = os.open(tmp_path / "tun", os.O_RDWR)
    other = os.open(tmp_path / "tun", os.O_RDWR)  # of no device
    request = struct.pack("16sH22x", b"lm0", IFF_TAP | IFF_NO_PI)
    fcntl.ioctl(tap, TUNSETIFF, request)
    with (
        subprocess.Popen(["sleep", "60"], pass_fds=(tap,)) as holder,  # noqa: ASYNC220 - it starts at once
        subprocess.Popen(["sleep", "60"], pass_fds=(other,)) as another,  # noqa: ASYNC220 - it starts at once
    ):
        try:
            os.close(tap)
            os.close(other)
            assert await fd_holders(made_up("tun")) == [f"sleep ({holder.pid})"]
        finally:
            holder.kill()
            another.kill()


async def test_a_holder_is_found_by_any_node_and_a_silent_file_system_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.host.fds.holders.device_number", lambda *_: ZERO)
    device = made_up("macvtap")
    os.mknod(tmp_path / "node", 0o600 | stat.S_IFCHR, ZERO)
    mount = tmp_path / "mount"
    mount.mkdir()
    with silent_fuse(mount):
        silent, node = os.open(mount, os.O_PATH), os.open(tmp_path / "node", os.O_RDONLY)
        with subprocess.Popen(["sleep", "60"], pass_fds=(silent, node)) as holder:  # noqa: ASYNC220 - it starts at once
            try:
                os.close(silent)
                os.close(node)
                async with asyncio.timeout(3):
                    assert f"sleep ({holder.pid})" in await fd_holders(device)
            finally:
                holder.kill()
