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

from linkmgr.aio.token_bucket import TimeBudget
from linkmgr.errors import LinkmgrError
from linkmgr.libvirt.xml.desired_cables import DesiredCable, DesiredCables, parse, render
from linkmgr.state.codec import JsonReader
from linkmgr.state.directory import SavedDocument, StateDirectory
from linkmgr.state.journal import started_at

log = logging.getLogger(__name__)

DOCUMENT_NAME = "domains"

#: Changes what a domain asks for.
CablesEdit = Callable[[DesiredCables], DesiredCables]


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
class DesiredState:
    """The desired cable of one NIC, and whether it is applied.

    :param done: whether it was done, or an operator has done something else since.
    """

    cable: DesiredCable
    done: bool = False


@dataclass(frozen=True)
class AppliedState:
    """What is applied to the NICs of one process, and what is still to be."""

    process: Process
    states: Mapping[str, DesiredState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", MappingProxyType(dict(self.states)))

    @property
    def pending(self) -> list[DesiredState]:
        """What is still to be done."""
        return [state for state in self.states.values() if not state.done]

    def desired(self, nic: str) -> DesiredCable:
        """The cable that was last desired for a NIC, also if none was."""
        state = self.states.get(nic)
        return state.cable if state else DesiredCable(nic)

    def with_states(self, *states: DesiredState) -> AppliedState:
        """Replace the states of these NICs."""
        return replace(self, states={**self.states, **{each.cable.nic: each for each in states}})

    def mark_done(self, nics: Collection[str]) -> AppliedState:
        """Mark the states of these NICs as done."""
        states = [state for nic, state in self.states.items() if nic in nics]
        return self.with_states(*(replace(state, done=True) for state in states))

    def rebase(self, now: DesiredCables) -> AppliedState:
        """Adopt new desired cables. NICs whose cable changed become pending."""
        names = dict.fromkeys([*self.states, *now.by_nic])
        changed = [DesiredState(now.get(nic)) for nic in names if now.get(nic) != self.desired(nic)]
        return self.with_states(*changed)


@dataclass(frozen=True)
class ApplyFailure:
    """Why a desired state of a domain is not applied.

    :param state: of the NIC, as the end of "NIC is ...".
    :param retried: whether it is tried again by itself.
    :param about: the NIC, if it is not the one that it is noted for.
    """

    code: str
    what: str
    hint: str
    state: str | None = None
    retried: bool = True
    about: str | None = None

    @classmethod
    def of(cls, error: LinkmgrError, *, retried: bool = True) -> ApplyFailure:
        """Make a failure of an error."""
        return cls(
            error.code, error.what, error.hint or "look at the log", error.state, retried, error.nic
        )


class Domain:
    """A domain. Everything that changes its cables holds `lock`.

    :param hook_xml: the XML that the hook has brought of a process that is about to run.
    """

    def __init__(self, uuid: str, name: str) -> None:
        self.uuid = uuid
        self.name = name
        self.lock = asyncio.Lock()
        self.applied_state: AppliedState | None = None
        self.failures: dict[str, ApplyFailure] = {}  #: by alias; of the whole domain without one
        self.hook_xml: str | None = None
        self.hook_xml_ready = asyncio.Event()  #: set while there is such XML
        self.xml_read_for: Process | None = None  #: whose XML the service has read itself
        #: Set when all is done for its process that can be now.
        self.apply_finished = asyncio.Event()
        self.wired_for: Process | None = None  #: whose wiring was checked
        self.reconcile_queued = False  #: one waits for the lock
        #: Edits of its live metadata that could not be written yet.
        self.unsaved_edits: list[CablesEdit] = []
        #: NICs that a verb changed before the desired cables were known.
        self.changed_early: set[str] = set()
        self.running_hooks = 0  #: which libvirt waits for
        self.retry: asyncio.Task[None] | None = None
        #: What its author's words may cost: who edits them without end is looked at later.
        self.budget = TimeBudget()

    def drop_hook_xml(self) -> None:
        """The metadata was edited, or may have been, since a hook brought the XML.

        While one waits it is not: nobody can edit the metadata then, and libvirt cannot be asked.
        """
        if not self.running_hooks:
            self.set_hook_xml(None)

    def set_hook_xml(self, xml: str | None) -> None:
        """Keep the XML of a process that is about to run; ``None`` drops it."""
        self.hook_xml = xml
        if xml is None:
            self.hook_xml_ready.clear()
        else:
            self.hook_xml_ready.set()

    def subject(self, alias: str, failure: ApplyFailure | None = None) -> str:
        """What a failure is about: the NIC that it is noted for, or the whole domain."""
        if failure and failure.about:
            return failure.about
        return f"{self.name}/{alias}" if alias else self.name


class KnownDomains:
    """The domains that linkmgr has to do with.

    :param documents: the state directory, in a document of which is kept what was done.
    """

    def __init__(self, documents: StateDirectory) -> None:
        self._documents = documents
        self._by_uuid: dict[str, Domain] = {}
        self._saved = SavedDocument(
            documents, DOCUMENT_NAME, "what is done of the domains' cables", self._content
        )
        self._lost_at: int | None = None

    def __iter__(self) -> Iterator[Domain]:
        return iter(list(self._by_uuid.values()))

    def ensure(self, uuid: str, name: str) -> Domain:
        """A domain, made if it is new. It may have been renamed."""
        domain = self._by_uuid.setdefault(uuid.lower(), Domain(uuid.lower(), name))
        domain.name = name
        return domain

    def by_uuid(self, uuid: str) -> Domain | None:
        """The domain of that uuid, if linkmgr has to do with it."""
        return self._by_uuid.get(uuid.lower())

    def by_name(self, name: str) -> Domain | None:
        """The domain of that name that has a process, else any of that name."""
        found = [each for each in self if each.name == name]
        return next((each for each in found if each.applied_state), found[0] if found else None)

    async def load(self) -> None:
        """Read what an earlier run knew; leave out what has ended since."""
        found = await self._documents.read(DOCUMENT_NAME, _read)
        if found is None and self._documents.damage(DOCUMENT_NAME):
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._lost_at = int(now * os.sysconf("SC_CLK_TCK"))
        for uuid, (name, state) in (found or {}).items():
            if state.process.lives():
                self.ensure(uuid, name).applied_state = state
        await self.save()

    def is_history_lost(self, process: Process) -> bool:
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
            each.uuid: {"name": each.name, **_form(each.applied_state)}
            for each in self
            if each.applied_state
        }
        return {"domains": known} if known else {}

    async def process_ended(self, domain: Domain) -> None:
        """The domain's process has ended: nothing of it is kept."""
        domain.applied_state = domain.wired_for = domain.xml_read_for = None
        domain.failures.clear()
        domain.changed_early.clear()
        domain.unsaved_edits.clear()
        domain.apply_finished.clear()
        if domain.running_hooks <= 1 and domain.hook_xml is None:  # this may be within one hook
            self._by_uuid.pop(domain.uuid, None)
        await self.save()


def _form(state: AppliedState) -> dict[str, object]:
    return {
        "pid": state.process.pid,
        "started": state.process.started,
        "cables": render(DesiredCables({nic: each.cable for nic, each in state.states.items()})),
        "undone": [each.cable.nic for each in state.pending],
    }


def _read(reader: JsonReader) -> dict[str, tuple[str, AppliedState]]:
    return reader.children("domains", _read_domain)


def _read_domain(reader: JsonReader) -> tuple[str, AppliedState]:
    process = Process(
        reader.integer("pid") if "pid" in reader else None,
        reader.integer("started") if "started" in reader else None,
    )
    undone = reader.raw("undone")
    waits = {str(each) for each in undone} if isinstance(undone, list) else set()
    try:
        cables = parse(reader.text("cables"))
    except LinkmgrError as error:
        raise ValueError(str(error)) from None
    states = {nic: DesiredState(cable, nic not in waits) for nic, cable in cables.by_nic.items()}
    return reader.text("name"), AppliedState(process, states)
