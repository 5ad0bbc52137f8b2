"""Intent and outcome on disk: one JSON document per VM, one for networks and ports.

The journal says what was meant; QEMU and the kernel say what is (`linkmgr.reconcile` compares
them). Each document is written to a temporary file that replaces the old one when it is safely on
disk, so that a crash leaves the old document or the new one, and never a part.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiofiles
import aiofiles.os

from linkmgr.errors import BadName, StateError
from linkmgr.jsonform import Form, FormError, read_endpoint, read_network, read_port, to_json
from linkmgr.model import Endpoint, LinkState, Network, Notify, Port, check_name

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 1  #: of what is written now
#: For each older format, what makes the next one of a document.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

_ASIDE = re.compile(r"(.+)\.json\.damaged\d*")


@dataclass(frozen=True)
class Facts:
    """What a NIC is, from boot to end.

    :param managed: whether it is wired so that its cable can change.
    :param mtu: bytes.
    """

    model: str
    mac: str
    mtu: int
    managed: bool


@dataclass(frozen=True)
class CableRecord:
    """The cable that a NIC is on.

    :param attachment: id of the network side's claim.
    :param id: of the cable; another one when a replug kept the macvtap.
    """

    attachment: str
    id: str
    port: Port
    endpoint: Endpoint
    device: str
    mac: str
    macs: tuple[str, ...]
    since: datetime


@dataclass(frozen=True)
class Intent:
    """A swap that has begun: to the port, or to no cable at all.

    :param attachment: id of the new claim.
    :param foreign: QEMU's ids of the hub port and the backend of a cable that linkmgr has not
        made and that is to be unplugged.
    """

    attachment: str | None = None
    port: Port | None = None
    notify: Notify = Notify.AUTO
    foreign: tuple[str, str] | None = None


@dataclass(frozen=True)
class NicRecord:
    """What is known of one NIC.

    :param intent: ``None`` while nothing is in flight.
    :param name: that the host's devices of its cables are to have; ``None`` for one of our own.
    """

    facts: Facts
    wanted: LinkState = LinkState.UP
    cable: CableRecord | None = None
    intent: Intent | None = None
    name: str | None = None


@dataclass(frozen=True)
class VmRecord:
    """What is known of one VM.

    :param qmp: path of its monitor socket.
    :param pid: of QEMU, ``None`` if it is of another pid namespace.
    :param started: when that process began, in clock ticks since boot, for a pid is used again.
    """

    vm: str
    qmp: str
    nics: Mapping[str, NicRecord] = field(default_factory=dict)
    pid: int | None = None
    started: int | None = None

    def process_lives(self) -> bool:
        """Whether that very process is still there. False if it was never known."""
        return self.pid is not None and self.is_of(self.pid)

    def is_of(self, pid: int | None) -> bool:
        """Whether it tells of the process that has this pid now."""
        if pid != self.pid:
            return False
        return pid is None or (self.started is not None and started_at(pid) == self.started)


class Journal:
    """The state directory. With no directory it keeps nothing, for a LinkManager in a program.

    :param folder: made if it is missing, for its owner only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._locks: dict[Path, asyncio.Lock] = {}
        self._blocked: set[Path] = set()  # damaged, and could not be set aside
        self.damaged: dict[str, str] = {}  #: VM (or ``networks``) -> what is wrong with its file

    async def load(self) -> tuple[list[VmRecord], list[Network], list[Port]]:
        """Read everything. What cannot be read is set aside, told loudly, and left out.

        :raise StateError: when the directory itself cannot be used.
        """
        if self._folder is None:
            return [], [], []
        try:
            await asyncio.to_thread(_make, self._folder, self._vms)
            names = sorted(await aiofiles.os.listdir(self._vms))
        except OSError as error:
            raise StateError(
                f"the state directory {self._folder} cannot be used: {error.strerror}",
                hint="make it writable for linkmgr, or name another with --state-dir",
            ) from error
        vms = []
        for name in names:
            path = self._vms / name
            if name.endswith(".tmp"):  # of a write that a crash cut off; the document is whole
                with contextlib.suppress(OSError):
                    await aiofiles.os.remove(path)
            elif aside := _ASIDE.fullmatch(name):
                self.damaged[aside[1]] = f"{path} was set aside by an earlier run"
            elif name.endswith(".json"):
                record = await self._read(path, partial(_read_vm, path.stem))
                if record is not None:
                    vms.append(record)
        for name in await aiofiles.os.listdir(self._folder):
            if (aside := _ASIDE.fullmatch(name)) and aside[1] == "networks":
                self.damaged["networks"] = f"{self._folder / name} was set aside by an earlier run"
        networks: list[Network] = []
        ports: list[Port] = []
        found = await self._read(self._networks, _read_networks)
        if found is not None:
            networks, ports = found
        return vms, networks, ports

    async def save_vm(self, record: VmRecord) -> None:
        """Write what is known of a VM.

        :raise StateError: when it is not on disk afterwards.
        """
        if self._folder is not None:
            await self._write(self._vms / f"{check_name('VM', record.vm)}.json", record)

    async def drop_vm(self, name: str) -> None:
        """Forget a VM.

        :raise StateError: when its document is still there afterwards.
        """
        if self._folder is not None:
            await self._remove(self._vms / f"{check_name('VM', name)}.json")

    async def _remove(self, path: Path) -> None:
        async with self._lock(path):
            try:
                with contextlib.suppress(FileNotFoundError):
                    await aiofiles.os.remove(path)
                    await asyncio.to_thread(_sync_folder, path.parent)
            except OSError as error:
                raise _not_written(path, error) from error

    async def save_networks(self, networks: list[Network], ports: list[Port]) -> None:
        """Write all networks and ports.

        :raise StateError: when they are not on disk afterwards.
        """
        if self._folder is not None:
            await self._write(self._networks, {"networks": networks, "ports": ports})

    async def read(self, name: str, read: Callable[[Form], T]) -> T | None:
        """Read another document, ``NAME.json``; ``None`` if there is none that can be read."""
        return None if self._folder is None else await self._read(self._other(name), read)

    async def write(self, name: str, what: Mapping[str, object] | None) -> None:
        """Write another document, ``NAME.json``; ``None`` removes it.

        :raise StateError: when it is not so on disk afterwards.
        """
        if self._folder is None:
            return
        path = self._other(name)
        if what is not None:
            await self._write(path, what)
        else:
            await self._remove(path)

    def _other(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{check_name('document', name)}.json"

    @property
    def _vms(self) -> Path:
        assert self._folder is not None
        return self._folder / "vms"

    @property
    def _networks(self) -> Path:
        assert self._folder is not None
        return self._folder / "networks.json"

    def _lock(self, path: Path) -> asyncio.Lock:
        return self._locks.setdefault(path, asyncio.Lock())

    async def _write(self, path: Path, what: object) -> None:
        text = json.dumps({"format": FORMAT, **to_json(what)}, indent=2) + "\n"
        # A string, because it comes and goes with every change: see `linkmgr.host.sysfiles`.
        temporary = f"{path}.tmp"
        async with self._lock(path):
            if path in self._blocked:
                raise StateError(
                    f"{path} could not be read when linkmgr started, so it is not overwritten",
                    hint=f"move {path} away, then try again",
                )
            try:
                async with aiofiles.open(temporary, "w", opener=_private) as file:
                    await file.write(text)
                    await file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
                await aiofiles.os.replace(temporary, path)
                await asyncio.to_thread(_sync_folder, path.parent)
            except OSError as error:
                with contextlib.suppress(OSError):
                    await aiofiles.os.remove(temporary)
                raise _not_written(path, error) from error

    async def _read(self, path: Path, read: Callable[[Form], T]) -> T | None:
        try:
            async with aiofiles.open(path, "rb") as file:
                text = await file.read()
        except FileNotFoundError:
            return None
        except OSError as error:  # it may be whole, and readable the next time
            self._leave_alone(path, error.strerror or str(error))
            return None
        try:
            return read(Form(_migrated(json.loads(text.decode()))))
        except (ValueError, RecursionError) as error:
            await self._set_aside(path, str(error))
            return None

    async def _set_aside(self, path: Path, why: str) -> None:
        vm = path.stem
        for number in range(1000):
            aside = path.with_name(f"{path.name}.damaged{number or ''}")
            if await aiofiles.os.path.exists(aside):
                continue
            try:
                await aiofiles.os.rename(path, aside)
            except OSError:
                break
            self.damaged[vm] = f"{aside} cannot be read: {why}"
            log.error(
                "%s cannot be read (%s); it is kept as %s. Its cables are left as they are. "
                "To do: mend it and move it back while linkmgr is stopped, or add %s again",
                path, why, aside.name, vm,
            )  # fmt: skip
            return
        self._leave_alone(path, f"{why}; and it cannot be set aside")

    def _leave_alone(self, path: Path, why: str) -> None:
        self._blocked.add(path)
        self.damaged[path.stem] = f"{path} cannot be read: {why}"
        log.error("%s cannot be read (%s): it is left alone", path, why)


def started_at(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (proc(5)); ``None`` if there is none."""
    try:
        # The name in the second field may hold anything, a bracket included.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


class VmJournal:
    """One VM's document, changed NIC by NIC.

    What is written is what was last said of every NIC; a change that could not be written is taken
    back, so that the next one does not bring it along.
    """

    def __init__(self, journal: Journal, record: VmRecord) -> None:
        self._journal = journal
        self.record = record
        self._lock = asyncio.Lock()
        self._dropped = False
        self._saved = bool(record.nics)  # else it may be new

    async def change(self, alias: str, **changes: Any) -> None:
        """Change what is said of a NIC, and write it.

        :param changes: fields of `NicRecord`.
        :raise StateError: when it could not be written; it is as before then.
        """
        async with self._lock:
            before = self.record
            known = before.nics.get(alias)
            if known is None:
                return  # the NIC is gone
            after = replace(known, **changes)
            if after == known:
                return
            await self._save(replace(before, nics={**before.nics, alias: after}))

    async def set_vm(self, nics: Mapping[str, NicRecord], pid: int | None) -> None:
        """Say which NICs there are, and of which process; write it.

        :raise StateError: when it could not be written; it is as before then.
        """
        async with self._lock:
            started = None if pid is None else started_at(pid)
            after = replace(self.record, nics=dict(nics), pid=pid, started=started)
            if after != self.record or not self._saved:
                await self._save(after)

    async def _save(self, after: VmRecord) -> None:
        if self._dropped:
            return
        await self._journal.save_vm(after)
        self.record, self._saved = after, True

    async def drop(self) -> None:
        """Forget the VM.

        :raise StateError: when its document is still there.
        """
        async with self._lock:
            await self._journal.drop_vm(self.record.vm)
            self._dropped = True


def _migrated(document: dict[str, Any]) -> dict[str, Any]:
    form = Form(document)
    number = form.integer("format")
    if number > FORMAT:
        raise FormError("format", f"{number} is of a newer linkmgr; this one reads up to {FORMAT}")
    document = {str(key): value for key, value in document.items()}
    while number < FORMAT:
        if number not in MIGRATIONS:
            raise FormError("format", f"{number} is none that there ever was")
        document = MIGRATIONS[number](document)
        number += 1
    return document


def _read_vm(name: str, form: Form) -> VmRecord:
    if form.text("vm") != name:
        raise FormError("vm", "is not the name of the file")
    record = VmRecord(
        vm=_named("vm", name),
        qmp=form.text("qmp"),
        nics=form.children("nics", _read_nic),
        pid=form.integer("pid") if "pid" in form else None,
        started=form.integer("started") if "started" in form else None,
    )
    for alias in record.nics:
        _named(f"nics.{alias}", alias)
    return record


def _read_nic(form: Form) -> NicRecord:
    return NicRecord(
        facts=form.child("facts", _read_facts),
        wanted=form.choice("wanted", LinkState),
        cable=form.child_or_none("cable", _read_cable),
        intent=form.child_or_none("intent", _read_intent),
        name=form.text_or_none("name"),
    )


def _read_facts(form: Form) -> Facts:
    return Facts(form.text("model"), form.text("mac"), form.integer("mtu"), form.flag("managed"))


def _read_cable(form: Form) -> CableRecord:
    macs = form.raw("macs")
    return CableRecord(
        attachment=form.text("attachment"),
        id=form.text("id"),
        port=form.child("port", read_port),
        endpoint=form.child("endpoint", read_endpoint),
        device=form.text("device"),
        mac=form.text("mac"),
        macs=tuple(str(each) for each in macs) if isinstance(macs, list) else (),
        since=form.time("since"),
    )


def _read_intent(form: Form) -> Intent:
    foreign = form.raw("foreign")
    return Intent(
        attachment=form.text_or_none("attachment"),
        port=form.child_or_none("port", read_port),
        notify=form.choice("notify", Notify),
        foreign=(str(foreign[0]), str(foreign[1]))
        if isinstance(foreign, list) and len(foreign) == 2
        else None,
    )


def _read_networks(form: Form) -> tuple[list[Network], list[Port]]:
    return form.items("networks", read_network), form.items("ports", read_port)


def _named(path: str, name: str) -> str:
    try:
        return check_name("VM or NIC", name)
    except BadName as error:
        raise FormError(path, str(error)) from None


def _make(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _not_written(path: Path, error: OSError) -> StateError:
    return StateError(
        f"the state cannot be written to {path}: {error.strerror}",
        hint="make room or make it writable, then try again",
    )
