"""What systemd passes is taken over once, and each fd has one owner."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from linkmgr.host import Fd
from linkmgr.host.fds.store import FdStore, NullFdStore
from linkmgr.service.systemd.fd_store import PassedFds, SystemdFdStore, passed_fds
from linkmgr.service.systemd.notify import SystemdNotifier
from tests.unit.notify_lab import FakeServiceManager, manager, notifier

__all__ = ["manager", "notifier"]  # fixtures

pytestmark = pytest.mark.newer_debian  # which fds a new Python has open is its own affair

# Started as systemd starts a service: fds from 3 on, and LISTEN_PID is its own.
START = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-W", "error", "-c", sys.argv[1]])
"""


def as_service(program: str, names: list[str]) -> str:
    """Run `program` with a pipe, named so, at each number from 3 on; return what it prints."""
    pipes = [os.pipe() for _ in names]
    count = len(names)
    # High numbers first, so that none of the low ones is overwritten before it is moved.
    moves = "".join(f"os.dup2({200 + at}, {3 + at});" for at in range(count))
    clean = "".join(f"os.close({200 + at});" for at in range(count))
    first = f"import os;{moves}{clean}" + START
    for at, (reading, _) in enumerate(pipes):
        os.dup2(reading, 200 + at, inheritable=True)
    try:
        done = subprocess.run(
            [sys.executable, "-c", first, program],
            env=os.environ | {"LISTEN_FDS": str(count), "LISTEN_FDNAMES": ":".join(names)},
            pass_fds=[200 + at for at in range(count)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for at, pair in enumerate(pipes):
            os.close(200 + at)
            os.close(pair[0])
            os.close(pair[1])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_service_takes_over_what_systemd_passed_and_no_child_inherits_it() -> None:
    program = """
import os
from linkmgr.service.systemd.fd_store import passed_fds
passed = passed_fds()
print(passed.names, [os.get_inheritable(n) for n in (3, 4, 5)])
api = passed.pop("api")
print(api, passed.pop("api"), passed.names)
print(sorted(name for name in os.environ if name.startswith("LISTEN")), passed_fds().names)
passed.close()
api.close()
for number in (3, 4, 5):
    try:
        os.fstat(number)
        print("open", number)
    except OSError:
        pass
"""
    assert as_service(program, ["api", "lm-aa", "lm-bb"]).splitlines() == [
        "['api', 'lm-aa', 'lm-bb'] [False, False, False]",
        "<Fd 3> None ['lm-aa', 'lm-bb']",
        "[] []",
    ]


def test_what_is_meant_for_another_process_is_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "api"}
    assert passed_fds(environ).names == []
    assert environ == {}


def test_an_fd_that_was_not_passed_after_all_is_left_out() -> None:
    program = """
from linkmgr.service.systemd.fd_store import passed_fds
import contextlib, os
with contextlib.suppress(OSError):
    os.close(4)  # what Python 3.14 has open there, say
os.environ["LISTEN_FDS"] = "2"
passed = passed_fds()
print(passed.names)
passed.close()
"""
    assert as_service(program, ["api"]) == "['api']\n"


def an_fd() -> Fd:
    return Fd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_keeping_sends_a_duplicate_and_dropping_removes_it(
    manager: FakeServiceManager, notifier: SystemdNotifier
) -> None:
    fd_store: FdStore = SystemdFdStore(notifier, PassedFds([]))
    with an_fd() as fd:
        fd_store.keep("0123abcd", fd.number)
        fd_store.drop("0123abcd")
        assert is_open(fd.number)
    assert manager.received() == [
        ("FDSTORE=1\nFDPOLL=0\nFDNAME=lm-0123abcd", 1),
        ("FDSTOREREMOVE=1\nFDNAME=lm-0123abcd", 0),
    ]


def test_what_an_earlier_run_left_can_be_taken_until_it_is_dropped(
    notifier: SystemdNotifier,
) -> None:
    """So that a recovery that fails halfway can be tried again."""
    left, api = an_fd(), an_fd()
    number = left.number
    passed = PassedFds([("lm-aa", left), ("api", api)])
    fd_store = SystemdFdStore(notifier, passed)
    assert passed.names == ["api"]
    for _ in range(2):
        taken = fd_store.dup("aa")
        assert taken is not None
        assert os.path.sameopenfile(taken, number)
        os.close(taken)
    fd_store.drop("aa")
    assert fd_store.dup("aa") is None
    assert not is_open(number)
    fd_store.close()
    passed.close()


def test_an_fd_that_was_stored_twice_is_had_once(notifier: SystemdNotifier) -> None:
    one, other = an_fd(), an_fd()
    numbers = one.number, other.number
    fd_store = SystemdFdStore(notifier, PassedFds([("lm-aa", one), ("lm-aa", other)]))
    assert fd_store.left == ["aa"]
    assert not is_open(numbers[1])
    fd_store.close()
    assert not is_open(numbers[0])


def test_what_nobody_claims_is_dropped(
    manager: FakeServiceManager, notifier: SystemdNotifier
) -> None:
    fds = [an_fd(), an_fd(), an_fd()]
    numbers = [fd.number for fd in fds]
    names = ["lm-a", "lm-b", "lm-c"]
    fd_store = SystemdFdStore(notifier, PassedFds(list(zip(names, fds, strict=True))))
    fd_store.drop("a")
    taken = fd_store.dup("b")
    fd_store.prune(claimed=["b"], pending=["c"])
    assert fd_store.left == ["c"], "what may still be taken is kept"
    fd_store.prune(claimed=["b"], pending=[])
    assert fd_store.left == []
    assert manager.heard() == [f"FDSTOREREMOVE=1\nFDNAME=lm-{ident}" for ident in "ac"]
    assert taken is not None
    os.close(taken)
    assert not any(is_open(number) for number in numbers)
    fd_store.close()


@pytest.mark.parametrize("ident", ["", "a:b", "a\nFDSTORE=1", "x" * 300])
def test_an_id_that_cannot_be_a_name_is_logged_and_not_sent(
    manager: FakeServiceManager,
    notifier: SystemdNotifier,
    ident: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fd_store = SystemdFdStore(notifier, PassedFds([]))
    with an_fd() as fd:
        fd_store.keep(ident, fd.number)
    fd_store.drop(ident)
    assert manager.heard() == []
    assert "cannot be the name of an fd" in caplog.text


def test_keeping_works_without_room_and_without_systemd(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        for address in (str(tmp_path / "deaf"), str(tmp_path / "nobody"), None):
            notifier = SystemdNotifier(address)
            fd_store = SystemdFdStore(notifier, PassedFds([]))
            with an_fd() as fd:
                for number in range(2000):
                    fd_store.keep(f"{number:08x}", fd.number)
            notifier.close()


def test_a_closed_fd_cannot_be_kept_and_that_is_no_error(
    notifier: SystemdNotifier, caplog: pytest.LogCaptureFixture
) -> None:
    SystemdFdStore(notifier, PassedFds([])).keep("aa", 9999)
    assert "Bad file descriptor" in caplog.text


def test_no_keeper_keeps_nothing() -> None:
    fd_store: FdStore = NullFdStore()
    with an_fd() as fd:
        fd_store.keep("aa", fd.number)
    assert fd_store.dup("aa") is None
    fd_store.drop("aa")
