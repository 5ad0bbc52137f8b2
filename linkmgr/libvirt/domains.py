"""What is known of each domain: its QEMU process, and what of its cables is done. Kept on disk.

A domain's cables are applied once in the life of a QEMU process. So that a restart of linkmgr does
not apply them again over what an operator has done since, ``domains.json`` in the state directory
says of each process what was last asked for, NIC by NIC, and whether it was done.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from linkmgr.budget import TimeBudget
from linkmgr.documents import Documents, SavedDocument
from linkmgr.errors import LinkmgrError
from linkmgr.journal import started_at
from linkmgr.jsonform import Form
from linkmgr.libvirt.metadata import DesiredCable, DesiredCables, parse, render

log = logging.getLogger(__name__)

DOCUMENT = "domains"

#: Changes what a domain asks for.
Edit = Callable[[DesiredCables], DesiredCables]


@dataclass(frozen=True)
class Process:
    """A QEMU: a pid is used again, so it also takes when it began (proc(5)).

    Both are ``None`` for one of another pid namespace.
    """

    pid: int | None
    started: int | None

    def lives(self) -> bool:
        """Whether it is still there, or nobody can know."""
        return self.pid is None or started_at(self.pid) == self.started


@dataclass(frozen=True)
class Wish:
    """What was last asked for one NIC.

    :param done: whether it was done, or an operator has done something else since.
    """

    cable: DesiredCable
    done: bool = False


@dataclass(frozen=True)
class Record:
    """What was asked for the NICs of one process."""

    process: Process
    wishes: Mapping[str, Wish] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "wishes", MappingProxyType(dict(self.wishes)))

    @property
    def pending(self) -> list[Wish]:
        """What is still to be done."""
        return [wish for wish in self.wishes.values() if not wish.done]

    def asked(self, nic: str) -> DesiredCable:
        """What was last asked for a NIC, also if nothing was."""
        wish = self.wishes.get(nic)
        return wish.cable if wish else DesiredCable(nic)

    def put(self, *wishes: Wish) -> Record:
        """Have these, instead of what there was of their NICs."""
        return replace(self, wishes={**self.wishes, **{each.cable.nic: each for each in wishes}})

    def done(self, nics: Collection[str]) -> Record:
        """Have what is asked for these NICs as done."""
        asked = [wish for nic, wish in self.wishes.items() if nic in nics]
        return self.put(*(replace(wish, done=True) for wish in asked))

    def follow(self, now: DesiredCables) -> Record:
        """Have what is asked for now; what is as before stays done, or to be done."""
        names = dict.fromkeys([*self.wishes, *now.by_nic])
        changed = [Wish(now.get(nic)) for nic in names if now.get(nic) != self.asked(nic)]
        return self.put(*changed)


@dataclass(frozen=True)
class Trouble:
    """Why something that a domain asks for is not so.

    :param state: of the NIC, as the end of "NIC is ...".
    :param waits: whether it is tried again by itself.
    :param about: the NIC, if it is not the one that it is noted for.
    """

    code: str
    what: str
    hint: str
    state: str | None = None
    waits: bool = True
    about: str | None = None

    @classmethod
    def of(cls, error: LinkmgrError, *, waits: bool = True) -> Trouble:
        """Make one of an error."""
        return cls(
            error.code, error.what, error.hint or "look at the log", error.state, waits, error.nic
        )


class Domain:
    """A domain. Everything that changes its cables holds `lock`.

    :param brought: the XML that the hook has brought of a process that is about to run.
    """

    def __init__(self, uuid: str, name: str) -> None:
        self.uuid = uuid
        self.name = name
        self.lock = asyncio.Lock()
        self.record: Record | None = None
        self.troubles: dict[str, Trouble] = {}  #: by alias; of the whole domain without one
        self.brought: str | None = None
        self.bringing = asyncio.Event()  #: set while there is such XML
        self.read: Process | None = None  #: which process's XML was read since the service started
        self.applied = asyncio.Event()  #: set when all is done for its process that can be now
        self.wired: Process | None = None  #: of which process the wiring was looked at
        self.queued = False  #: somebody waits for the lock to look at everything
        #: What was done to its NICs, and could not be written into its live metadata yet.
        self.unwritten: list[Edit] = []
        self.acted: set[str] = set()  #: NICs that were changed before it was known what is asked
        self.hooks = 0  #: of it that libvirt waits for now
        self.retry: asyncio.Task[None] | None = None
        #: What its author's words may cost: who edits them without end is looked at later.
        self.budget = TimeBudget()

    def is_stale(self) -> None:
        """The metadata was edited, or may have been, since a hook brought the XML.

        While one waits it is not: nobody can edit the metadata then, and libvirt cannot be asked.
        """
        if not self.hooks:
            self.bring(None)

    def bring(self, xml: str | None) -> None:
        """Have the XML of a process that is about to run, or no more."""
        self.brought = xml
        if xml is None:
            self.bringing.clear()
        else:
            self.bringing.set()

    def subject(self, alias: str, trouble: Trouble | None = None) -> str:
        """Whom a trouble is about that is noted for a NIC, or for all of the domain."""
        if trouble and trouble.about:
            return trouble.about
        return f"{self.name}/{alias}" if alias else self.name


class Domains:
    """All domains that linkmgr has to do with, by uuid.

    :param documents: of the state directory, in one of which it is kept what was done.
    """

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._known: dict[str, Domain] = {}
        self._saved = SavedDocument(
            documents, DOCUMENT, "what is done of the domains' cables", self._content
        )
        self._lost_at: int | None = None

    def __iter__(self) -> Iterator[Domain]:
        return iter(list(self._known.values()))

    def get(self, uuid: str, name: str) -> Domain:
        """A domain, made if it is new. It may have been renamed."""
        domain = self._known.setdefault(uuid.lower(), Domain(uuid.lower(), name))
        domain.name = name
        return domain

    def known(self, uuid: str) -> Domain | None:
        """The domain of that uuid, if linkmgr has to do with it."""
        return self._known.get(uuid.lower())

    def find(self, name: str) -> Domain | None:
        """The domain of that name that has a process, else any of that name."""
        found = [each for each in self if each.name == name]
        return next((each for each in found if each.record), found[0] if found else None)

    async def load(self) -> None:
        """Read what an earlier run knew; leave out what has ended since."""
        found = await self._documents.read(DOCUMENT, _read)
        if found is None and self._documents.damage(DOCUMENT):
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._lost_at = int(now * os.sysconf("SC_CLK_TCK"))
        for uuid, (name, record) in (found or {}).items():
            if record.process.lives():
                self.get(uuid, name).record = record
        await self.save()

    def is_lost(self, process: Process) -> bool:
        """Whether what was done for it stood in a file that cannot be read any more.

        Then nothing is done anew: an operator may have changed it since.
        """
        began = process.started
        return self._lost_at is not None and began is not None and began <= self._lost_at

    async def save(self) -> None:
        """Write it down, if it has changed; see `SavedDocument.save`.

        That is no reason not to plug: after a restart it would be plugged again, which does nothing
        unless somebody has plugged it elsewhere since.
        """
        await self._saved.save()

    def _content(self) -> dict[str, object]:
        known = {
            each.uuid: {"name": each.name, **_form(each.record)} for each in self if each.record
        }
        return {"domains": known} if known else {}

    async def ended(self, domain: Domain) -> None:
        """The domain's process has ended: nothing of it is kept."""
        domain.record = domain.wired = domain.read = None
        domain.troubles.clear()
        domain.acted.clear()
        domain.unwritten.clear()
        domain.applied.clear()
        if domain.hooks <= 1 and domain.brought is None:  # a hook that says so is one itself
            self._known.pop(domain.uuid, None)
        await self.save()


def _form(record: Record) -> dict[str, object]:
    return {
        "pid": record.process.pid,
        "started": record.process.started,
        "cables": render(DesiredCables({nic: wish.cable for nic, wish in record.wishes.items()})),
        "undone": [wish.cable.nic for wish in record.pending],
    }


def _read(form: Form) -> dict[str, tuple[str, Record]]:
    return form.children("domains", _read_domain)


def _read_domain(form: Form) -> tuple[str, Record]:
    process = Process(
        form.integer("pid") if "pid" in form else None,
        form.integer("started") if "started" in form else None,
    )
    undone = form.raw("undone")
    waits = {str(each) for each in undone} if isinstance(undone, list) else set()
    try:
        cables = parse(form.text("cables"))
    except LinkmgrError as error:
        raise ValueError(str(error)) from None
    wishes = {nic: Wish(cable, nic not in waits) for nic, cable in cables.by_nic.items()}
    return form.text("name"), Record(process, wishes)
