"""The result of a probe, and how probes run programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

PROBE_TIMEOUT_S = 10.0  #: for a program that a probe runs


class Verdict(StrEnum):
    """What was found."""

    WORKS = "works"
    MISSING = "missing"  #: does not work
    UNKNOWN = "unknown"  #: could not be tried


@dataclass(frozen=True)
class ProbeResult:
    """The result of one probe.

    :param what: what was found.
    :param todo: what to do about it; ``None`` when nothing has to be done.
    :param needed: whether linkmgr is of no use here without it.
    :param used: whether linkmgr as it is, or a program that is here, uses it. What is not used is
        not missed.
    """

    area: str
    name: str
    verdict: Verdict
    what: str
    todo: str | None = None
    needed: bool = False
    used: bool = True

    @property
    def bad(self) -> bool:
        """Whether something needed is missing."""
        return self.needed and self.verdict is Verdict.MISSING


async def run_program(
    argv: Sequence[str], more: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a program; return its status and what it said, on both channels.

    One that cannot be started or takes too long has status -1.

    :param more: variables, beside those of this process.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | (more or {}),
        )
    except OSError as error:
        return -1, f"{argv[0]}: {error.strerror}"
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        return -1, f"{argv[0]} did not end within {PROBE_TIMEOUT_S:.0f} s"
    return process.returncode or 0, said.decode(errors="replace")
