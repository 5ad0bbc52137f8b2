"""What must hold of a domain that is prepared and undone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from linkmgr.errors import CannotPrepare
from linkmgr.libvirt.prepare.rewrite import Rewritten, prepare, refresh, undo
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.interfaces import domain_name
from linkmgr.text.untrusted import printable

CPU_MS = 50.0  #: that a document may take, to be prepared or undone
_LONGEST = 600  # characters of a refusal
_NIC = "<interface type='user'/>"
_QUOTED, _NUMBER = re.compile(r"'[^']*'"), re.compile(r"[0-9]+")
_ENOUGH = CPU_MS / 2  # so few that once will do
_TRIES = 3  # what else runs on the machine costs caches, too

T = TypeVar("T")


class Wrong(Exception):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Outcome:
    """What came of a domain.

    :param prepared: its XML; ``None`` when it was refused.
    :param refusals: why, by kind, and why `undo` first wanted to be told to trust the metadata.
    :param cpu_ms: the longer of preparing and undoing.
    """

    prepared: bytes | None
    refusals: dict[str, str]
    cpu_ms: float = 0.0


def check(xml: bytes) -> Outcome:
    """Prepare a domain, twice, refresh and undo it.

    :raise Wrong: says what does not hold.
    """
    _hold(refresh(xml).xml == xml, "a domain that is not prepared is refreshed")
    _hold(undo(xml).xml == xml, "a domain that is not prepared is undone")
    try:
        made, preparing = measured(lambda: prepare(xml))
    except CannotPrepare as error:
        return Outcome(None, _refusal(xml, error))
    _hold(bool(made.nics), "nothing is prepared, and no reason is given")
    _hold(prepare(made.xml) == Rewritten(made.xml, ()), "prepared twice is not prepared once")
    _hold(refresh(made.xml) == Rewritten(made.xml, ()), "a refresh changes what was just prepared")
    refusals, trusting = dict[str, str](), False
    try:
        undo(made.xml)
    except CannotPrepare as error:
        refusals, trusting = _refusal(xml, error), True
    back, undoing = measured(lambda: undo(made.xml, trust_metadata=trusting))
    _hold(back.xml == xml, "undone is not as it was")
    _hold(undo(back.xml).xml == xml, "undone twice is not undone once")
    spent = max(preparing, undoing)
    _hold(spent < CPU_MS, f"it takes {spent:.1f} ms of CPU")
    return Outcome(made.xml, refusals, spent)


def with_a_nic(xml: bytes) -> bytes:
    """A domain with one NIC more, for those that have none."""
    document = Document(xml)
    devices = document.root.find("devices")
    if devices is not None:
        return document.append(devices, [(0, _NIC)]).source
    lines = [(0, "<devices>"), (1, _NIC), (0, "</devices>")]
    return document.append(document.root, lines).source


def _hold(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def measured(work: Callable[[], T]) -> tuple[T, float]:
    """What came of it, and the milliseconds of CPU: the least of some times."""
    least = float("inf")
    for _ in range(_TRIES):
        begun = time.thread_time()
        made = work()
        least = min(least, 1000 * (time.thread_time() - begun))
        if least < _ENOUGH:
            break
    return made, least


def _refusal(xml: bytes, error: CannotPrepare) -> dict[str, str]:
    """A refusal by its kind. It is one line, says what to do, and is not too long to be read."""
    text = str(error)
    _hold(bool(error.hint), f"a refusal says not what to do: {text}")
    _hold(len(text) <= _LONGEST, f"a refusal is too long: {text}")
    _hold(text == printable(text, _LONGEST), f"a refusal is not one printable line: {text!r}")
    kind = error.what.replace(domain_name(Document(xml)), "NAME")
    kind = _NUMBER.sub("N", _QUOTED.sub("'...'", kind))
    return {f"{error.code}: {kind}": text}
