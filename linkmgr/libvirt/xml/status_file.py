"""libvirt's status file of a running domain: NAME.xml in its run directory.

libvirt writes it anew after each change of the running domain, under another name first, so whoever
reads it has a whole one. It belongs to root, and holds QEMU's pid and the live XML in
``<domstatus>``. libvirt 11 and newer give the *directory* to the user that QEMU runs as: a guest
that was taken over can rename root's files there, and remove them, but not write them. So what
stands in such a file is believed, and its name is not.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from linkmgr.errors import CannotPrepare
from linkmgr.libvirt.xml.document import MAX_BYTES, Document
from linkmgr.model import LinkState

# In which <domstatus pid=...> begins: only a comment of libvirt's is before it.
_HEAD_BYTES = 4096
_PID = re.compile(rb"<domstatus\b[^>]*\bpid=[\"'](\d{1,10})[\"']")


class BadDomainStatus(ValueError):
    """A file that is no status file of libvirt's."""


@dataclass(frozen=True)
class StatusNic:
    """A NIC as libvirt has it.

    :param mac: in lower case.
    :param link: what libvirt has set, or believes to be so.
    :param target: the name of its device on the host, in libvirt's eyes; may be empty.
    """

    mac: str
    link: LinkState
    target: str = ""


@dataclass(frozen=True)
class DomainStatus:
    """What the status file of a running domain says.

    :param uuid: in lower case with hyphens.
    :param pid: of QEMU; 0 when libvirt has not written it.
    :param nics: by alias.
    :param written: when libvirt wrote it, in nanoseconds since 1970; 0 when that is not known.
    :param domain: its live XML.
    """

    name: str
    uuid: str
    pid: int
    nics: Mapping[str, StatusNic]
    written: int = 0
    domain: bytes = field(default=b"", repr=False)


def open_root_file(path: str | Path, *, any_owner: bool = False) -> int:
    """Open a file that nobody but root, or the service's user, can have written.

    Its mode and owner say so; a symlink and what is no regular file are refused.

    :param any_owner: any user's will do, if no other can have written it.
    :raise OSError: it cannot be opened, or somebody else could have written it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    owners_only = any_owner and not found.st_mode & 0o022
    if stat.S_ISREG(found.st_mode) and (owners_only or only_root_writes(found)):
        return fd
    os.close(fd)
    raise PermissionError(errno.EPERM, "others than root and the service may write to it")


def only_root_writes(found: os.stat_result) -> bool:
    """Whether nobody but root and the service's user may write to a file."""
    return found.st_uid in {0, os.geteuid()} and not found.st_mode & 0o022


def read_status(path: str | Path) -> DomainStatus | None:
    """Read a domain's status file; ``None`` when there is none, so when the domain does not run.

    Blocks for some ms.

    :raise BadDomainStatus: when it cannot be believed or understood.
    """
    found = _read(path, MAX_BYTES + 1)
    return None if found is None else parse_status(*found)


def parse_status(xml: bytes, written: int = 0) -> DomainStatus:
    """Understand a status file.

    :raise BadDomainStatus: when it is none.
    """
    try:
        document = Document(xml)
    except CannotPrepare as error:
        raise BadDomainStatus(error.what) from error
    root = document.root
    domain = root.find("domain")
    name, uuid = (domain.find(each) if domain else None for each in ("name", "uuid"))
    if root.name != "domstatus" or domain is None or name is None or uuid is None:
        raise BadDomainStatus("it is no status of a domain (<domstatus> with <domain>)")
    try:
        its_uuid = str(uuids.UUID(uuid.text.strip()))
    except ValueError as error:
        raise BadDomainStatus(f"its uuid is none: {ascii(uuid.text)[:60]}") from error
    pid = root.attributes.get("pid", "")
    devices = domain.find("devices")
    nics = {}
    for each in devices.children if devices else []:
        if each.name == "interface" and (alias := each.get("alias", "name")):
            nics[alias] = StatusNic(
                mac=each.get("mac", "address").lower(),
                link=LinkState.DOWN if each.get("link", "state") == "down" else LinkState.UP,
                target=each.get("target", "dev"),
            )
    its_pid = int(pid) if pid.isascii() and pid.isdecimal() and len(pid) <= 10 else 0
    text = document.text(domain)
    return DomainStatus(name.text.strip(), its_uuid, its_pid, nics, written, text)


def pid_hint(path: str | Path) -> int | None:
    """The pid in a status file's first line, read in no time; `read_status` says if it is true."""
    try:
        found = _read(path, _HEAD_BYTES)
    except BadDomainStatus:
        return None
    match = _PID.search(found[0]) if found else None
    return int(match[1]) if match else None


def pid_of(name: str, run_dir: Path) -> int | None:
    """The process id of a running domain's QEMU; ``None`` when its status file does not say it.

    Reads no more of the file than up to the domain's name, which has to be this one. The libvirt
    of a session writes it as its user, whose word counts for processes of that user alone.
    """
    try:
        fd = open_root_file(run_dir / f"{name}.xml", any_owner=True)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        owner = os.fstat(fd)
        pid, its_name = _beginning(file.read(MAX_BYTES))
    if not pid or its_name != name:
        return None
    return pid if only_root_writes(owner) or _runs_as(pid, owner.st_uid) else None


def _runs_as(pid: int, uid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == uid  # noqa: PTH116 - no name is kept
    except OSError:
        return False


def _read(path: str | Path, most: int) -> tuple[bytes, int] | None:
    """What a file begins with, and when it was written.

    :raise BadDomainStatus: when it cannot be believed.
    """
    try:
        fd = open_root_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadDomainStatus(f"{path} cannot be used: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        return file.read(most), os.fstat(fd).st_mtime_ns


class _StopParsing(Exception):
    """All that was looked for is parsed."""


def _beginning(xml: bytes) -> tuple[int, str]:
    """The pid and the domain's name in a status file; 0 and nothing when it is none."""
    pid, name, at = 0, "", list[str]()

    def begin(tag: str, attributes: dict[str, str]) -> None:
        nonlocal pid
        at.append(tag)
        if at == ["domstatus"] and attributes.get("pid", "").isdecimal():
            pid = int(attributes["pid"][:10])

    def characters(text: str) -> None:
        nonlocal name
        if at == ["domstatus", "domain", "name"]:
            name += text

    def end(_: str) -> None:
        if at == ["domstatus", "domain", "name"]:
            raise _StopParsing
        at.pop()

    def doctype(*_: object) -> None:  # libvirt writes none, and entities come from there
        raise _StopParsing

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = characters, doctype
    try:
        parser.Parse(xml, True)
    except _StopParsing:
        return pid, name.strip()
    except expat.ExpatError:
        pass
    return 0, ""
