"""``make corpus``: feed all of it, and tell what came of it."""

from __future__ import annotations

import sys

from tests.corpus.run import run
from tests.corpus.source import SUITES, Suite


def main() -> int:
    """Return the exit status: 1 when something does not hold."""
    status = 0
    for name in SUITES:
        suite = Suite(name)
        files = suite.domains()
        found = run(suite, files)
        print(
            f"{name}: {len(files)} domains of libvirt's tests; with a NIC added to those without, "
            f"{found.domains}, of which {found.prepared} are prepared. libvirt itself took "
            f"{found.taken}. The slowest took {found.slowest_ms:.1f} ms of CPU."
        )
        for kind, told in sorted(found.refusals.items(), key=lambda each: -len(each[1])):
            print(f"{len(told):6} {kind}\n{'':7}{told[0]}")
        for each in found.wrong:
            print(f"WRONG  {each}")
        status |= bool(found.wrong)
    return status


if __name__ == "__main__":
    sys.exit(main())
