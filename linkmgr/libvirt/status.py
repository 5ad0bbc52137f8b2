"""libvirt's own record of a running domain: the file NAME.xml in its run directory.

libvirt writes it anew after each change of the running domain, under another name first, so whoever
reads it has a whole one. It belongs to libvirt's user, and holds the live XML in ``<domstatus>``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from linkmgr.errors import CannotPrepare
from linkmgr.libvirt.domain_xml import MAX_BYTES, Document
from linkmgr.model import LinkState


class BadStatus(ValueError):
    """A file that is none of libvirt's, or not such a record."""


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
class Status:
    """A running domain.

    :param pid: of QEMU; 0 when libvirt has not written it.
    :param nics: by alias.
    """

    name: str
    uuid: str
    pid: int
    nics: Mapping[str, StatusNic]


def read_status(path: str | Path) -> Status | None:
    """Read a domain's status file; ``None`` when there is none, so when the domain does not run.

    Blocks for some ms.

    :raise BadStatus: when it cannot be believed or understood.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadStatus(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise BadStatus(f"{path} is not a file of libvirt's")
        return parse_status(file.read(MAX_BYTES + 1))


def parse_status(xml: bytes) -> Status:
    """Understand a status file.

    :raise BadStatus: when it is none.
    """
    try:
        root = Document(xml).root
    except CannotPrepare as error:
        raise BadStatus(error.what) from error
    domain = root.find("domain")
    name, uuid = (domain.find(each) if domain else None for each in ("name", "uuid"))
    if root.name != "domstatus" or domain is None or name is None or uuid is None:
        raise BadStatus("it is no status of a domain (<domstatus> with <domain>)")
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
    return Status(name.text.strip(), uuid.text.strip(), int(pid) if pid.isdecimal() else 0, nics)
