"""All checks, on any part of the corpus."""

from __future__ import annotations

import tempfile
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.corpus.cables import Libvirt, check_text
from tests.corpus.rewriting import check, with_a_nic
from tests.corpus.source import Suite


@dataclass
class Findings:
    """What came of it.

    :param wrong: what does not hold, with the file.
    :param refusals: of each kind, the files and what was said.
    """

    domains: int = 0
    prepared: int = 0
    taken: int = 0  #: by libvirt itself
    slowest_ms: float = 0.0
    wrong: list[str] = field(default_factory=list)
    refusals: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def run(suite: Suite, files: Sequence[Path]) -> Findings:
    """Check domains as they are, and those that have no NIC with one as well."""
    found, libvirt = Findings(), Libvirt()
    with tempfile.TemporaryDirectory(prefix="lm-corpus-") as folder:
        written: dict[Path, str] = {}
        for path in files:
            name, xml = str(path.relative_to(suite.directory)), path.read_bytes()
            prepared = _one(found, libvirt, name, xml)
            if prepared is None and b"<interface" not in xml:
                name = f"{name} with a NIC"
                prepared = _one(found, libvirt, name, with_a_nic(xml))
            if prepared is not None:
                file = Path(folder) / f"{len(written)}.xml"
                file.write_bytes(prepared)
                written[file] = name
        invalid = written.keys() - set(suite.valid(written))
    found.wrong += [f"{written[each]}: not valid any more when prepared" for each in invalid]
    return found


def _one(found: Findings, libvirt: Libvirt, name: str, xml: bytes) -> bytes | None:
    """Check one domain; give it prepared, if it was."""
    found.domains += 1
    try:
        outcome = check(xml)
        check_text(xml)
        found.taken += libvirt.check(xml, outcome.prepared)
    except Exception:  # noqa: BLE001 - whatever it is, it is told with the file
        found.wrong.append(f"{name}: {traceback.format_exc(limit=-3)}")
        return None
    found.prepared += outcome.prepared is not None
    found.slowest_ms = max(found.slowest_ms, outcome.cpu_ms)
    for kind, text in outcome.refusals.items():
        found.refusals[kind].append(f"{name}: {text}")
    return outcome.prepared
