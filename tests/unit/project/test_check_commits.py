"""scripts/check_commits.py: the form of commits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import check_commits
from scripts.check_commits import Commit, faults

BODY = "\n\nIt was said twice."


class Repository:
    """A git repository in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-q")

    def git(self, *words: str) -> str:
        settings = ("-c", "user.name=Test", "-c", "user.email=test@example.org",
                    "-c", "commit.gpgsign=false")  # fmt: skip
        command = ["git", "-C", str(self.folder), *settings, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message: str, *files: str) -> str:
        """Commit a change to some files; return its short hash."""
        for name in files or ("file",):
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(message)
        self.git("add", "-A")
        self.git("commit", "-q", "--cleanup=verbatim", "-m", message)
        return self.git("rev-parse", "--short", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    return Repository(tmp_path)


def test_each_fault_is_a_sentence_with_the_hash_of_its_commit(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    since = repository.commit("what was before is not looked at.")
    repository.commit(f"Say it once{BODY}")
    long = repository.commit(f"Say {'it ' * 30}once.{BODY}")
    bare = repository.commit("Say nothing of why")
    joined = repository.commit("Say it\nover two lines\n\nand why")
    mixed = repository.commit(f"tests: hold it{BODY}", "tests/unit/a.py", "linkmgr/b.py")
    repository.commit(f"tests: hold it better{BODY}", "tests/unit/a.py")
    assert check_commits.main(repository.folder, since) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{long}: the subject has 99 characters, 72 at most are allowed",
        f"{long}: the subject ends in a full stop",
        f"{bare}: no body says why, and what was rejected",
        f"{joined}: the second line is not empty",
        f'{mixed}: it is called "tests:" and changes linkmgr/b.py',
        "The rule is in CONTRIBUTING.md.",
    ]


def test_a_file_moved_out_of_the_tests_is_a_change_of_something_else(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    since = repository.commit("first", "linkmgr/a.py")
    (repository.folder / "tests").mkdir()
    repository.git("mv", "linkmgr/a.py", "tests/a.py")
    repository.commit(f"tests: take it over{BODY}", "tests/b.py")
    assert check_commits.main(repository.folder, since) == 1
    assert "changes linkmgr/a.py" in capsys.readouterr().out


def test_good_commits_and_merges_pass_in_silence(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    since = repository.commit("first")
    repository.git("checkout", "-q", "-b", "side")
    repository.commit(f"tests: wait for the child{BODY}", "tests/a.py")
    repository.git("checkout", "-q", "-")
    repository.commit(f"Say it once{BODY}", "other")
    repository.git("merge", "-q", "--no-ff", "-m", "merged.", "side")
    assert check_commits.main(repository.folder, since) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "subject",
    ["Draw it", "libvirt: drop metadata edits", "Never remove a chardev", "Embed it", "Ping it",
     "linkmgr/cli: process it", "Do not wait", "Use *exc: object in __aexit__"],
)  # fmt: skip
def test_an_imperative_passes(subject: str) -> None:
    assert list(faults(Commit("0", (subject, "", "Why."), ()))) == []


@pytest.mark.parametrize(
    "subject",
    ["Added it", "Adds it", "Adding it", "docs: made it right", "The one who has ended",
     "What no XML can ask for is not kept", "Tests: what prepare refuses", "tests: "],
)  # fmt: skip
def test_what_is_no_imperative_is_told(subject: str) -> None:
    (fault,) = faults(Commit("0", (subject, "", "Why."), ()))
    assert "the subject" in fault


def test_trailers_are_no_body() -> None:
    lines = ("Say it", "", "Signed-off-by: A B <a@example.org>")
    assert list(faults(Commit("0", lines, ()))) == ["no body says why, and what was rejected"]


def test_without_git_nothing_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_commits.main(tmp_path, "0123abc") == 0
    assert "no git checkout" in capsys.readouterr().out


def test_a_shallow_clone_has_nothing_to_check(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    since = repository.commit("first")
    repository.commit("faulty.")
    shallow = tmp_path / "shallow"
    repository.git("clone", "-q", "--depth=1", f"file://{repository.folder}", str(shallow))
    assert check_commits.main(shallow, since) == 0
    assert f"the history after {since} is not here" in capsys.readouterr().out
