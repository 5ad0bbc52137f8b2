"""What linkmgr has in libvirt's directories: the hook, and AppArmor's rules for guests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import linkmgr
from linkmgr.doctor.result import ProbeResult, Verdict
from linkmgr.text.untrusted import shell_command, shell_word

HOOKS_DIR = Path("/etc/libvirt/hooks")
HOOK_NAME = "50-linkmgr"
_INSTALL = "install linkmgr again ('apt install --reinstall linkmgr', or 'make install')"
_AREA = "libvirt"


async def hook(
    hooks: Path = HOOKS_DIR, root: Path = Path("/"), owner: int = 0
) -> list[ProbeResult]:
    """Look at libvirt's hook, where libvirt is: whether it is there, ours, and known to libvirt.

    :param root: below which are /run and /proc.
    :param owner: uid that alone may write to it: libvirt runs it as root.
    """
    if not _libvirt_is_here(root):
        return []
    return await asyncio.to_thread(_look, hooks, root, owner)


def _libvirt_is_here(root: Path) -> bool:
    sockets = (root / "run/libvirt" / name for name in ("libvirt-sock", "virtqemud-sock"))
    daemons = (shutil.which(name) for name in ("libvirtd", "virtqemud"))
    return any(each.exists() for each in sockets) or any(daemons)


def _look(hooks: Path, root: Path, owner: int) -> list[ProbeResult]:
    path = hooks / "qemu.d" / HOOK_NAME
    try:
        text, found = path.read_bytes(), path.stat()
    except FileNotFoundError:
        what = f"there is no {path}: cables of a domain's XML are plugged a little later"
        return [ProbeResult(_AREA, "hook", Verdict.MISSING, what, _INSTALL)]
    except OSError as error:
        return [
            ProbeResult(_AREA, "hook", Verdict.UNKNOWN, f"{path}: {error.strerror}", "look as root")
        ]
    if found.st_mode & 0o111 != 0o111:
        what = f"{path} is not executable, so libvirt does not run it"
        return [
            ProbeResult(
                _AREA, "hook", Verdict.MISSING, what, f"'chmod 755 {shell_word(str(path))}'"
            )
        ]
    if found.st_uid != owner or found.st_mode & 0o022:
        what = f"{path} can be changed by others than root, and root runs it"
        file = shell_word(str(path))
        mend = f"see what it says, then 'chown root: {file}; chmod 755 {file}'"
        return [ProbeResult(_AREA, "hook", Verdict.MISSING, what, mend)]
    ours = _our_text()
    if ours is None:
        first = ProbeResult(_AREA, "hook", Verdict.WORKS, str(path))
    elif text == ours:
        first = ProbeResult(_AREA, "hook", Verdict.WORKS, f"{path}, as in this version")
    else:
        what = f"{path} is not the hook of this version: an older one, or changed by hand"
        first = ProbeResult(_AREA, "hook", Verdict.MISSING, what, _INSTALL)
    return [first, *_copies(path), _known(path, hooks, root)]


def _copies(path: Path) -> Iterator[ProbeResult]:
    """Copies of the hook that libvirt runs too, such as dpkg leaves when it keeps an edited one."""
    for other in sorted(path.parent.iterdir()):
        if other != path and "linkmgr" in other.name and other.is_file():
            if not os.access(other, os.X_OK) or other.name.startswith("."):
                continue
            what = f"{other} is executable, so libvirt runs it too, at each event"
            todo = f"take from it what {path} lacks, then '{shell_command('rm', str(other))}'"
            yield ProbeResult(_AREA, "hook's copy", Verdict.MISSING, what, todo)


def _our_text() -> bytes | None:
    """The hook as this linkmgr has it: in its installation, or in its checkout."""
    for folder in (Path(sys.prefix), Path(linkmgr.__file__).parents[1]):
        with contextlib.suppress(OSError):
            return (folder / "hooks" / "qemu").read_bytes()
    return None


def _known(path: Path, hooks: Path, root: Path) -> ProbeResult:
    """Whether libvirt has looked for hooks since there is one.

    It does when it starts and when it is reloaded, and keeps only whether there was any, so another
    hook that it has found will do. A reload leaves no trace.
    """
    late = []
    for name, started in _daemons(root):
        found = any(_changed(each) < started for each in (path, *_others(path, hooks)))
        late += [] if found else [name]
    if not late:
        return ProbeResult(
            _AREA, "hook in use", Verdict.WORKS, "libvirt started after it was installed"
        )
    what = f"{late[0]} runs since before it was installed, and may not know of it"
    todo = f"'systemctl reload {shell_word(late[0])}', once; no guest notices"
    return ProbeResult(_AREA, "hook in use", Verdict.UNKNOWN, what, todo)


def _others(path: Path, hooks: Path) -> Iterator[Path]:
    for other in (hooks / "qemu", *sorted(path.parent.iterdir())):
        if other != path and other.is_file() and os.access(other, os.X_OK):
            yield other


def _changed(path: Path) -> float:
    """When a file was put into its place, in seconds since 1970."""
    return path.stat().st_ctime


def _daemons(root: Path) -> Iterator[tuple[str, float]]:
    """The daemons that run hooks of QEMU's domains, and since when they run."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/stat").read_text().splitlines()
        boot = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
        for name in ("libvirtd", "virtqemud"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int((root / f"run/{name}.pid").read_text())
                fields = (root / f"proc/{pid}/stat").read_text().rpartition(")")[2].split()
                yield name, boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")


async def apparmor(
    folder: Path = Path("/etc/apparmor.d"),
    switch: Path = Path("/sys/module/apparmor/parameters/enabled"),
) -> list[ProbeResult]:
    """Look whether AppArmor lets guests dial the service and use macvtaps."""
    abstraction = folder / "abstractions/libvirt-qemu"
    if _read(switch).strip() != "Y" or not abstraction.exists():
        return []  # guests are not confined by it
    rules = folder / "abstractions/libvirt-qemu.d/linkmgr"
    local = folder / "local/abstractions/libvirt-qemu"
    if not rules.exists():
        what = f"there is no {rules}: guests cannot use macvtaps, nor dial if prepared long ago"
        return [ProbeResult(_AREA, "AppArmor", Verdict.MISSING, what, _INSTALL)]
    texts = (_rules(_read(each)) for each in (abstraction, local))
    if not any("<abstractions/libvirt-qemu.d" in text for text in texts):
        what = f"guests' profiles do not include {rules}"
        todo = f"add the line 'include if exists <abstractions/libvirt-qemu.d/linkmgr>' to {local}"
        return [ProbeResult(_AREA, "AppArmor", Verdict.MISSING, what, todo)]
    return [ProbeResult(_AREA, "AppArmor", Verdict.WORKS, f"guests' profiles include {rules}")]


def _rules(text: str) -> str:
    """A profile without its comments; ``#include`` is none."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line[:1] != "#" or line.startswith("#include"))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
