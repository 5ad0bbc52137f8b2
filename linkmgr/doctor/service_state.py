"""Who may do what here, whether the service answers, and whether its configuration is right."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from linkmgr.client.diagnose import diagnose, health
from linkmgr.client.membership import groups_since_login
from linkmgr.doctor.result import ProbeResult, Verdict
from linkmgr.text.untrusted import shell_word

if TYPE_CHECKING:
    from linkmgr.service.config.schema import LibvirtSection

GROUP = "linkmgr"
SERVICE_TIMEOUT_S = 3.0  # seconds
_CAP_NET_ADMIN = 12  # linux/capability.h
_START = "start it: 'systemctl start linkmgr', or 'linkmgr serve' as root"


async def rights() -> list[ProbeResult]:
    """Look at what this user may do."""
    name = _user()
    results = [_group()]
    if os.geteuid() == 0:
        admin = bool(_capabilities() >> _CAP_NET_ADMIN & 1)
        results.append(
            ProbeResult("rights", "CAP_NET_ADMIN", Verdict.WORKS, "root has it", needed=True)
            if admin
            else ProbeResult(
                "rights",
                "CAP_NET_ADMIN",
                Verdict.MISSING,
                "this root may not change network devices, as in most containers",
                "give the container CAP_NET_ADMIN, or run linkmgr on the host",
                needed=True,
            )
        )
    what = f"{name} may change cables"
    if os.geteuid() == 0 or _in_group():
        return [*results, ProbeResult("rights", "changes", Verdict.WORKS, what)]
    todo = (
        f"log in again, or 'newgrp {GROUP}': {name} is a member since this login"
        if GROUP in groups_since_login()
        else f"'usermod -aG {GROUP} {name}' as root, then log in again"
    )
    return [
        *results,
        ProbeResult(
            "rights",
            "changes",
            Verdict.MISSING,
            f"{name} may only look, unless a rule says so",
            todo,
        ),
    ]


def _group() -> ProbeResult:
    try:
        members = grp.getgrnam(GROUP).gr_mem
    except KeyError:
        what, todo = (
            f"there is no group {GROUP}: only root changes cables",
            f"'groupadd -r {GROUP}'",
        )
        return ProbeResult("rights", "group", Verdict.MISSING, what, todo)
    what = f"{GROUP}: {', '.join(members) or 'no members beside root'}"
    return ProbeResult("rights", "group", Verdict.WORKS, what)


def _in_group() -> bool:
    try:
        return grp.getgrnam(GROUP).gr_gid in os.getgroups()
    except KeyError:
        return False


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


async def service(path: Path) -> list[ProbeResult]:
    """Ask the service whether it is well."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        what = f"{path}: {error.strerror}"
        return [ProbeResult("service", "socket", Verdict.MISSING, what, _START, needed=True)]
    if not stat.S_ISSOCK(mode):
        what, todo = f"{path} is not a socket", "name another one with --socket"
        return [ProbeResult("service", "socket", Verdict.MISSING, what, todo, needed=True)]
    there = ProbeResult("service", "socket", Verdict.WORKS, str(path), needed=True)
    try:
        async with asyncio.timeout(SERVICE_TIMEOUT_S):
            version = await health(path)
    except PermissionError:
        what, todo = (
            "this user may not connect",
            f"'chmod 666 {shell_word(str(path))}': the service decides itself",
        )
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        silent = isinstance(error, TimeoutError)
        what = (
            f"does not answer within {SERVICE_TIMEOUT_S:.0f} s"
            if silent
            else f"does not answer: {error}"
        )
        todo = "look at 'journalctl -u linkmgr'" if silent else _START
        if (found := await diagnose(path)) is not None:
            what, todo = f"{what}: {found.why}", found.hint
    else:
        return [
            there,
            ProbeResult("service", "answer", Verdict.WORKS, f"linkmgr {version}", needed=True),
        ]
    return [there, ProbeResult("service", "answer", Verdict.MISSING, what, todo, needed=True)]


async def configuration(path: Path, *, asked: bool) -> list[ProbeResult]:
    """Check a configuration file.

    :param asked: whether it was named, so that it has to be there.
    """
    if not asked and not path.exists():
        what = f"there is no {path}; the service does without"
        return [ProbeResult("configuration", "file", Verdict.WORKS, what)]
    from linkmgr.errors import LinkmgrError
    from linkmgr.service.config.schema import load_config, looks_cut_off

    try:
        found = await asyncio.to_thread(load_config, path)
    except LinkmgrError as error:
        todo = error.hint or "mend the file"
        return [
            ProbeResult("configuration", "file", Verdict.MISSING, error.what, todo, needed=True)
        ]
    if cut := await asyncio.to_thread(looks_cut_off, path):
        todo = "see that it is whole, and end its last line"
        return [ProbeResult("configuration", "file", Verdict.MISSING, cut, todo)]
    networks = ", ".join(found.networks) or "none"
    what = f"{path} is right; networks: {networks}"
    return [ProbeResult("configuration", "file", Verdict.WORKS, what, needed=True)]


async def libvirt_section(path: Path) -> LibvirtSection:
    """What a configuration file says of libvirt; the defaults when the file is of no use."""
    from linkmgr.errors import LinkmgrError
    from linkmgr.service.config.schema import LibvirtSection, load_config

    if os.access(path, os.R_OK):
        with contextlib.suppress(LinkmgrError):
            return (await asyncio.to_thread(load_config, path)).libvirt
    return LibvirtSection()
