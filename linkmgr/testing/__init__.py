"""Support for tests, the demo and the measurements: a real guest, peers on a network, a sandbox.

It imports nothing else of linkmgr, so it can judge linkmgr.
"""

from __future__ import annotations

from linkmgr.testing.frames import Counted, Sent, TagCount
from linkmgr.testing.guest import (
    Guest,
    GuestError,
    GuestGone,
    GuestMonitorError,
    GuestTimeout,
    images,
)
from linkmgr.testing.process import ProcessFailed, Result
from linkmgr.testing.sandbox import NetnsPeer, SandboxError, enter_sandbox, in_sandbox
from linkmgr.testing.station import Job, Measurement, Ping, Station

__all__ = [  # noqa: RUF022 - most important first
    "Guest",
    "NetnsPeer",
    "enter_sandbox",
    "in_sandbox",
    "Station",
    "Job",
    "Result",
    "Ping",
    "Measurement",
    "Sent",
    "Counted",
    "TagCount",
    "images",
    "ProcessFailed",
    "GuestError",
    "GuestGone",
    "GuestTimeout",
    "GuestMonitorError",
    "SandboxError",
]
