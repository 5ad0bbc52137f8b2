"""Logging of the service: to standard error, in the journal with its priorities."""

from __future__ import annotations

import logging
import os
from typing import ClassVar


class _Priorities(logging.Formatter):
    """Puts sd-daemon(3)'s priority before each line, for the journal."""

    _NUMBERS: ClassVar = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}

    def format(self, record: logging.LogRecord) -> str:
        """Make the text of a record."""
        prefix = f"<{self._NUMBERS.get(record.levelname, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def log_to_stderr() -> None:
    """Log from INFO on to standard error, unless the program has set up logging already."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_Priorities("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it tells when it starts and ends
