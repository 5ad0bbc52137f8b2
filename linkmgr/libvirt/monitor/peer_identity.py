"""Which domain a process is the QEMU of, as root's own files and the kernel say.

All guests share one uid and what a command line says can be forged, so a QEMU is not believed. Its
pid is the kernel's word (SO_PEERCRED, unix(7)). libvirt writes that pid, with the domain's name and
uuid, into its status file of the running domain, a file of root's that no guest can write
(`linkmgr.libvirt.xml.status_file`); it is there before QEMU is executed. Measured with libvirt 9.0,
11.3 and 12.8.

A status file can be left behind when libvirtd was away as its guest ended, and the pid be given to
somebody else. So the process has to hold the write lock on a pid file as well, which libvirt takes
for QEMU before it executes it (libvirt 6.2 and newer), and to have begun before that file was
written. The pid file is 0644: a *read* lock on it is anybody's.

The guest itself must not be what speaks, either: a device of it could lead to the socket. So its
XML has to have a monitor, and nothing else that dials (`linkmgr.libvirt.xml.monitor`).

libvirt 11 and newer give the directory to the user that QEMU runs as, so a guest that was taken
over may rename and remove root's files there. It gains nothing by that: names of files only say
where to look first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from linkmgr.errors import CannotPrepare
from linkmgr.libvirt.xml import monitor
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.status_file import (
    BadDomainStatus,
    DomainStatus,
    open_root_file,
    pid_hint,
    read_status,
)
from linkmgr.state.journal import started_at

RUN_DIR = Path("/run/libvirt/qemu")

#: Files that the directory may have: a guest's user may make more, and all are looked at. 200
#: guests have 400 files and some directories.
MAX_FILES = 20_000

_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
_FLOCK = struct.Struct("hhqqi4x")  # struct flock with 64-bit offsets: type, whence, start, len, pid
_SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5; Python has no name for it
_MAX_PID_BYTES = 32
_CLOCK_STEP_NS = 100_000_000  # of the clock that files are stamped with: 10 ms, and a margin


@dataclass(frozen=True)
class ConnectedQemu:
    """A domain's QEMU that has connected to the service's socket.

    :param uuid: in lower case with hyphens.
    """

    name: str
    uuid: str
    pid: int


class UntrustedPeer(Exception):
    """The peer is no QEMU of libvirt's; the text says why, as a clause."""


class PeerIdentifier:
    """Identifies the peer of a connection by libvirt's files about the domains that run.

    :param run_dir: where libvirt keeps ``NAME.pid`` and ``NAME.xml`` of those that run.
    """

    def __init__(self, run_dir: Path = RUN_DIR) -> None:
        self._run_dir = run_dir
        self._pid_files: dict[int, str] = {}  # their names without .pid: a hint, checked at use
        self._dir_mtime_ns = 0  # of the directory when they were read
        self._read_lock = threading.Lock()  # untrusted peers may come in crowds

    def identify(self, sock: socket.socket) -> ConnectedQemu:
        """Find out which domain's QEMU is at the other end. Waits for the file system.

        :raise UntrustedPeer: it is none.
        """
        pid, uid = _peer(sock)
        began = started_at(pid)
        if began is None:
            raise UntrustedPeer("it has ended")
        status = self._status_of(pid, began, self._pid_file_of(pid))
        # Last of all: while it lives its pid is nobody else's, so all that was read is about it.
        if _has_ended(sock) or started_at(pid) != began or _effective_uid(pid) != uid:
            raise UntrustedPeer("it has ended")
        if why := _no_monitor(status):
            raise UntrustedPeer(f"domain {status.name}: {why}")
        return ConnectedQemu(status.name, status.uuid, pid)

    def untrusted_reason(self, name: str) -> str | None:
        """Why the QEMU of the status file ``NAME.xml`` would be refused; ``None`` if it would not.

        :param name: of the file.
        """
        try:
            status = read_status(self._run_dir / f"{name}.xml")
        except BadDomainStatus as error:
            return str(error)
        if status is None:
            return None  # the guest has just ended
        began = started_at(status.pid) if status.pid else None
        if began is None:
            return f"its process {status.pid} has ended, and libvirt has not noticed"
        try:
            self._status_of(status.pid, began, self._pid_file_of(status.pid))
        except UntrustedPeer as error:
            return str(error)
        if status.name != name:
            return f"it is the status file of domain {status.name}: somebody has renamed it"
        return None

    def _pid_file_of(self, pid: int) -> str:
        """The name, without .pid, of the file that has its pid and on which it has the lock."""
        hint = self._pid_files.get(pid)
        if hint is not None and self._is_locked_by(hint, pid):
            return hint
        with self._read_lock:
            self._read_pid_files()
        name = self._pid_files.get(pid)
        if name is None:
            raise UntrustedPeer(f"its pid is in no file {self._run_dir}/NAME.pid of root's")
        if not self._is_locked_by(name, pid):
            raise UntrustedPeer(f"it does not hold the write lock on {self._run_dir}/{name}.pid")
        return name

    def _read_pid_files(self) -> None:
        """Read all pid files, unless the directory is as before: refusals are to cost little."""
        try:
            changed = self._run_dir.stat().st_mtime_ns
            if changed == self._dir_mtime_ns:
                return
            names = self._names(".pid")
        except OSError as error:
            raise UntrustedPeer(f"{self._run_dir} cannot be read: {error.strerror}") from error
        found: dict[int, str] = {}
        for name in names:
            try:
                pid, holder = _read_pid(self._run_dir / f"{name}.pid")
            except (OSError, ValueError):
                continue  # gone meanwhile, or no pid file of a domain
            if holder == pid or pid not in found:  # another file may have been left behind
                found[pid] = name
        self._pid_files = found
        settled = time.time_ns() - changed > _CLOCK_STEP_NS
        self._dir_mtime_ns = changed if settled else 0

    def _names(self, suffix: str) -> list[str]:
        """The files of a kind in the directory, without the suffix.

        :raise OSError: it cannot be read.
        """
        with os.scandir(self._run_dir) as entries:
            there = [each.name for each in islice(entries, MAX_FILES + 1)]
        if len(there) > MAX_FILES:
            raise OSError(errno.E2BIG, f"it has more than {MAX_FILES} files")
        return [name.removesuffix(suffix) for name in there if name.endswith(suffix)]

    def _is_locked_by(self, name: str, pid: int) -> bool:
        try:
            return _read_pid(self._run_dir / f"{name}.pid") == (pid, pid)
        except (OSError, ValueError):
            return False

    def _status_of(self, pid: int, began: int, name: str) -> DomainStatus:
        """The status file of a process: most likely the one beside its pid file.

        :param began: when the process did, in clock ticks since boot.
        """
        try:
            return self._checked_status(name, pid, began)
        except UntrustedPeer as error:
            why = error
        try:  # somebody has renamed files
            others = [each for each in self._names(".xml") if each != name]
        except OSError as error:
            raise UntrustedPeer(f"{self._run_dir} cannot be read: {error.strerror}") from error
        for each in others:
            if pid_hint(self._run_dir / f"{each}.xml") == pid:
                try:
                    return self._checked_status(each, pid, began)
                except UntrustedPeer as error:
                    why = error
        raise why

    def _checked_status(self, name: str, pid: int, began: int) -> DomainStatus:
        """The status in one file, if it is of this process.

        :raise UntrustedPeer: it is not.
        """
        path = self._run_dir / f"{name}.xml"
        try:
            status = read_status(path)
        except BadDomainStatus as error:
            raise UntrustedPeer(f"{path} cannot be used: {error}") from error
        if status is None:
            raise UntrustedPeer(f"there is no {path}")
        if status.pid != pid:
            raise UntrustedPeer(f"{path} says that its QEMU is the process {status.pid}")
        if _in_real_time(began) > status.written + _CLOCK_STEP_NS:
            raise UntrustedPeer(
                f"it began after {path} was written, so that tells of an earlier process with its "
                "pid; if the host's clock was set meanwhile, have libvirt write it anew: "
                "'systemctl restart libvirtd', which no guest notices"
            )
        return status


def peer_pid(sock: socket.socket) -> int:
    """The process that connected.

    :raise UntrustedPeer: the kernel cannot say, as for one of another pid namespace.
    """
    return _peer(sock)[0]


def peer_uid(sock: socket.socket) -> int:
    """The user of the process that connected.

    :raise UntrustedPeer: as `peer_pid`.
    """
    return _peer(sock)[1]


def _peer(sock: socket.socket) -> tuple[int, int]:
    """The process that connected, and its effective uid then.

    :raise UntrustedPeer: as `peer_pid`.
    """
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError as error:
        raise UntrustedPeer(f"the kernel does not say who it is: {error.strerror}") from error
    pid, uid, _ = _UCRED.unpack(raw)
    if pid <= 0:
        raise UntrustedPeer("it is of another pid namespace")
    return pid, uid


def _has_ended(sock: socket.socket) -> bool:
    """Whether the process that connected has ended, though somebody may hold its connection.

    Linux before 6.5 does not say. Then its uid, which has to be that of the process with the
    pid now, keeps out all but those that run as QEMU does.
    """
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


def _effective_uid(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[2]) for line in lines if line.startswith("Uid:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _in_real_time(ticks: int) -> int:
    """Clock ticks since boot in nanoseconds since 1970, by the clocks as they are now."""
    since_boot = ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + since_boot


def _no_monitor(status: DomainStatus) -> str | None:
    """Why what dials is no monitor of QEMU's, though it is QEMU that dials; ``None`` if it is."""
    try:
        document = Document(status.domain)
    except CannotPrepare as error:
        return f"its XML cannot be read: {error.what}"
    if leak := monitor.find_leak(document):
        return f"its guest could speak to the service as its QEMU, through {leak.what}. To do: " + (
            leak.hint
        )
    if not monitor.has_monitor(document):
        return "nothing in its XML makes its QEMU dial with a monitor"
    return None


def _read_pid(path: Path) -> tuple[int, int | None]:
    """The pid in a file of root's, and the one that has the file locked for writing.

    :raise OSError: it cannot be read, or somebody else could have written it.
    :raise ValueError: it holds no pid.
    """
    fd = open_root_file(path)
    try:
        pid = int(os.read(fd, _MAX_PID_BYTES))
        # The byte that libvirt locks, and no other: the kernel names one lock of those that are in
        # the way, and on all other bytes anybody can have had a shared one before.
        ask = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        kind, _, _, _, holder = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, ask))
    finally:
        os.close(fd)
    return pid, holder if kind == fcntl.F_WRLCK else None
