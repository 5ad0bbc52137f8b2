"""Whose QEMU dials: what the kernel and root's own files say, not what it says itself."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from linkmgr.doctor import Verdict, guest_files
from linkmgr.libvirt.monitor import peer_identity
from linkmgr.libvirt.monitor.peer_identity import ConnectedQemu, PeerIdentifier, UntrustedPeer
from linkmgr.libvirt.xml.status_file import pid_of

UUID = "e4575ab2-7cba-58df-aac2-669e6faac4ef"
NOBODY = 65534
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
MONITOR = "<q:arg value='-mon'/><q:arg value='chardev=mine,mode=control'/>"
DOMAIN = (
    f"<domain type='qemu' xmlns:q='{QEMU}'><name>web1</name><uuid>{UUID}</uuid><devices/>"
    f"<q:commandline>{MONITOR}</q:commandline></domain>"
)
STATUS = f"<!-- generated -->\n<domstatus state='running' pid='{{pid}}'>{DOMAIN}</domstatus>"
#: Writes its pid and locks the file, if it is to; connects, and forks if it is to; then waits.
PROCESS = """
import fcntl, os, socket, sys
_, address, pid_file, how = sys.argv
if "write" in how:
    file = open(pid_file, "r+" if os.path.exists(pid_file) else "w")
    file.write(f"{os.getpid()}\\n"); file.flush()
if "nobody" in how:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    file = open(pid_file)
if "share" in how:
    fcntl.lockf(file, fcntl.LOCK_SH)
if "lock" in how:
    fcntl.lockf(file, fcntl.LOCK_EX, 1)
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
        self.run = self.folder / "run"
        self.run.mkdir(mode=0o755)
        self.files = PeerIdentifier(self.run)
        self.listening = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        self.listening.bind(str(self.folder / "qmp.sock"))
        (self.folder / "qmp.sock").chmod(0o666)
        self.listening.listen()

    def started(self, name: str = "web1", how: str = "write lock") -> tuple[int, socket.socket]:
        """Start a process as libvirt does its QEMU; it dials. Its pid and our end."""
        pid, sock = self.dialled(how, name)
        self.record(name, pid)
        return pid, sock

    def record(self, name: str, pid: int, *, uuid: str = UUID) -> None:
        text = STATUS.format(pid=pid).replace("web1", name).replace(UUID, uuid)
        (self.run / f"{name}.xml").write_text(text)
        (self.run / f"{name}.xml").chmod(0o600)

    def dialled(self, how: str, name: str = "web1") -> tuple[int, socket.socket]:
        """Start a process that dials; its pid and our end."""
        child = self.stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(self.folder / "qmp.sock"),
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
        with pytest.raises(UntrustedPeer, match=why):
            self.files.identify(sock)


@pytest.fixture
def libvirt() -> Iterator[Libvirt]:
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="lmi-"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)  # everybody may dial
        yield Libvirt(folder, stack)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has processes without rights")


def test_a_process_that_libvirt_started_is_its_domain(libvirt: Libvirt) -> None:
    pid, sock = libvirt.started()
    assert libvirt.files.identify(sock) == ConnectedQemu("web1", UUID, pid)
    assert libvirt.files.identify(sock) == ConnectedQemu("web1", UUID, pid)  # now from memory


@as_root
def test_it_is_known_in_a_directory_of_the_guests_user(libvirt: Libvirt) -> None:
    """libvirt 11 and newer give it to the user that QEMU runs as."""
    os.chown(libvirt.run, 64055, 64055)
    pid, sock = libvirt.started()
    assert libvirt.files.identify(sock) == ConnectedQemu("web1", UUID, pid)
    libvirt.run.chmod(0o777)
    assert PeerIdentifier(libvirt.run).identify(sock) == ConnectedQemu("web1", UUID, pid)


@as_root
@pytest.mark.parametrize("how", ["", "share"])
def test_a_user_who_got_the_pid_of_a_guest_that_ended_is_a_stranger(
    libvirt: Libvirt, how: str
) -> None:
    """libvirtd was away when it ended, so its files are there; all but root's may be read."""
    pid, sock = libvirt.dialled(f"write nobody {how}")
    libvirt.record("web1", pid)
    libvirt.refuses(sock, r"does not hold the write lock on .*/web1\.pid")


#: Has a shared lock on another byte than libvirt's, of a file that everybody may read.
BYSTANDER = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.lockf(file, fcntl.LOCK_SH, 1, 100)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_lock_of_a_stranger_elsewhere_in_the_pid_file_hides_no_qemu(libvirt: Libvirt) -> None:
    """The file was left behind, and libvirt takes it again when the guest starts."""
    (libvirt.run / "web1.pid").write_text("1\n")
    child = libvirt.stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", BYSTANDER, str(libvirt.run / "web1.pid")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
    )  # fmt: skip
    libvirt.stack.callback(child.kill)
    assert child.stdout is not None
    assert child.stdout.readline() == b"locked\n"
    pid, sock = libvirt.started()
    assert libvirt.files.identify(sock) == ConnectedQemu("web1", UUID, pid)


def test_a_record_that_is_older_than_the_process_tells_of_another_one(libvirt: Libvirt) -> None:
    """A QEMU that was taken over can pass on the fd on which it has the write lock."""
    _, sock = libvirt.started()
    before = time.time() - 60
    os.utime(libvirt.run / "web1.xml", (before, before))
    libvirt.refuses(sock, "began after .*web1.xml was written.*restart libvirtd")
    (libvirt.run / "web1.xml").rename(libvirt.run / "other")  # makes a new ctime
    (libvirt.run / "other").rename(libvirt.run / "web1.xml")
    libvirt.refuses(sock, "began after")


@pytest.mark.parametrize("swapped", ["pid", "xml", "pid xml"])
def test_names_of_files_prove_nothing(libvirt: Libvirt, swapped: str) -> None:
    """A guest's user may rename root's files over each other, and change nothing in them."""
    other = UUID.replace("e4", "00")
    one, first = libvirt.started()
    two, second = libvirt.dialled("write lock", "web2")
    libvirt.record("web2", two, uuid=other)
    for kind in swapped.split():
        a, b, c = (libvirt.run / f"{name}.{kind}" for name in ("web1", "web2", "aside"))
        a.rename(c), b.rename(a), c.rename(b)
    assert libvirt.files.identify(first) == ConnectedQemu("web1", UUID, one)
    assert libvirt.files.identify(second) == ConnectedQemu("web2", other, two)


def test_one_record_over_another_makes_nobody_of_the_other_domain(libvirt: Libvirt) -> None:
    _, first = libvirt.started()
    two, second = libvirt.dialled("write lock", "web2")
    libvirt.record("web2", two)
    (libvirt.run / "web1.xml").rename(libvirt.run / "web2.xml")
    (libvirt.run / "web1.pid").rename(libvirt.run / "web2.pid")
    assert libvirt.files.identify(first).name == "web1"
    libvirt.refuses(second, "no file|says that its QEMU is the process")
    assert pid_of("web2", libvirt.run) is None


def test_a_record_left_behind_with_the_same_pid_is_not_taken_for_the_new_one(
    libvirt: Libvirt,
) -> None:
    pid, sock = libvirt.started("web2")
    libvirt.record("web1", pid)
    os.utime(libvirt.run / "web1.xml", (1, 1))
    (libvirt.run / "web2.pid").rename(libvirt.run / "web1.pid")
    assert libvirt.files.identify(sock).name == "web2"


@as_root
def test_files_that_a_guest_made_there_are_not_believed(libvirt: Libvirt) -> None:
    pid, sock = libvirt.dialled("write lock")
    libvirt.record("web1", pid)
    os.chown(libvirt.run / "web1.xml", 64055, 64055)
    libvirt.refuses(sock, "web1.xml cannot be used")
    os.chown(libvirt.run / "web1.xml", 0, 0)
    os.chown(libvirt.run / "web1.pid", 64055, 64055)
    libvirt.refuses(sock, "no file")


def test_a_process_in_no_pid_file_is_a_stranger(libvirt: Libvirt) -> None:
    libvirt.refuses(libvirt.dialled("")[1], r"its pid is in no file .*/NAME\.pid")


def test_a_guest_that_starts_after_a_stranger_was_refused_is_found(libvirt: Libvirt) -> None:
    _, stranger = libvirt.dialled("")
    os.utime(libvirt.run, (1, 1))  # nothing has happened for long
    libvirt.refuses(stranger, "no file")
    pid, sock = libvirt.started()
    assert libvirt.files.identify(sock).pid == pid


def test_a_pid_file_that_was_left_behind_speaks_for_nobody(libvirt: Libvirt) -> None:
    """Its QEMU has ended, and the pid was given to somebody else."""
    libvirt.refuses(libvirt.started(how="write")[1], r"does not hold the write lock .*/web1\.pid")


def test_a_file_that_was_left_behind_is_not_in_the_way_of_the_right_one(libvirt: Libvirt) -> None:
    pid, sock = libvirt.started("web2")
    for name in ("aaa", "zzz"):
        (libvirt.run / f"{name}.pid").write_text(f"{pid}\n")
    assert libvirt.files.identify(sock).name == "web2"


def test_a_domain_that_was_known_and_has_ended_is_not_taken_from_memory(libvirt: Libvirt) -> None:
    _, sock = libvirt.started()
    libvirt.files.identify(sock)
    (libvirt.run / "web1.pid").unlink()
    libvirt.refuses(sock, "no file")


def test_who_has_ended_is_nobody_though_his_child_holds_the_connection(libvirt: Libvirt) -> None:
    pid, sock = libvirt.dialled("write fork")
    libvirt.record("web1", pid)
    libvirt.refuses(sock, "has ended")


@as_root
def test_on_an_older_kernel_who_connected_is_not_who_has_his_pid_by_now(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 6.5 tells of no process, only of a pid and the uid that it had."""
    monkeypatch.setattr(peer_identity, "_SO_PEERPIDFD", 9999)
    pid, sock = libvirt.started()
    assert libvirt.files.identify(sock).pid == pid
    _, other = libvirt.dialled("nobody")
    # Its pid was given to QEMU.
    monkeypatch.setattr(peer_identity, "_peer", lambda _: (pid, NOBODY))
    libvirt.refuses(other, "has ended")


@pytest.mark.parametrize("name", ["web1.pid", "web1.xml"])
def test_what_others_may_write_to_is_not_believed(libvirt: Libvirt, name: str) -> None:
    _, sock = libvirt.started()
    (libvirt.run / name).chmod(0o666)
    libvirt.refuses(sock, "others than root|no file")


@pytest.mark.parametrize("name", ["web1.pid", "web1.xml"])
def test_a_link_is_not_followed(libvirt: Libvirt, name: str) -> None:
    _, sock = libvirt.started()
    (libvirt.run / name).rename(libvirt.folder / "elsewhere")
    (libvirt.run / name).symlink_to(libvirt.folder / "elsewhere")
    libvirt.refuses(sock, "no file|cannot be used")


def test_without_a_record_of_libvirts_it_is_nobody(libvirt: Libvirt) -> None:
    libvirt.refuses(libvirt.dialled("write lock")[1], r"there is no .*web1\.xml")


@pytest.mark.parametrize(
    "xml",
    [
        "", "<domain", "<domstatus pid='{pid}'/>", DOMAIN,
        STATUS.replace("{pid}", ""), STATUS.replace("{pid}", "1"),
        STATUS.replace(UUID, "no-uuid"),
        f"<!DOCTYPE d [<!ENTITY e '{UUID}'>]>" + STATUS.replace(UUID, "&e;"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_say_whose_the_process_is_is_refused(
    libvirt: Libvirt, xml: str
) -> None:
    pid, sock = libvirt.dialled("write lock")
    (libvirt.run / "web1.xml").write_text(xml.replace("{pid}", str(pid)))
    libvirt.refuses(sock, r"web1\.xml (cannot be used|says that its QEMU is)")


def test_a_directory_with_more_files_than_there_can_be_costs_no_more(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_identity, "MAX_FILES", 5)
    _, sock = libvirt.started()
    for number in range(4):
        (libvirt.run / f"{number}.pid").touch()
    libvirt.refuses(sock, "more than 5 files")


def test_without_libvirt_everybody_is_a_stranger(libvirt: Libvirt) -> None:
    _, sock = libvirt.dialled("")
    with pytest.raises(UntrustedPeer, match="cannot be read: No such file"):
        PeerIdentifier(libvirt.folder / "nowhere").identify(sock)


def test_the_pid_of_a_domain_is_what_roots_record_of_that_domain_says(libvirt: Libvirt) -> None:
    libvirt.record("web1", 4711)
    (libvirt.run / "web1.pid").write_text("1\n")
    assert pid_of("web1", libvirt.run) == 4711
    assert pid_of("web2", libvirt.run) is None
    (libvirt.run / "web1.xml").rename(libvirt.run / "web2.xml")
    assert pid_of("web2", libvirt.run) is None
    for text in ("", "<a", "<domstatus pid='x'/>", "<!DOCTYPE a><domstatus pid='1'/>", DOMAIN):
        (libvirt.run / "web3.xml").write_text(text)
        assert pid_of("web3", libvirt.run) is None


def test_the_record_of_a_users_own_libvirt_speaks_for_processes_of_that_user_alone(
    libvirt: Libvirt,
) -> None:
    sleeper = subprocess.Popen(["sleep", "60"], user=NOBODY)
    try:
        libvirt.record("web1", sleeper.pid)
        os.chown(libvirt.run / "web1.xml", NOBODY, NOBODY)
        assert pid_of("web1", libvirt.run) == sleeper.pid
        libvirt.record("web2", os.getpid())  # root's
        os.chown(libvirt.run / "web2.xml", NOBODY, NOBODY)
        assert pid_of("web2", libvirt.run) is None
    finally:
        sleeper.kill()
        sleeper.wait()


async def test_doctor_says_which_running_domains_would_be_strangers(libvirt: Libvirt) -> None:
    assert await guest_files(libvirt.folder / "nowhere") == []
    libvirt.started()
    (fine,) = await guest_files(libvirt.run)
    assert (fine.verdict, "(1)" in fine.what) == (Verdict.WORKS, True)

    (libvirt.run / "web1.xml").chmod(0o666)
    (written,) = await guest_files(libvirt.run)
    assert written.verdict is Verdict.MISSING
    assert "others than root and the service may write" in written.what
    (libvirt.run / "web1.xml").chmod(0o600)

    (libvirt.run / "web1.xml").rename(libvirt.run / "web2.xml")
    (renamed,) = await guest_files(libvirt.run)
    assert "web2.xml" in renamed.what
    assert "it is the status file of domain web1" in renamed.what

    libvirt.record("web2", 2**22)  # more than there can be
    (left,) = await guest_files(libvirt.run)
    assert "has ended, and libvirt has not noticed" in left.what

    for number in range(8):
        libvirt.record(f"left{number}", 2**22)
    assert len(await guest_files(libvirt.run)) == 6
    libvirt.folder.chmod(0o777)
    (above,) = await guest_files(libvirt.run)
    assert "another directory in the place of" in above.what


@as_root
async def test_doctor_says_that_the_directory_is_the_guests_users(libvirt: Libvirt) -> None:
    libvirt.started()
    os.chown(libvirt.run, NOBODY, NOBODY)
    (fine,) = await guest_files(libvirt.run)
    assert fine.verdict is Verdict.WORKS
    assert "nobody's, as libvirt 11 makes it" in fine.what
