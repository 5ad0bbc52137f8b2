"""Whose QEMU dials: what the kernel and libvirt's own files say, not what it says itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from linkmgr.libvirt.identity import Dialled, DomainFiles, Stranger

UUID = "e4575ab2-7cba-58df-aac2-669e6faac4ef"
DOMAIN = f"<domain type='qemu'><name>web1</name><uuid>{UUID}</uuid></domain>"
STATUS = f"<!-- generated --><domstatus state='running' pid='1'>{DOMAIN}</domstatus>"
#: Writes its pid and locks the file, if it is to; connects, and forks if it is to; then waits.
QEMU = """
import fcntl, os, sys
_, address, pid_file, how = sys.argv
if "write" in how:
    file = open(pid_file, "r+" if os.path.exists(pid_file) else "w")
    file.write(f"{os.getpid()}\\n"); file.flush()
    if "lock" in how:
        fcntl.lockf(file, fcntl.LOCK_EX)
import socket
sock = socket.socket(socket.AF_UNIX)
sock.connect(address)
if "fork" in how and os.fork() > 0:
    os._exit(0)
print("connected", flush=True)
sys.stdin.read()
"""


@dataclass
class Libvirt:
    """A run directory as libvirt keeps it, and a socket to dial."""

    folder: Path
    stack: ExitStack

    def __post_init__(self) -> None:
        self.run, self.config = self.folder / "run", self.folder / "etc"
        for each in (self.run, self.config):
            each.mkdir(mode=0o755)
        (self.run / "web1.xml").write_text(STATUS)
        self.files = DomainFiles(self.run, self.config)
        self.listening = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        self.listening.bind(str(self.folder / "qmp.sock"))
        self.listening.listen()

    def dialled(self, how: str = "write lock", name: str = "web1") -> tuple[int, socket.socket]:
        """Start a process that dials; its pid and our end."""
        child = self.stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", QEMU, str(self.folder / "qmp.sock"),
                 str(self.run / f"{name}.pid"), how],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
        )  # fmt: skip
        self.stack.callback(child.kill)
        ours = self.stack.enter_context(self.listening.accept()[0])
        assert child.stdout is not None
        assert child.stdout.readline() == b"connected\n"
        if "fork" in how:
            child.wait(10)
        return child.pid, ours

    def refuses(self, sock: socket.socket, why: str) -> None:
        with pytest.raises(Stranger, match=why):
            self.files.identify(sock)


@pytest.fixture
def libvirt(tmp_path: Path) -> Iterator[Libvirt]:
    with ExitStack() as stack:
        yield Libvirt(tmp_path, stack)


def test_a_process_that_libvirt_started_is_its_domain(libvirt: Libvirt) -> None:
    pid, sock = libvirt.dialled()
    assert libvirt.files.identify(sock) == Dialled("web1", UUID, pid)
    assert libvirt.files.identify(sock) == Dialled("web1", UUID, pid)  # now from memory


def test_a_process_in_no_pid_file_is_a_stranger(libvirt: Libvirt) -> None:
    libvirt.refuses(libvirt.dialled("")[1], r"its pid is in no file .*/NAME\.pid")


def test_a_guest_that_starts_after_a_stranger_was_refused_is_found(libvirt: Libvirt) -> None:
    _, stranger = libvirt.dialled("")
    os.utime(libvirt.run, (1, 1))  # nothing has happened for long
    libvirt.refuses(stranger, "no file")
    pid, sock = libvirt.dialled()
    assert libvirt.files.identify(sock).pid == pid


def test_a_pid_file_that_was_left_behind_speaks_for_nobody(libvirt: Libvirt) -> None:
    """Its QEMU has ended, and the pid was given to somebody else."""
    libvirt.refuses(libvirt.dialled("write")[1], r"does not hold the lock on .*/web1\.pid")


def test_a_file_that_was_left_behind_is_not_in_the_way_of_the_right_one(libvirt: Libvirt) -> None:
    (libvirt.run / "web1.xml").write_text(STATUS.replace("web1", "web2"))
    (libvirt.run / "web1.xml").rename(libvirt.run / "web2.xml")
    pid, sock = libvirt.dialled(name="web2")
    for name in ("aaa", "zzz"):
        (libvirt.run / f"{name}.pid").write_text(f"{pid}\n")
    assert libvirt.files.identify(sock).name == "web2"


def test_a_domain_that_was_known_and_has_ended_is_not_taken_from_memory(libvirt: Libvirt) -> None:
    _, sock = libvirt.dialled()
    libvirt.files.identify(sock)
    (libvirt.run / "web1.pid").unlink()
    libvirt.refuses(sock, "no file")


def test_who_has_ended_is_nobody_though_his_child_holds_the_connection(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """His pid may be a guest's by the time that it is looked at."""
    _, alive = libvirt.dialled("")
    _, sock = libvirt.dialled("fork")
    monkeypatch.setattr(libvirt.files, "_name_of", lambda _: "web1")
    libvirt.refuses(sock, "has ended")
    assert libvirt.files.identify(alive).name == "web1"


@pytest.mark.parametrize("name", ["web1.pid", "web1.xml", ""])
def test_what_others_may_write_to_is_not_believed(libvirt: Libvirt, name: str) -> None:
    _, sock = libvirt.dialled()
    (libvirt.run / name).chmod(0o777)
    libvirt.refuses(sock, "others than root|no file")


def test_what_another_user_owns_is_not_believed(libvirt: Libvirt) -> None:
    if os.geteuid() != 0:
        pytest.skip("files are given away by root only")
    _, sock = libvirt.dialled()
    os.chown(libvirt.run / "web1.xml", 64055, 64055)
    libvirt.refuses(sock, "others than root")


def test_a_link_is_not_followed(libvirt: Libvirt) -> None:
    _, sock = libvirt.dialled()
    (libvirt.run / "web1.pid").rename(libvirt.folder / "elsewhere")
    (libvirt.run / "web1.pid").symlink_to(libvirt.folder / "elsewhere")
    libvirt.refuses(sock, "no file")


def test_the_stored_xml_is_used_when_there_is_no_status(libvirt: Libvirt) -> None:
    _, sock = libvirt.dialled()
    (libvirt.run / "web1.xml").unlink()
    libvirt.refuses(sock, r"there is no web1\.xml")
    (libvirt.config / "web1.xml").write_text(DOMAIN)
    assert libvirt.files.identify(sock).uuid == UUID


@pytest.mark.parametrize(
    "xml",
    [
        "", "<domain", "<domstatus/>", "<domain><name>web1</name></domain>",
        DOMAIN.replace("web1", "web2"), DOMAIN.replace(UUID, "no-uuid"),
        f"<!DOCTYPE d [<!ENTITY e '{UUID}'>]>" + DOMAIN.replace(UUID, "&e;"),
    ],
)  # fmt: skip
def test_xml_that_does_not_say_the_uuid_of_that_domain_is_refused(
    libvirt: Libvirt, xml: str
) -> None:
    _, sock = libvirt.dialled()
    (libvirt.run / "web1.xml").write_text(xml)
    libvirt.refuses(sock, r"web1\.xml cannot be used")


def test_without_libvirt_everybody_is_a_stranger(libvirt: Libvirt) -> None:
    _, sock = libvirt.dialled("")
    files = DomainFiles(libvirt.folder / "nowhere", libvirt.config)
    with pytest.raises(Stranger, match="cannot be read: No such file"):
        files.identify(sock)
