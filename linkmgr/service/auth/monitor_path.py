"""Which monitor a caller may name.

The service connects as root, again whenever the connection breaks, and hands taps to whoever
answers. So nobody may name a socket that he could not use himself, and nobody else may choose later
what the path leads to.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from linkmgr.aio.file_threads import run_in_file_thread
from linkmgr.errors import BadRequest, Forbidden
from linkmgr.hypervisors.qemu.qmp.connector import transport_of
from linkmgr.hypervisors.qemu.qmp.transport import file_timeout_error
from linkmgr.model import MonitorTransport

#: Seconds for the look at a path.
PATH_CHECK_TIMEOUT_S = 5.0
_MAX_SYMLINKS = 40  # as many as the kernel follows in a path
_HINT = "give the path that QEMU has in -qmp unix:PATH,server=on,wait=off"


def parse_address(text: str) -> Path | str:
    """Read what a caller gives: the path of a socket, or a domain of libvirt. Looks at no file.

    :return: a `Path`, or ``libvirt:`` with the domain's name or uuid.
    :raise BadRequest: when it is neither. A QEMU that dials is never named: it comes by itself.
    """
    if transport_of(text) is not MonitorTransport.LIBVIRT:
        return parse_path(text)
    domain = text.partition(":")[2]
    if not domain.strip() or not domain.isprintable():
        raise BadRequest(
            f"{ascii(text)[:60]} names no domain", hint="give libvirt: and its name or uuid"
        )
    return text


def authorize(asked: Path | str, may_use: Callable[[int], bool]) -> Path | str:
    """Return what `parse_address` has read, if the caller may use it; see `resolve_trusted`.

    libvirt is asked with the service's own rights, so a domain counts as root's.

    :raise BadRequest: as `resolve_trusted`.
    :raise Forbidden: when it is another user's.
    """
    if isinstance(asked, Path):
        return resolve_trusted(asked, may_use)
    if not may_use(0):
        raise Forbidden(
            f"the monitor {ascii(asked)[1:-1][:60]} is root's, whose VMs the caller may not add",
            hint="add it as root",
        )
    return asked


async def authorize_in_time(
    asked: Path | str, may_use: Callable[[int], bool], uid: int
) -> Path | str:
    """As `authorize`, for a user whose file system may never answer.

    :raise MonitorUnreachable: it has not answered in time.
    """
    try:
        return await run_in_file_thread(
            uid, partial(authorize, asked, may_use), timeout=PATH_CHECK_TIMEOUT_S
        )
    except TimeoutError as error:
        raise file_timeout_error(
            error, ascii(str(asked))[1:-1][:200], PATH_CHECK_TIMEOUT_S
        ) from None


def parse_path(text: str) -> Path:
    """Read the path of a socket. Looks at no file.

    :raise BadRequest: when it is not absolute, or names no file.
    """
    path = Path(text)
    if not path.is_absolute() or "\0" in text or path.name in ("", ".."):
        raise BadRequest(f"{ascii(text)[:60]} is not the absolute path of a socket", hint=_HINT)
    return path


def resolve_trusted(path: Path, may_use: Callable[[int], bool]) -> Path:
    """Return the path with the symbolic links in it followed, which it must not change any more.

    Links of root or of the service's own user in directories of theirs are followed, such as
    /var/run; any other link is refused, and a socket that is one. What does not exist is returned
    as it is: connecting to it says so. Waits for the file system.

    :param may_use: says of the owner of a socket whether the caller may use his.
    :raise BadRequest: when a link must not be followed, or the end is not a socket.
    :raise Forbidden: when the socket is somebody's whose sockets the caller may not use.
    """
    here, symlinks = Path("/"), 0
    rest = deque(path.parts[1:])
    try:
        while rest:
            name = rest.popleft()
            if name == "..":
                here = here.parent
                continue
            step = here / name
            found = step.lstat()
            if not stat.S_ISLNK(found.st_mode):
                here = step
                continue
            symlinks += 1
            if not rest or symlinks > _MAX_SYMLINKS or not (_ours(found) and _is_safe(here)):
                raise BadRequest(
                    f"{ascii(str(step))[1:-1]} is a symbolic link, which could be changed to lead "
                    "to another VM",
                    hint="give the path without it; realpath shows it",
                )
            target = step.readlink()
            if target.is_absolute():
                here = Path("/")
            rest.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    except (OSError, UnicodeError):
        return here.joinpath(name, *rest)
    if not stat.S_ISSOCK(found.st_mode):
        raise BadRequest(f"{ascii(str(here))[1:-1]} is not a socket", hint=_HINT)
    if not may_use(found.st_uid):
        raise Forbidden(
            f"the monitor {ascii(str(here))[1:-1]} belongs to uid {found.st_uid}, whose VMs the "
            "caller may not add",
            hint="add it as root or as its owner",
        )
    return here


def _ours(found: os.stat_result) -> bool:
    return found.st_uid in {0, os.geteuid()}


def _is_safe(folder: Path) -> bool:
    """Whether nobody else can exchange what root has put there."""
    found = folder.stat()
    return _ours(found) and (not found.st_mode & 0o022 or bool(found.st_mode & stat.S_ISVTX))
