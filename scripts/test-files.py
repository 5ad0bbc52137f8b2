#!/usr/bin/env python3
"""Run the tests file by file, three at a time: most of their time is waiting.

    test-files.py [--jobs N] [--unit] [--next QEMU] [--suite SUITE] [--report FILE] [FILE...]

Each file is a pytest process with network namespaces of its own. What a file says is printed when
it has ended, all of it if something failed. With ``--unit`` the unit tests are some more of these
processes. With ``--next`` the tests marked ``next_qemu`` run once more, on that QEMU; with
``--suite`` those marked ``newer_debian``, in the root of that Debian (scripts/in-root.sh). The
slowest files go first, as an earlier run noted them in build/, or as they were when this was
written. ``--report`` writes what ran on which versions and what differs there, for
scripts/compatibility.py; it does not replace the report of a run of more files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTES = ROOT / "build" / "test-seconds.json"
IN_ROOT = ROOT / "scripts" / "in-root.sh"
UNIT = ROOT / "tests" / "unit"
#: Processes that share the unit tests. As one they were the longest job, which nothing ran beside
#: when it was begun late.
UNIT_PARTS = 3
#: The compiled modules of all processes: compiling them anew cost each a second or two of processor
#: time, and some tests start a hundred. Apart from the sources, which `make install` copies.
COMPILED = ROOT / "build" / "compiled"
NOTHING_COLLECTED = 5
DIFFERENCES = "LINKMGR_DIFFERENCES"  # as tests/differences.py has it
SLOWEST = ("swaps", "restart_killed", "lifecycle_matrix", "hostile", "unit", "failures_monitor",
           "openapi", "deb", "systemd", "prepare", "domain_cables", "guest_image")  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What came of a job.

    :param differences: what its tests noted, as tests/differences.py writes it.
    """

    status: int
    said: str
    seconds: float
    differences: tuple[dict[str, str], ...] = ()

    @property
    def last(self) -> str:
        """The line with pytest's sum."""
        return self.said.strip().rpartition("\n")[2]

    def counts(self) -> dict[str, Any]:
        """How many tests passed, failed and were skipped, and why these were."""
        found: dict[str, Any] = {
            kind: int(count)
            for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", self.last)
        }
        reasons = {
            f"{where}: {why}": int(count)
            for count, where, why in re.findall(
                r"^SKIPPED \[(\d+)\] ([^\s:]+)(?::\d+)?: (.*)$", self.said, re.MULTILINE
            )
        }
        return found | ({"reasons": reasons} if reasons else {})


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Add the counts of one part to another's."""
    both = {**one, **other}
    for key in one.keys() & other.keys():
        both[key] = added(one[key], other[key]) if key == "reasons" else one[key] + other[key]
    return both


@dataclass(frozen=True)
class Job:
    """One file on one QEMU, here or on another Debian; or a part of the unit tests."""

    file: Path
    qemu: str | None = None
    suite: str | None = None
    part: int | None = None

    def __str__(self) -> str:
        part = "" if self.part is None else f" (part {self.part + 1} of {UNIT_PARTS})"
        return f"{self.name}{part}"

    @property
    def name(self) -> str:
        """What it is called in a report, which does not tell parts apart."""
        on = " (next QEMU)" if self.qemu else f" ({self.suite})" if self.suite else ""
        return f"{self.file.relative_to(ROOT)}{on}"

    @property
    def files(self) -> list[str]:
        """What pytest is given."""
        if self.part is None:
            return [str(self.file)]
        return [str(file) for file in sorted(self.file.rglob("test_*.py"))[self.part :: UNIT_PARTS]]

    def guess(self) -> float:
        """Seconds that it takes, so that the slow ones go before all that are not known."""
        name = self.file.stem.removeprefix("test_")
        return 1000 - SLOWEST.index(name) if name in SLOWEST else 60

    @property
    def is_here(self) -> bool:
        """Whether it runs on the versions that a report names."""
        return self.qemu is None and self.suite is None

    def run(self) -> Ended:
        """Run it to its end."""
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command = [sys.executable, *words, *self.files]
        environment = {"PYTHONPYCACHEPREFIX": str(COMPILED), **os.environ}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if self.suite:
            command = [str(IN_ROOT), self.suite, "python", *words, "-m", "newer_debian",
                       str(self.file.relative_to(ROOT))]  # fmt: skip
        if self.qemu:
            command += ["-m", "next_qemu"]
            environment["LINKMGR_QEMU"] = self.qemu
        start = time.monotonic()
        # A folder of its own: each pytest shuts others out of the one that it would take.
        with tempfile.TemporaryDirectory(prefix="lm-test-") as folder:
            Path(folder).chmod(0o755)
            if self.is_here:
                environment[DIFFERENCES] = folder
            done = subprocess.run(
                command if self.suite else [*command, f"--basetemp={folder}/t"],
                cwd=ROOT, env=environment, text=True, errors="replace", check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            noted = [
                json.loads(line)
                for file in sorted(Path(folder).glob("*.jsonl"))
                for line in file.read_text().splitlines()
            ]
        seconds = time.monotonic() - start
        return Ended(done.returncode, done.stdout, seconds, tuple(noted))


def versions() -> dict[str, str]:
    """What the tests ran on."""

    def said(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "none"
        found = re.search(r"\d+(\.\d+)+|(?<=systemd )\d+", done.stdout)
        return found[0] if found else "none"

    return {
        "Debian": Path("/etc/debian_version").read_text().strip(),
        "Python": platform.python_version(),
        "QEMU": said(os.environ.get("LINKMGR_QEMU") or "qemu-system-x86_64", "--version"),
        "libvirt": said("libvirtd", "--version"),
        "systemd": said("systemctl", "--version"),
        "Linux": platform.release().partition("-")[0],
    }


def report(ended: dict[Job, Ended]) -> dict[str, Any]:
    """Say what ran here on which versions, and what differs here.

    :raise ValueError: two tests noted different things about one subject.
    """
    here = {str(job): found for job, found in ended.items() if job.is_here}
    files: dict[str, dict[str, Any]] = {}
    for job in sorted(filter(lambda job: job.is_here, ended), key=str):
        files[job.name] = added(files.get(job.name, {}), ended[job].counts())
    differences: dict[str, dict[str, Any]] = {}
    for name in sorted(here):
        for each in here[name].differences:
            noted = differences.setdefault(each["subject"], {"here": each["here"], "tests": []})
            if noted["here"] != each["here"]:
                raise ValueError(
                    f"{each['subject']}: {noted['here']!r} says {', '.join(noted['tests'])}, "
                    f"and {each['here']!r} says {each['test']}"
                )
            if each["test"] not in noted["tests"]:
                noted["tests"].append(each["test"])
    return {
        "day": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "files": files,
        "differences": dict(sorted(differences.items())),
    }


def left_out(path: Path, names: Iterable[str]) -> set[str]:
    """Return the files in an earlier report that are still there and have not run now."""
    try:
        before = json.loads(path.read_text())["files"]
    except FileNotFoundError:
        return set()
    return {name for name in before if (ROOT / name).exists()} - set(names)


def write_report(path: Path, ended: dict[Job, Ended]) -> str | None:
    """Write a report, in one go; return what is wrong with the notes in it."""
    try:
        found = report(ended)
    except ValueError as error:
        return str(error)
    if missing := left_out(path, found["files"]):
        names = ", ".join(sorted(missing)[:3])
        print(f"{path} stays: it has files that did not run now ({names} ...). Remove it first.")
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    new.replace(path)
    return None


def main() -> int:
    """Run what the command line says; return the exit status."""
    options = argparse.ArgumentParser()
    options.add_argument("--jobs", type=int, default=3)
    options.add_argument("--unit", action="store_true")
    options.add_argument("--next")
    options.add_argument("--suite")
    options.add_argument("--only-suite", action="store_true", help="and not here")
    options.add_argument("--report", type=Path)
    options.add_argument("files", nargs="*", type=Path)
    given = options.parse_args()
    files = [file.resolve() for file in given.files]
    files = files or sorted((ROOT / "tests" / "integration").rglob("test_*.py"))
    jobs = [] if given.only_suite else [Job(file) for file in files]
    if given.next:
        jobs += [Job(file, given.next) for file in files if "next_qemu" in file.read_text()]
    if given.suite:
        marked = [file for file in files if "newer_debian" in file.read_text()]
        marked += [] if given.files else [UNIT]  # all are imported there, and the marked ones run
        jobs += [Job(file, suite=given.suite) for file in marked]
    if given.unit:
        jobs += [Job(UNIT, part=part) for part in range(UNIT_PARTS)]
    noted: dict[str, float] = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    jobs.sort(key=lambda job: -noted.get(str(job), job.guess()))
    bad, kept = [], []
    done: dict[Job, Ended] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(job.run): job for job in jobs}
        for future in as_completed(running):
            job = running[future]
            ended = done[job] = future.result()
            noted[str(job)] = ended.seconds
            if ended.status not in (0, NOTHING_COLLECTED):
                bad.append(str(job))
                print(f"\n=== {job} ===\n{ended.said}", flush=True)
            skipped = re.findall(r"^SKIPPED .*$", ended.said, re.MULTILINE)
            kept += [f"{job}: {line}" for line in skipped]
            print(f"{'FAILED' if str(job) in bad else 'ok':6} {job}: {ended.last}", flush=True)
    NOTES.parent.mkdir(exist_ok=True)
    NOTES.write_text(json.dumps(noted, indent=1, sort_keys=True))
    if given.report and (wrong := write_report(given.report, done)):
        bad.append("the report")
        print(f"\n=== the report ===\n{wrong}")
    print("\n".join([*kept, f"{len(jobs)} files, failed: {', '.join(sorted(bad)) or 'none'}"]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
