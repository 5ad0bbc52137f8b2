"""A machine: a real systemd as process 1, in namespaces and a root of its own.

The root is a minimal one, by default of this Debian (make own-root), and whatever is laid over it,
all read-only, with a tmpfs on top. Nothing of the host can be written from inside. All of it goes
with its process 1.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import pytest

from linkmgr.testing.process import Child, Result, execute, finish, until

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]


class Machine:
    """A machine that has booted.

    :param pid: of its systemd, as seen from here.
    :param shared: a directory of this side, ``/shared`` inside.
    """

    def __init__(self, pid: int, shared: Path) -> None:
        self.pid = pid
        self.shared = shared

    async def run(self, command: str, *, check: bool = True, timeout: float = 20.0) -> Result:
        """Run a shell command inside, as root.

        :raise ProcessFailed: its status is not 0, and `check` is set.
        :raise TimeoutError: it took longer than `timeout` seconds.
        """
        # --root: in a chroot, where the tests may run, the root of the namespace is another one.
        inside = ["nsenter", "--target", str(self.pid), "--all", "--root", "--wd", "--"]
        words = [
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            "sh",
            "-c",
            command,
        ]
        return await execute([*inside, *words], timeout=timeout, check=check)

    async def says(self, command: str) -> str:
        """Run a command inside and return what it says, without the final newline."""
        return (await self.run(command)).output.rstrip("\n")

    async def property(self, unit: str, name: str) -> str:
        """A property of a unit, as ``systemctl show`` has it."""
        return await self.says(f"systemctl show --value -p {name} {unit}")

    async def journal(self, unit: str) -> str:
        """What a unit said, and what systemd said of it."""
        return await self.says(f"journalctl --no-pager -q -o short-monotonic -u {unit}")


@asynccontextmanager
async def boot(workdir: Path, *layers: Path, root: Path | None = None) -> AsyncIterator[Machine]:
    """Boot a machine from a minimal Debian and `layers`, the first one on top; kill it at the end.

    :param root: the Debian, as packaging/root.sh makes it; by default this one.
    """
    if (why := refused_here()) is not None:
        pytest.skip(f"no machine can be booted here: {why}")
    root, target = (root, root.name) if root else (own_root(), "own-root")
    if not (root / ".complete").exists():
        raise FileNotFoundError(f"there is no root in {root}: make {target}")
    lower = ":".join(str(layer) for layer in (*layers, root))
    made = [layer.parent for layer in layers if layer.name == "upper"]
    with _held(*made, root), _cgroup(workdir) as cgroup, tempfile.TemporaryFile() as output:
        argv: Sequence[str] = [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc",
            str(HERE / "machine.sh"), str(workdir), str(cgroup), lower,
        ]  # fmt: skip
        child = Child(argv, output=output)
        first: int | None = None
        try:
            first = await until(lambda: _first(child), timeout=5, what="the machine's process 1")
            assert first is not None
            machine = Machine(first, workdir / "shared")
            await until(lambda: _booted(machine, child), timeout=60, what="the machine's boot")
            yield machine
        except BaseException as error:
            output.seek(0)
            error.add_note(f"the machine said: {output.read().decode(errors='replace')[-2000:]}")
            raise
        finally:
            if first is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(first, signal.SIGKILL)  # everything inside ends with it
            await finish(child.end())


def own_root() -> Path:
    """Return the root of the Debian that this is: what was built here is for its Python."""
    return CHECKOUT / "build" / suite("own")


@cache
def suite(which: str) -> str:
    """The name of a Debian: this machine's ``own``, or the ``other`` one that is tried, too."""
    command = [str(CHECKOUT / "scripts/debian.sh"), which]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@cache
def refused_here() -> str | None:
    """Why the kernel or a container around us does not let a machine be made; ``None``: it does."""
    script = """
        mount -t tmpfs tmpfs "$0" && cd "$0" && mkdir lower upper work root cgroup &&
        mount -t cgroup2 cgroup2 cgroup && mkdir cgroup/linkmgr-try-$$ &&
        rmdir cgroup/linkmgr-try-$$ &&
        mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay root &&
        mount -t proc proc root
    """
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--net", "--cgroup", "sh", "-c", script,
             folder],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    return None if tried.returncode == 0 else tried.stderr.strip() or f"status {tried.returncode}"


async def _first(child: Child) -> int | None:
    found = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    return int(found[0]) if found else None


async def _booted(machine: Machine, child: Child) -> bool:
    if child.status is not None:
        raise ChildProcessError(f"the machine ended with status {child.status}")
    comm = Path(f"/proc/{machine.pid}/comm").read_text().strip()
    if comm != "systemd":
        return False  # still the script: it must not be entered
    done = await machine.run("systemctl is-system-running", check=False)
    return done.output.strip() in ("running", "degraded")


@contextlib.contextmanager
def _held(*roots: Path) -> Iterator[None]:
    """Keep scripts from making these roots anew meanwhile (scripts/roots.sh)."""
    with contextlib.ExitStack() as stack:
        for root in roots:
            lock = stack.enter_context(root.with_name(f"{root.name}.lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def _cgroup(workdir: Path) -> Iterator[Path]:
    """A cgroup of the unified hierarchy, for the machine to be in; removed with all below it."""
    top = workdir / "cgroup"
    top.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", str(top)], check=True)
    own = top / f"linkmgr-test-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        own.mkdir()
        try:
            yield own
        finally:
            _remove(own)
    finally:
        subprocess.run(["umount", str(top)], check=True)


def _remove(cgroup: Path) -> None:
    for folder in sorted(cgroup.rglob("*/"), key=lambda path: -len(path.parts)):
        if folder.is_dir():
            folder.rmdir()
    cgroup.rmdir()
