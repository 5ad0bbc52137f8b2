"""Notes of what differs between versions of Debian, made by the tests that have just seen it."""

from __future__ import annotations

import json
import os
from pathlib import Path

FOLDER = "LINKMGR_DIFFERENCES"  #: the variable with the directory that notes are written to


class Differences:
    """The notes of one run. They are written, a file for each process, if there is a directory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._noted: dict[str, str] = {}

    def note(self, subject: str, here: str, test: str) -> None:
        """Note what a test has seen.

        :raise ValueError: another test of this run has seen something else.
        """
        if (before := self._noted.setdefault(subject, here)) != here:
            raise ValueError(f"{subject}: noted as {before!r} before, and as {here!r} now")
        if self._folder is not None:
            line = json.dumps({"subject": subject, "here": here, "test": test})
            with (self._folder / f"{os.getpid()}.jsonl").open("a") as file:
                file.write(line + "\n")
