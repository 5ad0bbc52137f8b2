#!/usr/bin/env python3
"""Write docs/compatibility.md from what the tests reported.

    compatibility.py [--results DIRECTORY]

Takes the reports of `make test`, `make test-trixie` and `make test-sid` from build/results/, keeps
them in tests/data/compatibility/, and writes the page from what is kept there. A report that lacks
a file of the one that is kept does not replace it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from linkmgr.doctor.versions import OLDEST
from linkmgr.errors import MonitorTooOld
from linkmgr.hypervisors.qemu.qmp.features import Features
from linkmgr.libvirt.prepare.preconditions import REFUSED
from linkmgr.wirings.hub.nic_models import NEVER_SHOW_CARRIER, SHOW_CARRIER_SINCE, shows_carrier

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "data" / "compatibility"
PAGE = ROOT / "docs" / "compatibility.md"
GENERATIONS = {"bookworm": "Debian 12", "trixie": "Debian 13", "sid": "sid"}
VERSIONS = ("Debian", "QEMU", "libvirt", "Python", "systemd", "Linux")
WHOLE_RUN = 15  # files; when they are fewer, the page names them

Report = Mapping[str, Any]

INTRODUCTION = """\
# Compatibility

linkmgr is tested on three generations of Debian. The tests wrote this page (`make compatibility`,
after `make test`, `make test-trixie` and `make test-sid`): the tables of versions, tests and
differences come from their reports, the others from the code. A test that sees something that is
not so on all versions notes it here.

{scope}All ran on one kernel.
sid changes each day: what it had on the day of the run is in the table.

`linkmgr doctor` says of each version that it finds whether it is one of these. A newer one should
work, and was not tried. Other distributions with such versions should work, too.
"""


def page(reports: Mapping[str, Report]) -> str:
    """Write the page from the report of each generation."""
    names = [name for name in GENERATIONS if name in reports]
    here = [reports[name] for name in names]
    heads = [GENERATIONS[name] for name in names]
    parts = [
        INTRODUCTION.format(scope=_scope(heads, here)),
        "## Versions\n",
        _table(["", *heads], _versions(here)),
        "## Tests\n",
        _table(["", *heads], _counts(here)),
        *_notes(heads, here),
        "## What differs\n",
        _table(["", *heads], _differences(here)),
        "## What is refused\n",
        _refused(heads, [each["versions"]["QEMU"] for each in here]),
    ]
    return "\n".join(parts)


def _scope(heads: Sequence[str], reports: Sequence[Report]) -> str:
    """Say on which of them the most ran, if it is all that ran on the others and more."""
    ran = [set(each["files"]) for each in reports]
    for head, files in zip(heads, ran, strict=True):
        if len(ran) > 1 and all(files > other for other in ran if other is not files):
            return (
                f"The most is tested on {head}: {len(files)} files. On the others runs what\n"
                "depends on QEMU, libvirt, Python or systemd. "
            )
    return ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _versions(reports: Sequence[Report]) -> list[list[str]]:
    rows = [[name, *(each["versions"][name] for each in reports)] for name in VERSIONS]
    return [*rows, ["day of the run", *(each["day"] for each in reports)]]


def _counts(reports: Sequence[Report]) -> list[list[str]]:
    def of(kind: str) -> list[str]:
        return [str(sum(each.get(kind, 0) for each in r["files"].values())) for r in reports]

    return [
        ["files", *(str(len(each["files"])) for each in reports)],
        ["passed", *of("passed")],
        ["skipped", *of("skipped")],
        ["failed", *of("failed")],
        ["errors", *of("error")],
    ]


def _notes(heads: Sequence[str], reports: Sequence[Report]) -> list[str]:
    lines = []
    for head, each in zip(heads, reports, strict=True):
        files = each["files"]
        bad = [name for name, found in files.items() if found.get("failed") or found.get("error")]
        lines += [f"- {head}: failed in {name}" for name in bad]
        if len(files) < WHOLE_RUN:
            lines.append(f"- {head}: a part of the tests only: {', '.join(files)}")
        skipped: dict[str, int] = {}
        for found in files.values():
            for reason, count in found.get("reasons", {}).items():
                skipped[reason] = skipped.get(reason, 0) + count
        lines += [f"- {head}: {count} skipped: {why}" for why, count in sorted(skipped.items())]
    return ["\n".join(lines) + "\n"] if lines else []


def _differences(reports: Sequence[Report]) -> list[list[str]]:
    subjects = sorted({subject for each in reports for subject in each["differences"]})
    return [
        [subject, *(each["differences"].get(subject, {}).get("here", "-") for each in reports)]
        for subject in subjects
    ]


def _refused(heads: Sequence[str], builds: Sequence[str]) -> str:
    needs = ", ".join(f"`{each}`" for each in Features("", frozenset()).missing)
    oldest = {name: ".".join(map(str, version)) for name, version in OLDEST.items()}
    rows = [
        [f"QEMU before {oldest['QEMU']}", f"a swap needs {needs}; a build without one of them is "
         f"refused whatever its version (`{MonitorTooOld.code}`)"],
        [f"libvirt before {oldest['libvirt']}", "it has no `qemu:override`, which holds a prepared "
         "NIC on its hub. Guests without libvirt need none"],
        [f"Python before {oldest['Python']}", "linkmgr does not start"],
        *([f"`<interface type='{kind}'>`", f"{why}"] for kind, (why, _) in sorted(REFUSED.items())),
    ]  # fmt: skip
    models = [
        [f"`{model}`", *("seen" if shows_carrier(model, each) else "not seen" for each in builds)]
        for model in sorted([*NEVER_SHOW_CARRIER, *SHOW_CARRIER_SINCE])
    ]
    return "\n".join(
        (
            "The same on all of them, as the code has it; see also what `prepare` "
            "[refuses](libvirt.md#what-is-refused).\n",
            _table(["what", "why"], rows),
            "A NIC of these models is plugged all the same; whether its guest sees its carrier "
            "change depends on QEMU:\n",
            _table(["model", *heads], models),
        )
    )


def keep(results: Path, kept: Path, say: Callable[[str], object]) -> None:
    """Keep new reports, unless they lack a file of what is kept."""
    kept.mkdir(parents=True, exist_ok=True)
    for name in GENERATIONS:
        new, old = results / f"{name}.json", kept / f"{name}.json"
        if not new.exists():
            say(f"{name}: no new report; make {_target(name)}")
            continue
        text = new.read_text()
        files = json.loads(text)["files"]
        before = json.loads(old.read_text())["files"] if old.exists() else {}
        if missing := [each for each in before if each not in files and (ROOT / each).exists()]:
            say(f"{name}: {new} has not all that was run before, {missing[0]} for one; make "
                f"{_target(name)}")  # fmt: skip
            continue
        old.write_text(text)


def _target(name: str) -> str:
    return "test" if name == "bookworm" else f"test-{name}"


def reports(kept: Path = KEPT) -> dict[str, Report]:
    """Read the reports that are kept."""
    paths = {name: kept / f"{name}.json" for name in GENERATIONS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def main() -> int:
    """Keep the reports and write the page; return the exit status."""
    options = argparse.ArgumentParser()
    options.add_argument("--results", type=Path, default=ROOT / "build" / "results")
    keep(options.parse_args().results, KEPT, print)
    PAGE.write_text(page(reports()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
