"""The least that a service of linkmgr does with systemd; run by test_systemd inside the real unit.

It holds a tap, keeps its fd in the store, and says in /shared/runs what it found at its start. On
its api socket it carries out one line: a Python expression, answered by its value.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from linkmgr.host import Fd
from linkmgr.host.devices.macvtap import make_macvtap
from linkmgr.host.devices.tap import make_tap
from linkmgr.host.netlink.changes import index_of
from linkmgr.model import DirectMode, OwnerTag
from linkmgr.service.systemd.fd_store import SystemdFdStore, passed_fds
from linkmgr.service.systemd.notify import SystemdNotifier, watchdog_interval, watchdog_loop

TUNGETIFF = 0x800454D2
SHARED = Path("/shared")
TAG = OwnerTag("web1/net0", "0123abcd")


def device_of(fd: int) -> str:
    """The name of the device behind a tap's fd."""
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
    return answer[:16].rstrip(b"\0").decode()


def macvtap_on(parent: str) -> int:
    """Make a macvtap, and return its index."""
    fd = make_macvtap(
        "lmmacvtap", index_of(parent), TAG, mode=DirectMode.BRIDGE, mac="52:54:00:00:00:07",
        mtu=1500, up=True,
    )  # fmt: skip
    fd.close()
    return index_of("lmmacvtap")


class Tiny:
    """The state of the service, for the expressions."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.notifier = SystemdNotifier.from_environment()
        self.beats = watchdog_interval()
        passed = passed_fds()
        names = passed.names
        self.fd_store = SystemdFdStore(self.notifier, passed)
        taken = self.fd_store.dup(TAG.id)
        if taken is None:
            self.tap = make_tap("lm0123abcd", TAG, mtu=1500, vnet_hdr=False, up=True)
            self.fd_store.keep(TAG.id, self.tap.number)
        else:
            self.tap = Fd(taken)
        run: dict[str, Any] = {"pid": os.getpid(), "names": names, "taken": taken is not None}
        run["device"] = device_of(self.tap.number)
        with (SHARED / "runs").open("a") as runs:
            runs.write(json.dumps(run) + "\n")
        api = passed.pop("api")
        assert api is not None, f"systemd passed no api socket, only {names}"
        self.api = socket.socket(fileno=api.detach())
        self.api.setblocking(False)
        self.passed = passed  # the fd socket stays open, unused

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry out one line."""
        line = (await reader.readline()).decode()
        try:
            said = repr(eval(line, globals(), {"self": self}))
        except BaseException as error:  # noqa: BLE001 - it is the answer
            said = f"{type(error).__name__}: {error}"
        writer.write(said.encode() + b"\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def reload(self) -> None:
        """Take half a second for it, so that it can be seen."""
        self.notifier.reloading("reading the configuration")
        await asyncio.sleep(0.5)
        self.notifier.ready("read")

    async def main(self) -> None:
        """Serve until SIGTERM."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        reloads: set[asyncio.Task[None]] = set()
        loop.add_signal_handler(signal.SIGHUP, lambda: reloads.add(loop.create_task(self.reload())))
        loop.add_signal_handler(signal.SIGTERM, ended.set)
        # Not start_unix_server(): from Python 3.13 on it removes the path, which is systemd's.
        server = await asyncio.start_server(self.answer, sock=self.api)
        assert self.beats is not None
        beating = loop.create_task(watchdog_loop(self.notifier, self.beats))
        self.notifier.ready("serving")
        await ended.wait()
        self.notifier.stopping()
        beating.cancel()
        server.close()


if __name__ == "__main__":
    asyncio.run(Tiny().main())
