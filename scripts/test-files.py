#!/usr/bin/env python3
"""Run the tests file by file, three at a time: most of their time is waiting.

    test-files.py [--jobs N] [--unit] [--next QEMU] [--suite SUITE] [--report FILE] [FILE...]

Each file is a pytest process with network namespaces of its own. What a file says is printed when
it has ended, all of it if something failed. With ``--unit`` the unit tests are one more of these
processes. With ``--next`` the tests marked ``next_qemu`` run once more, on that QEMU; with
``--suite`` those marked ``newer_debian``, in the root of that Debian (scripts/in-root.sh). The
slowest files go first, as an earlier run noted them in build/, or as they were when this was
written. ``--report`` writes what ran on which versions, for scripts/compatibility.py.
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
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTES = ROOT / "build" / "test-seconds.json"
IN_ROOT = ROOT / "scripts" / "in-root.sh"
UNIT = ROOT / "tests" / "unit"
NOTHING_COLLECTED = 5
SLOWEST = ("restart", "swaps", "unit", "failures_monitor", "lifecycle_matrix", "guest_image",
           "systemd", "fd_restart", "cli", "domain_cables")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One file on one QEMU, here or on another Debian."""

    file: Path
    qemu: str | None = None
    suite: str | None = None

    def __str__(self) -> str:
        on = " (next QEMU)" if self.qemu else f" ({self.suite})" if self.suite else ""
        return f"{self.file.relative_to(ROOT)}{on}"

    def guess(self) -> float:
        """Seconds that it takes, so that the slow ones go before all that are not known."""
        name = self.file.stem.removeprefix("test_")
        return 1000 - SLOWEST.index(name) if name in SLOWEST else 60

    def run(self) -> tuple[int, str, float]:
        """Run it; return its status, what it said, and how many seconds it took."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(self.file)]
        environment = dict(os.environ)
        if self.suite:
            command = [str(IN_ROOT), self.suite, "python", *command[1:-1], "-m", "newer_debian",
                       str(self.file.relative_to(ROOT))]  # fmt: skip
        if self.qemu:
            command += ["-m", "next_qemu"]
            environment["LINKMGR_QEMU"] = self.qemu
        start = time.monotonic()
        # A folder of its own: each pytest shuts others out of the one that it would take.
        with tempfile.TemporaryDirectory(prefix="lm-test-") as folder:
            Path(folder).chmod(0o755)
            done = subprocess.run(
                command if self.suite else [*command, f"--basetemp={folder}/t"],
                cwd=ROOT, env=environment, text=True, errors="replace", check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        return done.returncode, done.stdout, time.monotonic() - start


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
    files = files or sorted((ROOT / "tests" / "integration").glob("test_*.py"))
    jobs = [] if given.only_suite else [Job(file) for file in files]
    if given.next:
        jobs += [Job(file, given.next) for file in files if "next_qemu" in file.read_text()]
    if given.suite:
        marked = [file for file in files if "newer_debian" in file.read_text()]
        jobs += [Job(file, suite=given.suite) for file in marked]
    if given.unit:
        jobs.append(Job(UNIT))
    noted: dict[str, float] = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    jobs.sort(key=lambda job: -noted.get(str(job), job.guess()))
    bad, kept = [], []
    counts: dict[str, dict[str, int]] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(job.run): job for job in jobs}
        for future in as_completed(running):
            job, (status, said, seconds) = running[future], future.result()
            noted[str(job)] = seconds
            if status not in (0, NOTHING_COLLECTED):
                bad.append(str(job))
                print(f"\n=== {job} ===\n{said}", flush=True)
            last = said.strip().rpartition("\n")[2]
            counts[str(job)] = {
                kind: int(count)
                for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", last)
            }
            kept += [f"{job}: {line}" for line in re.findall(r"^SKIPPED .*$", said, re.MULTILINE)]
            print(f"{'FAILED' if str(job) in bad else 'ok':6} {job}: {last}", flush=True)
    NOTES.parent.mkdir(exist_ok=True)
    NOTES.write_text(json.dumps(noted, indent=1, sort_keys=True))
    if given.report:
        found = {"versions": versions(), "files": dict(sorted(counts.items()))}
        given.report.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join([*kept, f"{len(jobs)} files, failed: {', '.join(sorted(bad)) or 'none'}"]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
