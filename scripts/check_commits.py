#!/usr/bin/env python3
"""Check the form of the commits since the one that this rule came with.

    python -m scripts.check_commits

The rule is in CONTRIBUTING.md. Each fault is a sentence. Where the history is not here, as in a
shallow clone or without .git, there is nothing to check.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: The last commit that is not checked. main is not rewritten: a faulty commit there ends up here.
SINCE = "4150860"
LONGEST = 72
AREA = re.compile(r"\w[\w./-]*: ")
TRAILER = re.compile(r"[A-Z][A-Za-z-]+: \S")

#: Forms of a subject's first word and why they are no imperative; the first match counts.
MOODS = (
    (
        r"embed|feed|need|seed|shed|speed|succeed|proceed|exceed|bring|ring|ping|string|focus|alias",
        "",
    ),
    (
        r"was|were|made|did|had|ran|wrote|sent|took|gave|got|kept|held|found|left|told|said|went|came"
        r"|broke|chose|built|\w+ed",
        ": that is the past",
    ),
    (r"\w+ing", ": that is what goes on, not what the commit does"),
    (
        r"an?|the|this|that|these|those|it|its|what|whatever|who|whoever|how|why|when|where|which|some"
        r"|all|each|every|no|new|more|\w+[^\Ws]s",
        ": that is no verb in the imperative",
    ),
)


@dataclass(frozen=True)
class Commit:
    """A commit: its short hash, its message in lines, the files that it changes."""

    hash: str
    lines: Sequence[str]
    files: Sequence[str]


class NoHistoryError(Exception):
    """The checkout lacks the commits to check."""


def faults(commit: Commit) -> Iterator[str]:
    """Yield the faults in the form of a commit, as sentences."""
    subject, *rest = commit.lines or [""]
    if len(subject) > LONGEST:
        yield f"the subject has {len(subject)} characters, {LONGEST} at most are allowed"
    if subject.endswith("."):
        yield "the subject ends in a full stop"
    if mood := _mood(AREA.sub("", subject, count=1)):
        yield mood
    if rest and rest[0]:
        yield "the second line is not empty"
    if not any(line and not TRAILER.match(line) for line in rest[1:]):
        yield "no body says why, and what was rejected"
    if subject.lower().startswith("tests:"):
        for file in commit.files:
            if not file.startswith("tests/"):
                yield f'it is called "tests:" and changes {file}'


def _mood(words: str) -> str | None:
    first = next(iter(re.findall(r"[\w'-]+", words)), "")
    if not first:
        return "the subject says nothing"
    reasons = (why for form, why in MOODS if re.fullmatch(form, first, re.IGNORECASE))
    return f'the subject begins with "{first}"{why}' if (why := next(reasons, "")) else None


def commits(root: Path, since: str) -> list[Commit]:
    """The commits of a checkout after one of them, the oldest first; merges are left out.

    :raise NoHistoryError: when this is no checkout, or one without that commit.
    """
    _git(root, "merge-base", "--is-ancestor", since, "HEAD")
    text = _git(root, "log", "--reverse", "--no-merges", "-z", "--format=%h%n%B", f"{since}..HEAD")
    made = []
    for each in text.split("\0"):
        if each.strip():
            short, *lines = each.rstrip("\n").split("\n")
            files = _git(root, "diff-tree", "--no-commit-id", "--name-only", "-r", "-z", short)
            made.append(Commit(short, lines, [name for name in files.split("\0") if name]))
    return made


def _git(root: Path, *words: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        raise NoHistoryError("git is not installed") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or f"git {words[0]} ended with {error.returncode}"
        raise NoHistoryError(said) from None


def main(root: Path = ROOT, since: str = SINCE) -> int:
    """Print the faults; return the exit status."""
    if not (root / ".git").exists():
        print("check-commits: this is no git checkout, so there are no commits to check")
        return 0
    try:
        checked = commits(root, since)
    except NoHistoryError as error:
        print(f"check-commits: the history after {since} is not here ({error}), nothing to check")
        return 0
    found = [f"{each.hash}: {fault}" for each in checked for fault in faults(each)]
    if found:
        print(*found, "The rule is in CONTRIBUTING.md.", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
