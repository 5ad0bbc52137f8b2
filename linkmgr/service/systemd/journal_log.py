"""Logging of the service: to standard error, in the journal with its priorities."""

from __future__ import annotations

import logging
import os
from typing import Any, ClassVar

from linkmgr.text.untrusted import printable

#: Characters of one line. What strangers cause is cut where it comes in; this is the last bound.
MAX_LINE = 4000


class LineFormatter(logging.Formatter):
    """Makes one line of each message, whatever a stranger's text in it says.

    Control characters are escaped: a line end would begin a line that looks like one of ours, and
    ESC would reach the terminal that shows the log. A traceback has a line each, indented.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Make the line without the traceback."""
        record.message = printable(record.message, MAX_LINE)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Make the lines of a traceback."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  | {printable(line, MAX_LINE)}" for line in lines)


class _Priorities(LineFormatter):
    """Puts sd-daemon(3)'s priority before each line, for the journal."""

    _NUMBERS: ClassVar = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}

    def format(self, record: logging.LogRecord) -> str:
        """Make the text of a record."""
        prefix = f"<{self._NUMBERS.get(record.levelname, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).split("\n"))


def log_to_stderr() -> None:
    """Log from INFO on to standard error, unless the program has set up logging already."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_Priorities("%(name)s: %(message)s"))
    else:
        handler.setFormatter(LineFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # It tells when it starts and ends, and warns of each request that is wrong: so do we, seldom.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
