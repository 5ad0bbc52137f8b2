"""Domains that were prepared by an older linkmgr: a QEMU of 10.2 or newer does not start them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from linkmgr.doctor.programs import SYSTEM_URI
from linkmgr.doctor.result import PROBE_TIMEOUT_S, ProbeResult, Verdict
from linkmgr.errors import LibvirtRefused, LinkmgrError, Unsupported
from linkmgr.libvirt.prepare.saved_state import RECONNECT_MS_SINCE, RECONNECT_UNTIL
from linkmgr.libvirt.prepare.virsh import Virsh
from linkmgr.libvirt.xml import monitor
from linkmgr.libvirt.xml.document import Document

T = TypeVar("T")

_AREA, _NAME = "libvirt", "prepared domains"
_MAX_SHOWN = 5  # names in a line
_REFRESH = "'linkmgr prepare --refresh --all'"
#: In the XML of a saved state, which can be one with other elements around its domain.
_RECONNECT = re.compile(rb"id=lm-qmp,[^'\"]*reconnect=")


async def prepared(uri: str = SYSTEM_URI, folder: Path = Path("/run/libvirt")) -> list[ProbeResult]:
    """Look for such domains, and for saved states and snapshots with memory that are such.

    :param folder: with the sockets of the system's libvirt; without one nothing is looked at.
    """
    sockets = (folder / "virtqemud-sock", folder / "libvirt-sock")
    if not uri or (uri == SYSTEM_URI and not any(each.exists() for each in sockets)):
        return []
    return await asyncio.to_thread(_look, Virsh(uri, timeout=PROBE_TIMEOUT_S / 2))


def _look(virsh: Virsh) -> list[ProbeResult]:
    end = time.monotonic() + PROBE_TIMEOUT_S
    try:
        names = virsh.names()
        old = list(_those(names, lambda name: _is_outdated(virsh, name), end))
        saved = list(_those(virsh.saved(), lambda name: _has(virsh.saved_xml(name)), end))
        taken = ((name, each) for name in virsh.with_snapshots() for each in virsh.snapshots(name))
        here = _qemu_version(virsh) if old or saved else None
        kept = [
            f"{name}/{each}"
            for name, each in _those(taken, lambda of: _has(virsh.snapshot_xml(*of)), end)
        ]
    except Unsupported:
        return []  # there is no virsh
    except LinkmgrError as error:
        return [ProbeResult(_AREA, _NAME, Verdict.UNKNOWN, error.what, error.hint)]
    results = []
    newer = "QEMU 10.2 and newer"
    if here is not None and here >= RECONNECT_UNTIL:
        newer = "QEMU {}.{} of this host".format(*here)
    if old:
        what = f"an older linkmgr prepared {_some(old)}, and {newer} cannot start them"
        results.append(ProbeResult(_AREA, _NAME, Verdict.MISSING, what, _REFRESH))
    if saved:
        what = f"the saved states of {_some(saved)} cannot be resumed by {newer}"
        todo = _REFRESH
        if here is not None and here < RECONNECT_MS_SINCE:
            todo = (
                "'virsh start DOMAIN' and shut it down inside before QEMU is upgraded; or "
                f"afterwards {_REFRESH}, and it runs on"
            )
        results.append(ProbeResult(_AREA, "saved states", Verdict.MISSING, what, todo))
    if kept:
        what = f"QEMU 10.2 and newer cannot go back to the snapshots {_some(kept)}"
        todo = "take new ones of the domains once they are prepared anew and started"
        results.append(ProbeResult(_AREA, "snapshots", Verdict.MISSING, what, todo))
    if time.monotonic() > end:
        what = f"not all of {len(names)} domains were looked at within {PROBE_TIMEOUT_S:.0f} s"
        results.append(ProbeResult(_AREA, _NAME, Verdict.UNKNOWN, what, _REFRESH))
    if not results and names:
        what = "none has to be prepared anew"
        results.append(ProbeResult(_AREA, _NAME, Verdict.WORKS, what))
    return results


def _those(of: Iterable[T], right: Callable[[T], bool], end: float) -> Iterator[T]:
    """Those of which something is so, as long as there is time. What is gone by now is left out."""
    for each in of:
        if time.monotonic() > end:
            return
        try:
            if right(each):
                yield each
        except LinkmgrError:
            continue


def _qemu_version(virsh: Virsh) -> tuple[int, int] | None:
    """The version of libvirt's QEMU; ``None`` while there is none, in an upgrade say."""
    try:
        return virsh.qemu_version()
    except LibvirtRefused:
        return None


def _is_outdated(virsh: Virsh, name: str) -> bool:
    return monitor.is_outdated(Document(virsh.xml(name)))


def _has(xml: bytes) -> bool:
    return _RECONNECT.search(xml) is not None


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_SHOWN
    return ", ".join(names[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
