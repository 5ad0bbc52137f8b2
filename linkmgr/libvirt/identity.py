"""Which domain a process is the QEMU of, as libvirt's own files and the kernel say.

All guests share one uid and what a command line says can be forged, so a QEMU is not believed. Its
pid is the kernel's word (SO_PEERCRED, unix(7)). libvirt writes that pid to ``NAME.pid`` before it
executes QEMU, and QEMU's process holds the lock on that file for its whole life (libvirt 6.2 and
newer), which only the process that libvirt started can: so a file that was left behind, of which
the pid was given to somebody else, speaks for nobody. The uuid of NAME is in ``NAME.xml`` beside
it, which is there before QEMU, too. Measured with libvirt 9.0: 20 ms before QEMU dials.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import struct
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from linkmgr.errors import LinkmgrError
from linkmgr.libvirt.domain_xml import MAX_BYTES, Document, Element

RUN_DIR = Path("/run/libvirt/qemu")
CONFIG_DIR = Path("/etc/libvirt/qemu")

_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
_FLOCK = struct.Struct("hhqqi4x")  # struct flock with 64-bit offsets: type, whence, start, len, pid
_SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5; Python has no name for it
_PID_BYTES = 32
_TICK = 100_000_000  # nanoseconds; the clock that files are stamped with goes in steps of 10 ms


@dataclass(frozen=True)
class Dialled:
    """A domain's QEMU that has dialled.

    :param uuid: in lower case with hyphens.
    """

    name: str
    uuid: str
    pid: int


class Stranger(Exception):
    """Who dialled is no QEMU of libvirt's; the text says why, as a clause."""


class DomainFiles:
    """libvirt's files about the domains that run.

    :param run_dir: where libvirt keeps ``NAME.pid`` and ``NAME.xml`` of those that run.
    :param config_dir: where it keeps ``NAME.xml`` of those that are defined.
    """

    def __init__(self, run_dir: Path = RUN_DIR, config_dir: Path = CONFIG_DIR) -> None:
        self._run_dir = run_dir
        self._config_dir = config_dir
        self._names: dict[int, str] = {}  # a hint, checked at each use
        self._looked = 0  # the directory's mtime then

    def identify(self, sock: socket.socket) -> Dialled:
        """Find out which domain's QEMU is at the other end. Waits for the file system.

        :raise Stranger: it is none.
        """
        pid = peer_pid(sock)
        name = self._name_of(pid)
        if _has_ended(sock):  # else its pid may be another's by now
            raise Stranger("it has ended")
        return Dialled(name, self._uuid_of(name), pid)

    def _name_of(self, pid: int) -> str:
        hint = self._names.get(pid)
        if hint is not None and self._is_pid_of(hint, pid):
            return hint
        self._look()
        name = self._names.get(pid)
        if name is None:
            raise Stranger(f"its pid is in no file {self._run_dir}/NAME.pid")
        if not self._is_pid_of(name, pid):
            raise Stranger(f"it does not hold the lock on {self._run_dir}/{name}.pid")
        return name

    def _look(self) -> None:
        """Read all pid files, if there may be others: strangers are to cost little."""
        try:
            folder = self._run_dir.stat()
            if not _only_ours(folder):
                raise Stranger(f"others than root and the service may write to {self._run_dir}")
            if folder.st_mtime_ns == self._looked:
                return
            files = [each for each in self._run_dir.iterdir() if each.suffix == ".pid"]
        except OSError as error:
            raise Stranger(f"{self._run_dir} cannot be read: {error.strerror}") from error
        found: dict[int, str] = {}
        for path in files:
            try:
                pid, holder = _read_pid(path)
            except (OSError, ValueError):
                continue  # gone meanwhile, or no pid file of a domain
            if holder == pid or pid not in found:  # another file may have been left behind
                found[pid] = path.stem
        self._names = found
        settled = time.time_ns() - folder.st_mtime_ns > _TICK
        self._looked = folder.st_mtime_ns if settled else 0

    def _is_pid_of(self, name: str, pid: int) -> bool:
        try:
            return _read_pid(self._run_dir / f"{name}.pid") == (pid, pid)
        except (OSError, ValueError):
            return False

    def _uuid_of(self, name: str) -> str:
        for folder in (self._run_dir, self._config_dir):
            try:
                return _read_uuid(folder / f"{name}.xml", name)
            except FileNotFoundError:
                continue
            except (OSError, LinkmgrError, ValueError) as error:
                raise Stranger(f"{folder}/{name}.xml cannot be used: {error}") from error
        raise Stranger(f"there is no {name}.xml in {self._run_dir} or {self._config_dir}")


def peer_pid(sock: socket.socket) -> int:
    """The process that connected.

    :raise Stranger: the kernel cannot say, as for one of another pid namespace.
    """
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError as error:
        raise Stranger(f"the kernel does not say who it is: {error.strerror}") from error
    pid: int = _UCRED.unpack(raw)[0]
    if pid <= 0:
        raise Stranger("it is of another pid namespace")
    return pid


def _has_ended(sock: socket.socket) -> bool:
    """Whether the process that connected has ended, though somebody may hold its connection."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
    except OSError as error:
        return error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP)  # an older kernel
    pidfd: int = struct.unpack("i", raw)[0]
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(pidfd)


def _read_pid(path: Path) -> tuple[int, int | None]:
    """The pid in a file of libvirt's, and the one that has the file locked.

    :raise OSError: it cannot be read, or somebody else could have written it.
    :raise ValueError: it holds no pid.
    """
    fd = _open(path)
    try:
        pid = int(os.read(fd, _PID_BYTES))
        ask = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, holder = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, ask))
    finally:
        os.close(fd)
    return pid, None if kind == fcntl.F_UNLCK else holder


def _read_uuid(path: Path, name: str) -> str:
    """The uuid in a domain's XML, or in the status of one that runs.

    :raise OSError: as `_read_pid`.
    :raise LinkmgrError: it is no XML that may be read.
    :raise ValueError: it is not of that domain, or has no uuid.
    """
    fd = _open(path)
    with open(fd, "rb") as file:  # noqa: PTH123 - it is open already
        root = Document(file.read(MAX_BYTES + 1)).root
    domain = root if root.name == "domain" else root.find("domain")
    if domain is None or _text(domain, "name") != name:
        raise ValueError(f"it is not the XML of a domain {name}")
    return str(uuid.UUID(_text(domain, "uuid")))


def _text(element: Element, name: str) -> str:
    found = element.find(name)
    return found.text if found else ""


def _open(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and _only_ours(found):
        return fd
    os.close(fd)
    raise PermissionError(errno.EPERM, "others than root and the service may write to it")


def _only_ours(found: os.stat_result) -> bool:
    return found.st_uid in {0, os.geteuid()} and not found.st_mode & 0o022
