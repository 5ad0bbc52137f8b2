"""Roots of other Debians: none is used half made, and what is killed leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linkmgr.testing.guest import images
from linkmgr.testing.process import execute

ROOT = Path(__file__).parents[3]
SCRIPTS = (
    "packaging/root.sh", "scripts/in-root.sh", "scripts/test-root.sh", "scripts/namespaces.sh",
    "scripts/reason.sh", "scripts/missing-packages.sh", "scripts/root-mounts.sh",
    "scripts/debian.sh", "scripts/roots.sh", "scripts/host-root.sh", "scripts/deb-in-root.sh",
    "scripts/fresh-machine.sh", "packages.txt",
    "requirements.lock", "pyproject.toml",
)  # fmt: skip
MARK = uuid.uuid4().hex  # in the environment of all that is started here
#: In the place of the real one, which takes a minute and needs a mirror. It notes that it began.
DEBOOTSTRAP = """#!/bin/sh
for target; do case $target in */lm-suite) break ;; esac; done
echo begun >>"$NOTE"
mkdir -p "$target/half"
{0}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the scripts and a root ``tiny`` of the test guest's busybox."""
    made = tmp_path / "checkout"
    for name in SCRIPTS:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, made / name)
    for name in ("upper", "root"):
        (made / "build/tiny-tests" / name).mkdir(parents=True)
    for name in ("bin", "proc", "sys", "dev", "run", "tmp"):
        (made / "build/tiny" / name).mkdir(parents=True)
    for name in ("tiny", "tiny-tests"):
        (made / "build" / name / ".complete").touch()
    shutil.copy(images() / "busybox", made / "build/tiny/bin/busybox")
    for name in ("sh", "sleep", "setsid", "cat", "touch", "env"):
        (made / "build/tiny/bin" / name).symlink_to("busybox")
    return made


@pytest.fixture
def debootstrap(tmp_path: Path) -> Callable[[str], None]:
    """Make the stand-in end with these lines."""

    def make(lines: str) -> None:
        path = tmp_path / "bin/debootstrap"
        path.parent.mkdir(exist_ok=True)
        path.write_text(DEBOOTSTRAP.format(lines))
        path.chmod(0o755)

    return make


@pytest.fixture
def start(checkout: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a script of the checkout."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "MARK": MARK,
                                    "NOTE": str(tmp_path / "note")}  # fmt: skip
        process = subprocess.Popen(
            [checkout / words[0], *words[1:]], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    for pid in marked():  # of a script that has a fault
        os.kill(pid, signal.SIGKILL)


def marked() -> set[int]:
    """Processes that were started here, or by one that was."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if MARK.encode() in (path / "environ").read_bytes():
                found.add(int(path.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def comes(right: Callable[[], bool], what: str, within: float = 20.0) -> None:
    end = time.monotonic() + within
    while not right():
        assert time.monotonic() < end, f"not within {within:g} s: {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_what_runs_in_a_root_ends_with_it(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    command = f"export MARK={MARK}; (setsid sleep 600 &); trap '' TERM; echo runs; sleep 600; :"
    process = start("scripts/in-root.sh", "tiny", "sh", "-c", command)
    assert process.stdout
    assert process.stdout.readline() == "runs\n"
    comes(lambda: len(marked()) >= 3, "all that was started")
    process.send_signal(number)
    comes(lambda: not marked(), "the end of all that was started")
    assert process.wait() == -number
    assert Path("/proc/self/mounts").read_text() == mounts
    assert not list((tmp_path / "checkout/build/tiny-tests/root").iterdir())


def test_what_is_written_in_a_root_is_gone_and_its_status_is_kept(
    start: Callable[..., subprocess.Popen[str]], checkout: Path
) -> None:
    command = "touch /lm-was-here /src/lm-was-here && exit 7"
    process = start("scripts/in-root.sh", "tiny", "sh", "-c", command)
    assert process.wait() == 7
    assert not Path("/lm-was-here").exists()
    assert not (checkout / "lm-was-here").exists()


def test_orphans_in_a_root_are_no_children_of_the_command(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    """pytest looks at its children; those of process 1 are all that others leave."""
    command = "(sleep 60 &); sleep 0.1; cat /proc/$$/task/$$/children; echo; echo $$"
    process = start("scripts/in-root.sh", "tiny", "sh", "-c", command)
    said, _ = process.communicate(timeout=20)
    children, own = said.splitlines()
    assert len(children.split()) <= 1, "cat alone"
    assert own != "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_root_whose_making_was_killed_is_not_used_and_is_made_from_the_start(
    start: Callable[..., subprocess.Popen[str]], debootstrap: Callable[[str], None],
    checkout: Path, tmp_path: Path, number: signal.Signals,
) -> None:  # fmt: skip
    debootstrap("sleep 600; :")
    process = start("scripts/test-root.sh", "lm-suite")
    half = checkout / "build/lm-suite/half"
    comes(half.exists, "the first half")
    process.send_signal(number)
    comes(lambda: not marked(), "the end of all that was started")
    assert process.wait() == -number

    used = start("scripts/in-root.sh", "lm-suite", "true")
    assert used.wait() == 1
    assert used.stderr
    tests = checkout / "build/lm-suite-tests"
    reason = f"there is no root for tests in {tests}; to do: make lm-suite"
    assert used.stderr.read() == f"lm-suite: {reason}\n"

    half.joinpath("old").touch()
    debootstrap(":")
    assert start("packaging/root.sh", "lm-suite").wait() == 0
    assert half.is_dir()
    assert not half.joinpath("old").exists()


def test_two_makes_at_once_make_a_root_once(
    start: Callable[..., subprocess.Popen[str]], debootstrap: Callable[[str], None], tmp_path: Path
) -> None:
    debootstrap('sleep 0.3; [ -d "$target/half" ]')
    both = [start("packaging/root.sh", "lm-suite") for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert (tmp_path / "note").read_text() == "begun\n"


def test_a_root_is_made_anew_when_the_script_that_makes_it_has_changed(
    start: Callable[..., subprocess.Popen[str]], debootstrap: Callable[[str], None],
    checkout: Path, tmp_path: Path,
) -> None:  # fmt: skip
    debootstrap(":")
    script, note = checkout / "packaging/root.sh", tmp_path / "note"
    for _ in range(2):
        assert start("packaging/root.sh", "lm-suite").wait() == 0
        assert note.read_text() == "begun\n"
    script.write_text(script.read_text() + "# changed\n")
    assert start("packaging/root.sh", "lm-suite").wait() == 0
    assert note.read_text() == "begun\n" * 2


def test_an_index_that_is_past_its_date_is_used_and_told_of(
    start: Callable[..., subprocess.Popen[str]], debootstrap: Callable[[str], None]
) -> None:
    debootstrap(
        'mkdir -p "$target/var/lib/apt/lists"\n'
        'echo "Valid-Until: Sat, 07 Nov 2020 08:15:03 UTC" '
        '>"$target/var/lib/apt/lists/debootstrap.invalid_dists_sid_Release"'
    )
    process = start("packaging/root.sh", "lm-suite")
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert said.endswith(
        "lm-suite: the mirror's index was valid until Sat, 07 Nov 2020 08:15:03 UTC; "
        "using it all the same\n"
    )


def test_a_root_in_which_something_runs_is_not_made_anew(
    start: Callable[..., subprocess.Popen[str]], debootstrap: Callable[[str], None], checkout: Path
) -> None:
    debootstrap("exit 1")
    _is_made(checkout)
    user = start("scripts/in-root.sh", "tiny", "sh", "-c", "echo runs; sleep 600; :")
    assert user.stdout
    assert user.stdout.readline() == "runs\n"
    maker = start("scripts/test-root.sh", "tiny")  # its .complete has no sum of its inputs
    assert maker.stderr
    tests = checkout / "build/tiny-tests"
    line = f"tiny: waiting until nothing runs in {tests}, and nothing else makes it\n"
    assert maker.stderr.readline() == line
    assert (tests / ".complete").exists()
    user.kill()
    assert maker.wait() == 1
    assert not (tests / ".complete").exists()


def _is_made(checkout: Path) -> None:
    """Let the script believe that it has made the root ``tiny``."""
    made_by = hashlib.sha256((checkout / "packaging/root.sh").read_bytes()).hexdigest()
    (checkout / "build/tiny/.complete").write_text(made_by + "\n")


def test_the_layer_below_a_root_in_which_something_runs_is_not_made_anew(
    start: Callable[..., subprocess.Popen[str]], debootstrap: Callable[[str], None], checkout: Path
) -> None:
    debootstrap(":")
    user = start("scripts/in-root.sh", "tiny", "sh", "-c", "echo runs; sleep 600; :")
    assert user.stdout
    assert user.stdout.readline() == "runs\n"
    maker = start("packaging/root.sh", "tiny")
    assert maker.stderr
    assert "waiting until nothing runs" in maker.stderr.readline()
    assert (checkout / "build/tiny/.complete").exists()
    user.kill()
    assert maker.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_root_of_a_host_has_the_ones_below_it_and_ends_with_its_script(
    start: Callable[..., subprocess.Popen[str]], checkout: Path, number: signal.Signals
) -> None:
    _has_apt(checkout, f"export MARK={MARK}; setsid sleep 600; :")
    mounts = Path("/proc/self/mounts").read_text()
    process = start("scripts/host-root.sh", "tiny")
    comes(lambda: any(_is_sleep(pid) for pid in marked()), "the installation of packages")
    makers = [start(each, "tiny") for each in ("scripts/test-root.sh", "packaging/root.sh")]
    for each in makers:
        assert each.stderr
        assert "waiting until nothing runs" in each.stderr.readline()
        each.kill()
        each.wait()
    process.send_signal(number)
    comes(lambda: not marked(), "the end of all that was started")
    assert process.wait() == -number
    assert Path("/proc/self/mounts").read_text() == mounts
    assert not (checkout / "build/tiny-host/.complete").exists()


def _has_apt(checkout: Path, lines: str) -> None:
    """Give the root ``tiny`` an ``apt-get`` of these lines."""
    for name in ("etc/apt/apt.conf.d", "etc/dpkg/dpkg.cfg.d", "var/log", "root"):
        (checkout / "build/tiny" / name).mkdir(parents=True)
    _script(checkout / "build/tiny/bin/apt-get", lines)


def _script(path: Path, lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)


def _is_sleep(pid: int) -> bool:
    try:
        return b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_fresh_machine_has_pips_settings_as_they_are_and_holds_its_root(
    start: Callable[..., subprocess.Popen[str]], checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"PIP_TRUSTED_HOST": "a.invalid b.invalid", "PIP_CERT": "/$HOME/\"a'b"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    _is_made(checkout)
    _has_apt(checkout, ":")
    author = ["-c", "user.name=a", "-c", "user.email=a@a.invalid"]
    for words in (["init", "--quiet"], [*author, "commit", "--quiet", "--allow-empty", "-m", "a"]):
        subprocess.run(["git", "-C", str(checkout), *words], check=True)
    user = start("scripts/fresh-machine.sh", "tiny", "sh", "-c", "env; echo runs; sleep 600; :")
    assert user.stdout
    said = list(iter(user.stdout.readline, "runs\n"))
    for name, value in settings.items():
        assert f"{name}={value}\n" in said
    (checkout / "packaging/root.sh").write_text(
        ROOT.joinpath("packaging/root.sh").read_text() + "#"
    )
    maker = start("packaging/root.sh", "tiny")
    assert maker.stderr
    assert "waiting until nothing runs" in maker.stderr.readline()


def test_two_makes_at_once_download_what_a_package_needs_once(
    start: Callable[..., subprocess.Popen[str]], checkout: Path, tmp_path: Path
) -> None:
    (checkout / "build/tiny-tests/python").write_text("3.11\n")
    for name in ("requirements", "build-requirements"):
        (checkout / f"packaging/{name}.lock").touch()
    _script(checkout / ".venv/bin/pip", 'echo begun >>"$NOTE"; sleep 0.3')
    _script(checkout / "packaging/install.sh", '[ -e "$WHEELS/.complete" ]')
    _script(checkout / "packaging/deb.sh", "touch /out/linkmgr_1.deb")
    both = [start("scripts/deb-in-root.sh", "tiny") for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert (tmp_path / "note").read_text() == "begun\n" * 2, "one for each list"
    assert (checkout / "build/packages/tiny/linkmgr_1.deb").exists()


@pytest.mark.parametrize(
    ("line", "todo"),
    [
        ("E: No such script: /usr/share/debootstrap/scripts/lm-suite",
         "use bookworm, trixie or sid, or a debootstrap that knows this suite"),
        ("E: Release signed by unknown key (key id 6ED0E7B82643E131)",
         "apt update, then apt install debian-archive-keyring"),
        ("E: Unable to correct problems, you have held broken packages.",
         "these packages do not fit each other today, as happens in sid: try again another day"),
    ],
)  # fmt: skip
def test_a_root_that_cannot_be_made_says_what_to_do(
    start: Callable[..., subprocess.Popen[str]], debootstrap: Callable[[str], None],
    checkout: Path, line: str, todo: str,
) -> None:  # fmt: skip
    debootstrap(f"echo '{line}'; exit 1")
    process = start("packaging/root.sh", "lm-suite")
    _, said = process.communicate(timeout=20)
    log = checkout / "build/lm-suite.log"
    reason = f"{line.removeprefix('E: ')}; to do: {todo}"
    assert said == f"lm-suite: making the root failed: {reason}; all that was said is in {log}\n"


async def test_a_full_disk_is_said_in_a_sentence(
    start: Callable[..., subprocess.Popen[str]], debootstrap: Callable[[str], None], tmp_path: Path
) -> None:
    small = tmp_path / "build"
    small.mkdir()
    await execute(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)])
    try:
        debootstrap(
            'echo "I: Extracting libc6..."; head -c 1M /dev/zero >"$target/half/file"\n'
            'echo "E: Tried to extract package, but tar failed. Exit..."; exit 1'
        )
        process = start("packaging/root.sh", "lm-suite", str(small / "lm-suite"))
        _, said = process.communicate(timeout=20)
        assert process.returncode == 1
        log = small / "lm-suite.log"
        assert said == (
            f"lm-suite: making the root failed: No space left on device;"
            f" all that was said is in {log}\n"
        )
        assert not (small / "lm-suite/.complete").exists()
    finally:
        await execute(["umount", str(small)])


def test_a_mirror_that_is_away_is_said_in_a_sentence(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """debootstrap's own words: there is no network in the sandbox."""
    process = start("packaging/root.sh", "trixie", str(tmp_path / "trixie"))
    out, said = process.communicate(timeout=100)
    assert process.returncode == 1, out
    assert said.startswith("trixie: making the root failed: "), said
    assert said.count("\n") == 1, said
    assert not (tmp_path / "trixie/.complete").exists()
