"""libvirt's files about the domains that run, by which their QEMUs are known when they dial."""

from __future__ import annotations

import asyncio
import os
import pwd
from itertools import islice
from pathlib import Path

from linkmgr.doctor.result import ProbeResult, Verdict
from linkmgr.libvirt.monitor.peer_identity import RUN_DIR, PeerIdentifier
from linkmgr.libvirt.xml.status_file import only_root_writes
from linkmgr.text.untrusted import shell_word

_AREA, _NAME = "libvirt", "guests' files"
_MAX_STATUS_FILES = 1000  # that are looked at; each takes some ms
_MAX_SHOWN = 5  # that are told of, each on a line


async def guest_files(run_dir: Path = RUN_DIR) -> list[ProbeResult]:
    """Look whether each running domain's QEMU would be known by root's files if it dialled now."""
    return await asyncio.to_thread(_look, run_dir)


def _look(run_dir: Path) -> list[ProbeResult]:
    try:
        there, above = run_dir.stat(), run_dir.parent.stat()
        names = sorted(each.stem for each in islice(run_dir.glob("*.xml"), _MAX_STATUS_FILES))
    except FileNotFoundError:
        return []
    except OSError as error:
        return [
            ProbeResult(
                _AREA, _NAME, Verdict.UNKNOWN, f"{run_dir}: {error.strerror}", "look as root"
            )
        ]
    if not only_root_writes(above):
        what = f"others than root may put another directory in the place of {run_dir}"
        above_it = shell_word(str(run_dir.parent))
        todo = f"'chown root: {above_it}; chmod go-w {above_it}'"
        return [ProbeResult(_AREA, _NAME, Verdict.MISSING, what, todo)]
    if not all(os.access(each, os.R_OK) for each in (run_dir, *run_dir.glob("*.xml"))):
        what = f"{run_dir}: root's files, which {_user(os.geteuid())} may not read"
        return [ProbeResult(_AREA, _NAME, Verdict.UNKNOWN, what, "look as root")]
    identifier = PeerIdentifier(run_dir)
    doubts = [
        (name, why) for name in names if (why := identifier.untrusted_reason(name)) is not None
    ]
    results = [_doubtful(run_dir, name, why) for name, why in doubts[:_MAX_SHOWN]]
    if len(doubts) > _MAX_SHOWN:
        what = f"{len(doubts) - _MAX_SHOWN} more are of no use either"
        results.append(ProbeResult(_AREA, _NAME, Verdict.MISSING, what, "mend the others first"))
    if results:
        return results
    what = f"{run_dir}: the QEMU of each running domain ({len(names)}) can be known by them"
    if not only_root_writes(there):  # no fault, but worth to be known
        what += (
            f"; the directory is {_user(there.st_uid)}'s, as libvirt 11 makes it, its files root's"
        )
    return [ProbeResult(_AREA, _NAME, Verdict.WORKS, what)]


def _doubtful(run_dir: Path, name: str, why: str) -> ProbeResult:
    what = f"by {run_dir}/{name}.xml no QEMU is known when it dials: {why}"
    todo = (
        "'systemctl restart libvirtd' (or virtqemud) has libvirt write it anew, which no guest "
        "notices; if others than root wrote there, find out who, and start that guest anew"
    )
    return ProbeResult(_AREA, _NAME, Verdict.MISSING, what, todo)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
