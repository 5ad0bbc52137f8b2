"""Which processes have a device open, while others have files open that nobody answers for."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest

from linkmgr.host import Link, held_by
from tests.integration.silent_fuse import silent_fuse

ZERO = os.makedev(1, 5)  #: stands for the number of a macvtap: few have it open


async def test_a_holder_is_found_by_any_node_and_a_silent_file_system_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.host.holders.device_number", lambda *_: ZERO)
    link = Link(
        index=7,
        name="lm0",
        kind="macvtap",
        mac="52:54:00:00:00:01",
        mtu=1500,
        up=True,
        operstate="up",
        carrier=True,
        master=None,
        parent=None,
        alias=None,
        mode=None,
        promisc=False,
        allmulti=False,
    )
    os.mknod(tmp_path / "node", 0o600 | stat.S_IFCHR, ZERO)
    mount = tmp_path / "mount"
    mount.mkdir()
    with silent_fuse(mount):
        silent, node = os.open(mount, os.O_PATH), os.open(tmp_path / "node", os.O_RDONLY)
        with subprocess.Popen(["sleep", "60"], pass_fds=(silent, node)) as holder:  # noqa: ASYNC220
            try:
                os.close(silent)
                os.close(node)
                async with asyncio.timeout(3):
                    assert f"sleep ({holder.pid})" in await held_by(link)
            finally:
                holder.kill()
