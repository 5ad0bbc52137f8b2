#!/usr/bin/env python3
"""Print the files of linkmgr between the HTTP route of a plug and the first line of its swap.

    python -m scripts.way_of_a_plug

Counted while the real service runs ``linkmgr plug web1/net0 blue`` for a real QEMU without libvirt,
in namespaces of its own, for which it needs root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from linkmgr import cli, hub_args
from linkmgr.testing import enter_sandbox
from scripts.way import Way

LINKMGR = Path(__file__).resolve().parent.parent / "linkmgr"
NO_LIBVIRT = '[libvirt]\nuri = ""\nrun_dir = ""\n'
#: The least machine that has a PCI NIC; it stays paused.
QEMU = "-S -daemonize -display none -nodefaults -accel tcg -m 32 -machine pc"
MAC = "52:54:00:12:00:01"
PATIENCE_S = 60.0


def route(file: str, function: str) -> bool:
    """Whether a function is the route of a plug."""
    return file.startswith("service/") and function == "plug"


def swap(file: str, function: str) -> bool:
    """Whether a function is the swap itself."""
    return file.partition("/")[0] == "swap" and function == "plug"


def plug(folder: Path) -> None:
    """Have the service plug the NIC of a guest, then end it."""
    try:
        _wait(folder)
        monitor = folder / "web1.qmp"
        qemu = os.environ.get("LINKMGR_QEMU") or "qemu-system-x86_64"
        for command in (
            ["ip", "link", "add", "br-blue", "up", "type", "bridge"],
            [*qemu.split(), *QEMU.split(), "-pidfile", f"{folder}/pid",
             "-qmp", f"unix:{monitor},server=on,wait=off", *hub_args("net0", mac=MAC)],
            _linkmgr(folder, "network", "create", "blue", "bridge", "bridge=br-blue"),
            _linkmgr(folder, "vm", "add", "web1", str(monitor)),
            _linkmgr(folder, "plug", "web1/net0", "blue"),
        ):  # fmt: skip
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE_S)
    finally:
        if (pid := folder / "pid").exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGTERM)


def _wait(folder: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while subprocess.run(
        _linkmgr(folder, "vm", "list"), capture_output=True, check=False
    ).returncode:
        if time.monotonic() > until:
            raise TimeoutError("the service does not answer")
        time.sleep(0.2)


def _linkmgr(folder: Path, *words: str) -> list[str]:
    return [
        str(Path(sys.executable).with_name("linkmgr")),
        "--socket",
        f"{folder}/api.sock",
        *words,
    ]


def main() -> int:
    """Run it, and print what was on the way; return the exit status."""
    enter_sandbox()
    way = Way(LINKMGR, route, swap)
    with tempfile.TemporaryDirectory(prefix="linkmgr-way-") as name:
        folder = Path(name)
        (folder / "linkmgr.toml").write_text(NO_LIBVIRT)
        files = ["--state-dir", f"{folder}/state", "--config", f"{folder}/linkmgr.toml"]
        sys.argv = ["linkmgr", "--socket", f"{folder}/api.sock", "serve", *files]
        guest = threading.Thread(target=plug, args=(folder,))
        guest.start()
        threading.setprofile(way)
        sys.setprofile(way)
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code
        finally:
            sys.setprofile(None)
        guest.join()
    if not way.ended:
        print(f"no plug came to its swap; the service ended with {status}", file=sys.stderr)
        return 1
    for what, found in (
        ("files", [f"{file}.py: {function}" for file, function in way.files.items()]),
        ("tasks", way.tasks),
        ("locks", _counted(way.locks)),
        ("locks in the swap", _counted(way.later_locks)),
    ):
        print(f"{len(found)} {what}", *found, sep="\n  ")
    return 0


def _counted(locks: list[str]) -> list[str]:
    return [f"{by}, {times} times" if times > 1 else by for by, times in Counter(locks).items()]


if __name__ == "__main__":
    sys.exit(main())
