"""The corpus: the domains in libvirt's source (scripts/corpus-source.sh) that its schema takes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("bookworm", "trixie")
_VALID = " validates"
_AT_ONCE = 1000  # files for one xmllint, which reads the schema each time


@dataclass(frozen=True)
class Suite:
    """The source of libvirt in one Debian."""

    name: str

    @property
    def directory(self) -> Path:
        return ROOT / "build" / "corpus" / self.name

    def is_here(self) -> bool:
        return (self.directory / ".complete").exists()

    def domains(self) -> list[Path]:
        """Its valid domains, by name, each content once."""
        found = {
            xml: path
            for path in sorted((self.directory / "tests").rglob("*.xml"), reverse=True)
            if _root_of(xml := path.read_bytes()) == "domain"
        }
        return self.valid(sorted(found.values()))

    def valid(self, files: Iterable[Path]) -> list[Path]:
        """Those of some files that this libvirt's schema takes."""
        files, valid = list(files), set[str]()
        for begin in range(0, len(files), _AT_ONCE):
            valid |= self._validated(files[begin : begin + _AT_ONCE])
        return [path for path in files if str(path) in valid]

    def _validated(self, files: Sequence[Path]) -> set[str]:
        schema = self.directory / "src/conf/schemas/domain.rng"
        done = subprocess.run(
            ["xmllint", "--noout", "--relaxng", str(schema), *map(str, files)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = [line for line in done.stderr.splitlines() if line.endswith(_VALID)]
        return {line.removesuffix(_VALID) for line in lines}


class _Known(Exception):
    """The root's name."""


def _root_of(xml: bytes) -> str | None:
    """The name of a document's root; ``None`` if it cannot be read so far."""

    def begin(name: str, _: object) -> None:
        raise _Known(name)

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    try:
        parser.Parse(xml, True)
    except _Known as known:
        return str(known)
    except expat.ExpatError:
        return None
    return None
