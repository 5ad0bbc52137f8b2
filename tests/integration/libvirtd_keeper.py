"""Keeps one libvirtd and everything that it started; run by tests/integration/libvirtd.py.

``libvirtd_keeper.py ROOT LIBVIRTD``: enters a mount namespace in which what libvirt writes lies
under ROOT, and starts libvirtd at each SIGUSR1. QEMUs outlive their libvirtd, as they must, but not
this process: it is what they are handed to, and it ends them at SIGTERM or when its parent dies.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

CLONE_NEWNS = 0x00020000
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
QEMU = 64055  # uid and gid of libvirt-qemu on every Debian


def main(root: Path, libvirtd: str) -> None:
    """Do it; returns when all is over."""
    libc = ctypes.CDLL(None, use_errno=True)
    signals = {signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mounts(root)
    (root / "run/keeper").touch()  # ready
    daemon = 0
    try:
        while (number := signal.sigwait(signals)) != signal.SIGTERM:
            if daemon in _reap():
                daemon = 0
            if number == signal.SIGUSR1 and not daemon:
                daemon = _start(libvirtd)
    finally:
        _end_all()


def _mounts(root: Path) -> None:
    """Put what libvirt writes under `root`, and hide the rest of /etc, /var and /run."""
    for name in ("etc", "var"):
        work = root / f".{name}"
        over = f"lowerdir=/{name},upperdir={work}/upper,workdir={work}/work"
        (work / "upper").mkdir(parents=True)
        (work / "work").mkdir()
        _run("mount", "-t", "overlay", "-o", over, "overlay", f"/{name}")
    for name in ("passwd", "group"):
        _add_user(Path("/etc") / name)
    _run("mount", "--rbind", "/run/netns", str(root / "run/netns"))
    _run("mount", "--rbind", str(root / "run"), "/run")
    places = {"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt"}
    for name, place in (places | {"cache": "/var/cache/libvirt"}).items():
        Path(place).mkdir(parents=True, exist_ok=True)
        _run("mount", "--bind", str(root / name), place)


def _add_user(path: Path) -> None:
    """Add what libvirt-daemon-system adds, if that is not installed here."""
    text = path.read_text()
    if "\nlibvirt-qemu:" not in text:
        rest = f"{QEMU}:" if path.name == "group" else f"{QEMU}:{QEMU}::/:/usr/sbin/nologin"
        path.write_text(f"{text}libvirt-qemu:x:{rest}\n")


def _start(libvirtd: str) -> int:
    with Path("/var/log/libvirt/libvirtd.log").open("ab") as log:
        return subprocess.Popen(
            [libvirtd, "-p", "/run/libvirtd.pid"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, []),  # noqa: PLW1509
        ).pid  # fmt: skip


def _reap() -> set[int]:
    """Say which children have ended."""
    gone = set()
    with contextlib.suppress(ChildProcessError):  # there are none
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            gone.add(pid)
    return gone


def _end_all() -> None:
    """Kill all that is left, and those who are handed to us meanwhile."""
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)  # ours until we reap it
        os.waitpid(-1, 0)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
