"""Versions that linkmgr's tests have passed on, and what a version found here is, then.

docs/compatibility.md says what differs on each. A version that is newer than those is never a
failure.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from linkmgr.doctor.result import ProbeResult, Verdict, run_program

Version = tuple[int, ...]

#: What the tests ran on, oldest first: Debian 12, Debian 13, and sid, which has no number.
TESTED: dict[str, tuple[Version, ...]] = {
    "Debian": ((12,), (13,)),
    "QEMU": ((7, 2), (10, 0), (11, 1)),
    "libvirt": ((9, 0), (11, 3), (12, 8)),
    "Python": ((3, 11), (3, 13), (3, 14)),
    "systemd": ((252,), (257,), (262,)),
}

#: What linkmgr cannot do without: QEMU 4.2 announces one NIC alone, libvirt 8.2 has qemu:override.
OLDEST: dict[str, Version] = {"QEMU": (4, 2), "libvirt": (8, 2), "Python": (3, 11)}

_RELEASE = Path("/etc/os-release")


def read(text: str) -> Version | None:
    """The first version number in a program's words."""
    found = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(int(each) for each in found[0].split(".")) if found else None


def is_too_old(name: str, version: Version) -> bool:
    """Whether linkmgr cannot work with it."""
    return name in OLDEST and version < OLDEST[name]


def tested(name: str, version: Version) -> str:
    """Whether a version was tested, in words."""
    known = TESTED[name]
    found = version[: len(known[0])]
    if found in known:
        return "tested"
    if found > known[-1]:
        return "not tried yet, should work"
    return f"not tested, should work ({_listed(known)} are)"


async def host(release: Path = _RELEASE) -> list[ProbeResult]:
    """Name the distribution, Python and systemd, and say whether they were tested."""
    python = platform.python_version()
    results = [
        _distribution(release),
        ProbeResult("host", "Python", Verdict.WORKS, f"{python}: {_tested('Python', python)}"),
    ]
    status, said = await run_program(["systemctl", "--version"])
    version = re.search(r"systemd (\d+)", said)
    if status or version is None:
        what = "is not here; 'linkmgr serve' runs without it"
        return [*results, ProbeResult("host", "systemd", Verdict.MISSING, what, used=False)]
    what = f"{version[1]}: {_tested('systemd', version[1])}"
    return [*results, ProbeResult("host", "systemd", Verdict.WORKS, what)]


def _distribution(release: Path) -> ProbeResult:
    try:
        text = release.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ProbeResult("host", "distribution", Verdict.UNKNOWN, f"there is no {release}")
    said = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', text, re.MULTILINE))
    name = said.get("PRETTY_NAME") or said.get("ID") or "unnamed"
    version = read(said.get("VERSION_ID", ""))
    if said.get("ID") != "debian":
        what = f"{name}: not tested; what counts are the versions of QEMU, libvirt and systemd"
    elif version is None:
        what = f"{name}: tested as it was on one day; what counts are the versions"
    else:
        what = f"{name}: {tested('Debian', version)}"
    return ProbeResult("host", "distribution", Verdict.WORKS, what)


def _tested(name: str, text: str) -> str:
    version = read(text)
    return tested(name, version) if version else "not tested"


def _listed(known: tuple[Version, ...]) -> str:
    words = [".".join(map(str, each)) for each in known]
    return f"{', '.join(words[:-1])} and {words[-1]}"
