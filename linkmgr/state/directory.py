"""The state directory: JSON documents that a crash leaves whole, for one linkmgr at a time.

Each is written to a temporary file that replaces the old one when it is safely on disk, so that a
crash leaves the old document or the new one, and never a part. What cannot be read is set aside
(``NAME.json.damaged``) and never overwritten.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiofiles
import aiofiles.os

from linkmgr.aio.threads import run_in_thread
from linkmgr.errors import Conflict, LinkmgrError, StateError
from linkmgr.model import check_name
from linkmgr.state.codec import DecodeError, JsonReader, to_json
from linkmgr.state.lock_file import LOCK_FILE_NAME, open_lock
from linkmgr.state.migrations import FORMAT, MIGRATIONS

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds until a failed write is tried again.
SAVE_RETRY_INTERVAL_S = 5.0
#: What comes to the same as mending a document: by its name, or its group's.
_INSTEAD = {
    "vms": "add the VM again",
    "networks": "make the networks and ports again",
    "configuration": "delete the networks that the configuration no longer has",
    "domains": "plug what is not as the domains' XML asks",
    "links": "set the links again that were set while linkmgr was away",
}
_ASIDE = re.compile(r"(.+)\.json\.damaged\d*")


class NewerFormat(DecodeError):
    """A document of a newer linkmgr."""


@dataclass(frozen=True)
class DamagedDocument:
    """A document that cannot be read.

    :param name: of the document: ``networks``, ``vms/web1``.
    :param file: where it is now.
    :param why: what is wrong with it, as a sentence.
    :param newer: whether it is whole, but of a newer linkmgr.
    :param earlier: whether it was found by an earlier run.
    """

    name: str
    file: Path
    why: str
    newer: bool = False
    earlier: bool = False

    @property
    def subject(self) -> str:
        """What it is about: a VM, or the document's name."""
        return self.name.rpartition("/")[2]

    @property
    def hint(self) -> str:
        """What to do."""
        instead = _INSTEAD.get(self.name.partition("/")[0], "do again what it said")
        mend = "install the newer linkmgr" if self.newer else "mend it"
        home = self.file.with_name(f"{self.subject}.json")
        if self.file == home:  # it could not be set aside
            return f"{mend} while linkmgr is stopped; or move {home} away, and {instead}"
        return (
            f"{mend} and move it back to {home} while linkmgr is stopped; or {instead}, and delete "
            f"{self.file}"
        )


class SavedDocument:
    """A document that is written when what it says has changed, and again after a failure.

    :param what: it says, for people: ``what is done of the domains' cables``.
    :param content: makes what it is to say now; empty when there is to be no document.
    """

    def __init__(
        self,
        documents: StateDirectory,
        name: str,
        what: str,
        content: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.name, self.what = name, what
        self.failure: LinkmgrError | None = None  #: of the last attempt to write it
        self._documents = documents
        self._content = content
        self._written: object = None
        self._saving = asyncio.Lock()

    def is_written(self) -> None:
        """Say that it is on disk as it is to be: it was read just now."""
        self._written = self._content()

    async def save(self) -> None:
        """Write it, if it has changed.

        A failure stops nothing. It is logged once, is in `StateDirectory.unwritten`, and the write
        is tried again by itself.
        """
        async with self._saving:
            content = self._content()
            if content == self._written:
                self.failure = None
                return
            try:
                if content:
                    await self._documents.write(self.name, content)
                else:
                    await self._documents.remove(self.name)
            except LinkmgrError as error:
                if str(error) != str(self.failure):
                    log.error("%s: %s", self.what, error)
                self.failure = error
                self._documents.save_later(self)
            else:
                self._written, self.failure = content, None


class StateDirectory:
    """A state directory: its documents by name, such as ``networks``, or ``vms/web1`` in a group.

    :param folder: ``None`` keeps nothing, for a LinkManager in a program.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        # Kept: see `linkmgr.host.sysfs` for what a Path costs that comes and goes.
        self._files: dict[str, tuple[Path, asyncio.Lock]] = {}
        self._blocked: set[str] = set()  # damaged, and could not be set aside
        self._damages: dict[str, DamagedDocument] = {}
        self._held: int | None = None
        self._unsaved: dict[str, SavedDocument] = {}
        self._saving_later: asyncio.Task[None] | None = None

    async def lock(self) -> None:
        """Lock the directory until `close`, or until this process ends.

        :raise Conflict: another one has it.
        :raise StateError: when the directory cannot be used.
        """
        if self.folder is None:
            return
        try:
            await asyncio.to_thread(_make, self.folder)
            # Not the directory: where others can open it, they could lock it as well.
            self._held = open_lock(self.folder / LOCK_FILE_NAME)
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise Conflict(
                f"another linkmgr uses the state directory {self.folder}",
                hint="stop it first ('lslocks' says who it is), or name another with --state-dir",
            ) from None
        except OSError as error:
            self.close()
            raise _unusable(self.folder, error) from error

    def close(self) -> None:
        """Let others use it. Repeats freely."""
        if self._saving_later is not None:
            self._saving_later.cancel()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    async def names(self, group: str = "") -> list[str]:
        """The names of all documents of a group, or of those in none.

        Clears what a crash left half written, and notes what an earlier run has set aside.

        :raise StateError: when the directory cannot be used.
        """
        if self.folder is None:
            return []
        folder = self.folder / group
        found = []
        try:
            await asyncio.to_thread(_make, self.folder)
            await asyncio.to_thread(_make, folder)
            files = sorted(await aiofiles.os.listdir(folder))
        except OSError as error:
            raise _unusable(self.folder, error) from error
        for file in files:
            if file.endswith(".tmp"):  # the document itself is whole
                with contextlib.suppress(OSError):
                    await aiofiles.os.remove(folder / file)
            elif aside := _ASIDE.fullmatch(file):
                why = "was set aside by an earlier run"
                self._note(
                    DamagedDocument(_name(group, aside[1]), folder / file, why, earlier=True)
                )
            elif file.endswith(".json"):
                found.append(_name(group, file.removesuffix(".json")))
        return found

    async def read(self, name: str, read: Callable[[JsonReader], T]) -> T | None:
        """Read a document; ``None`` if there is none, or none that can be read.

        :param read: makes something of it, or raises ValueError.
        """
        if self.folder is None:
            return None
        path, _ = self._file(name)
        try:
            async with aiofiles.open(path, "rb") as file:
                text = await file.read()
        except FileNotFoundError:
            return None
        except OSError as error:  # it may be whole, and readable the next time
            self._leave_alone(DamagedDocument(name, path, error.strerror or str(error)))
            return None
        try:
            found = read(JsonReader(_migrated(json.loads(text.decode()))))
        except (ValueError, RecursionError) as error:
            await self._set_aside(
                DamagedDocument(name, path, str(error), isinstance(error, NewerFormat))
            )
            return None
        self._is_well(name)
        return found

    async def write(self, name: str, what: object) -> None:
        """Write a document. When cancelled in the middle, it is on disk all the same.

        :raise StateError: when it is not on disk afterwards.
        """
        if self.folder is None:
            return
        path, lock = self._file(name)
        text = json.dumps({"format": FORMAT, **to_json(what)}, indent=2) + "\n"
        async with lock:
            if name in self._blocked:
                raise StateError(
                    f"{path} could not be read when linkmgr started, so it is not overwritten",
                    hint=f"move {path} away, then try again",
                )
            try:
                await run_in_thread(_replace, path, text)
            except OSError as error:
                raise _not_written(path, error) from error
        self._is_well(name)

    async def remove(self, name: str) -> None:
        """Remove a document, if there is one.

        :raise StateError: when it is still there afterwards.
        """
        if self.folder is None:
            return
        path, lock = self._file(name)
        async with lock:
            try:
                with contextlib.suppress(FileNotFoundError):
                    await run_in_thread(_remove, path)
            except OSError as error:
                raise _not_written(path, error) from error

    def save_later(self, document: SavedDocument) -> None:
        """Try again to write a document, on a disk that was full, say, until that succeeds."""
        self._unsaved[document.name] = document
        if self._saving_later is None or self._saving_later.done():
            self._saving_later = asyncio.create_task(self._save_again(), name="write documents")

    async def _save_again(self) -> None:
        while self._unsaved:
            await asyncio.sleep(SAVE_RETRY_INTERVAL_S)
            for name, document in list(self._unsaved.items()):
                await document.save()
                if document.failure is None:
                    del self._unsaved[name]

    def unwritten(self) -> list[tuple[SavedDocument, LinkmgrError]]:
        """The documents that are not on disk as they are to be, and why."""
        return [(each, each.failure) for each in self._unsaved.values() if each.failure]

    def damages(self) -> list[DamagedDocument]:
        """What cannot be read, as long as its file is there.

        Not of a VM, say, whose document was written anew since; but of the networks, for some may
        be missing in the new one.
        """
        return [each for each in self._damages.values() if each.file.exists()]

    def damage(self, name: str) -> DamagedDocument | None:
        """What this run found wrong with a document."""
        found = self._damages.get(name)
        return None if found is None or found.earlier else found

    def _file(self, name: str) -> tuple[Path, asyncio.Lock]:
        """Where a document is, and who may write it."""
        assert self.folder is not None
        if name not in self._files:
            group, _, last = name.rpartition("/")
            path = self.folder / group / f"{check_name('document', last)}.json"
            self._files[name] = path, asyncio.Lock()
        return self._files[name]

    def _is_well(self, name: str) -> None:
        # One of many things may still lack what an earlier one said.
        if "/" in name:
            self._damages.pop(name, None)

    def _note(self, damage: DamagedDocument) -> None:
        self._damages[damage.name] = damage

    async def _set_aside(self, damage: DamagedDocument) -> None:
        path = damage.file
        for number in range(1000):
            aside = path.with_name(f"{path.name}.damaged{number or ''}")
            if await aiofiles.os.path.exists(aside):
                continue
            try:
                await run_in_thread(_rename, path, aside)
            except OSError:
                break
            moved = DamagedDocument(
                damage.name, aside, f"cannot be read: {damage.why}", damage.newer
            )
            self._note(moved)
            log.error(
                "%s cannot be read (%s); it is kept as %s. Cables are left as they are. To do: %s",
                path, damage.why, aside.name, moved.hint,
            )  # fmt: skip
            return
        why = f"{damage.why}; and it cannot be set aside"
        self._leave_alone(DamagedDocument(damage.name, path, why, damage.newer))

    def _leave_alone(self, damage: DamagedDocument) -> None:
        self._blocked.add(damage.name)
        self._note(
            DamagedDocument(damage.name, damage.file, f"cannot be read: {damage.why}", damage.newer)
        )
        log.error("%s cannot be read (%s): it is left alone", damage.file, damage.why)


def _name(group: str, last: str) -> str:
    return f"{group}/{last}" if group else last


def _migrated(document: dict[str, Any]) -> dict[str, Any]:
    reader = JsonReader(document)
    number = reader.integer("format")
    if number > FORMAT:
        raise NewerFormat(
            "format", f"{number} is of a newer linkmgr; this one reads up to {FORMAT}"
        )
    document = {str(key): value for key, value in document.items()}
    while number < FORMAT:
        if number not in MIGRATIONS:
            raise DecodeError("format", f"{number} is none that there ever was")
        document = MIGRATIONS[number](document)
        number += 1
    return document


def _make(folder: Path, mode: int = 0o700) -> None:
    """Make a folder, and those above it, so that a crash leaves them too."""
    if folder.is_dir():
        return
    _make(folder.parent, 0o755)
    folder.mkdir(mode=mode, exist_ok=True)
    _sync_folder(folder.parent)


def _replace(path: Path, text: str) -> None:
    """Write a file beside the old one, under a name that no other write has, and replace that."""
    fd, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(fd, "w") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - a string
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)  # noqa: PTH107 - a string
        raise
    _sync_folder(path.parent)


def _remove(path: Path) -> None:
    path.unlink()
    _sync_folder(path.parent)


def _rename(path: Path, to: Path) -> None:
    path.rename(to)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unusable(folder: Path, error: OSError) -> StateError:
    return StateError(
        f"the state directory {folder} cannot be used: {error.strerror}",
        hint="make it writable for linkmgr, or name another with --state-dir",
    )


def _not_written(path: Path, error: OSError) -> StateError:
    return StateError(
        f"the state cannot be written to {path}: {error.strerror}",
        hint="make room or make it writable, then try again",
    )
