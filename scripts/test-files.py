#!/usr/bin/env python3
"""Run the tests file by file, three at a time: most of their time is waiting.

    test-files.py [--jobs N] [--unit] [--next QEMU] [FILE...]

Each file is a pytest process with network namespaces of its own. What a file says is printed when
it has ended, all of it if something failed. With ``--unit`` the unit tests are one more of these
processes; with ``--next`` the marked tests run once more, on that QEMU. The slowest files go first,
as an earlier run noted them in build/, or as they were when this was written.
"""

from __future__ import annotations

import argparse
import json
import os
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
UNIT = ROOT / "tests" / "unit"
NOTHING_COLLECTED = 5
SLOWEST = ("restart", "swaps", "unit", "failures_monitor", "lifecycle_matrix", "guest_image",
           "systemd", "fd_restart", "cli", "domain_cables")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One file on one QEMU."""

    file: Path
    qemu: str | None = None

    def __str__(self) -> str:
        on = " (next QEMU)" if self.qemu else ""
        return f"{self.file.relative_to(ROOT)}{on}"

    def guess(self) -> float:
        """Seconds that it takes, so that the slow ones go before all that are not known."""
        name = self.file.stem.removeprefix("test_")
        return 1000 - SLOWEST.index(name) if name in SLOWEST else 60

    def run(self) -> tuple[int, str, float]:
        """Run it; return its status, what it said, and how many seconds it took."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(self.file)]
        environment = dict(os.environ)
        if self.qemu:
            command += ["-m", "next_qemu"]
            environment["LINKMGR_QEMU"] = self.qemu
        start = time.monotonic()
        # A folder of its own: each pytest shuts others out of the one that it would take.
        with tempfile.TemporaryDirectory(prefix="lm-test-") as folder:
            Path(folder).chmod(0o755)
            done = subprocess.run(
                [*command, f"--basetemp={folder}/t"],
                cwd=ROOT, env=environment, text=True, errors="replace", check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        return done.returncode, done.stdout, time.monotonic() - start


def main() -> int:
    """Run what the command line says; return the exit status."""
    options = argparse.ArgumentParser()
    options.add_argument("--jobs", type=int, default=3)
    options.add_argument("--unit", action="store_true")
    options.add_argument("--next")
    options.add_argument("files", nargs="*", type=Path)
    given = options.parse_args()
    files = [file.resolve() for file in given.files]
    files = files or sorted((ROOT / "tests" / "integration").glob("test_*.py"))
    jobs = [Job(file) for file in files]
    if given.next:
        jobs += [Job(file, given.next) for file in files if "next_qemu" in file.read_text()]
    if given.unit:
        jobs.append(Job(UNIT))
    noted: dict[str, float] = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    jobs.sort(key=lambda job: -noted.get(str(job), job.guess()))
    bad, kept = [], []
    with ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(job.run): job for job in jobs}
        for future in as_completed(running):
            job, (status, said, seconds) = running[future], future.result()
            noted[str(job)] = seconds
            if status not in (0, NOTHING_COLLECTED):
                bad.append(str(job))
                print(f"\n=== {job} ===\n{said}", flush=True)
            last = said.strip().rpartition("\n")[2]
            kept += [f"{job}: {line}" for line in re.findall(r"^SKIPPED .*$", said, re.MULTILINE)]
            print(f"{'FAILED' if str(job) in bad else 'ok':6} {job}: {last}", flush=True)
    NOTES.parent.mkdir(exist_ok=True)
    NOTES.write_text(json.dumps(noted, indent=1, sort_keys=True))
    print("\n".join([*kept, f"{len(jobs)} files, failed: {', '.join(sorted(bad)) or 'none'}"]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
