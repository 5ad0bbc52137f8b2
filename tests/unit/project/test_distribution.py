"""Roots, a newer QEMU and the sentences of `make setup`, by the distribution of the machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DEBIAN = ROOT / "scripts" / "debian.sh"
BOOKWORM = 'PRETTY_NAME="Debian 12"\nID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
TRIXIE = 'PRETTY_NAME="Debian 13"\nID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n'
SID = 'PRETTY_NAME="Debian forky/sid"\nID=debian\nVERSION_CODENAME=forky\n'
BULLSEYE = 'PRETTY_NAME="Debian 11"\nID=debian\nVERSION_ID="11"\nVERSION_CODENAME=bullseye\n'
FORKY = 'PRETTY_NAME="Debian 14"\nID=debian\nVERSION_ID="14"\nVERSION_CODENAME=forky\n'
UBUNTU = (
    'PRETTY_NAME="Ubuntu 24.04"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n'
    "VERSION_CODENAME=noble\n"
)
MINT = (
    'PRETTY_NAME="Mint 22"\nID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="22"\n'
    "VERSION_CODENAME=wilma\n"
)
FEDORA = 'PRETTY_NAME="Fedora 41"\nID=fedora\nVERSION_ID=41\n'


class Machine:
    """A machine with an os-release and a PATH that a test decides on."""

    def __init__(self, folder: Path, release: str, architecture: str) -> None:
        self._release = folder / "os-release"
        self._release.write_text(release)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, words in (("dpkg", f"echo {architecture}"), ("apt-get", "exit 1")):
            (self.bin / name).write_text(f"#!/bin/sh\n{words}\n")
            (self.bin / name).chmod(0o755)

    def asks(self, question: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shutil.which("sh") or "/bin/sh", DEBIAN, question],
            env={"PATH": str(self.bin), "OS_RELEASE": str(self._release)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    release, *architecture = request.param if isinstance(request.param, tuple) else (request.param,)
    return Machine(tmp_path, release, *(architecture or ["amd64"]))


def str_of_release(value: object) -> str:
    release = value[0] if isinstance(value, tuple) else value
    return str(release).partition("\n")[0].removeprefix("PRETTY_NAME=").strip('"')


def on(*cases: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("machine", "expected"), cases, indirect=["machine"], ids=str_of_release
    )


@on(
    (BOOKWORM, "bookworm trixie bookworm-backports"),
    (TRIXIE, "trixie bookworm trixie-backports"),
    (SID, "sid bookworm "),
    (UBUNTU, "  "),
    (FEDORA, "  "),
)
def test_each_distribution_has_its_root_another_generation_and_a_newer_qemu(
    machine: Machine, expected: str
) -> None:
    said = [machine.asks(question) for question in ("own", "other", "newer")]
    assert [each.returncode for each in said] == [0, 0, 0]
    assert " ".join(each.stdout.strip() for each in said) == expected


@on((BOOKWORM, ""), (TRIXIE, ""), (SID, ""))
def test_setup_says_nothing_of_a_distribution_that_is_tested(
    machine: Machine, expected: str
) -> None:
    said = machine.asks("setup")
    assert (said.returncode, said.stderr) == (0, expected)
    assert machine.asks("roots").returncode == 0


@on((UBUNTU, "Ubuntu 24.04"), (MINT, "Mint 22"), (FORKY, "Debian 14"))
def test_setup_goes_on_where_it_was_not_tried_and_says_so_in_a_line(
    machine: Machine, expected: str
) -> None:
    said = machine.asks("setup")
    assert said.returncode == 0
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"setup: {expected} is not tested; what is: Debian 12, ")


@on(
    (FEDORA, "Fedora 41 is no Debian"),
    (BULLSEYE, "Debian 11 has no Python 3.11"),
    ((BOOKWORM, "arm64"), "Debian 12 is for arm64"),
    ("", "this system, without"),
)
def test_setup_refuses_in_one_sentence_that_says_what_is_needed(
    machine: Machine, expected: str
) -> None:
    said = machine.asks("setup")
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"setup: {expected}")
    assert line.endswith(" Use Debian 12, Debian 13 or sid on amd64; a virtual machine does.")


@on((FEDORA, "Fedora 41 has no apt"))
def test_setup_without_apt_says_so(machine: Machine, expected: str) -> None:
    (machine.bin / "apt-get").unlink()
    said = machine.asks("setup")
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"setup: {expected}")


@on((UBUNTU, "roots: Ubuntu 24.04 is not Debian itself"))
def test_a_derivative_is_told_that_it_has_no_roots(machine: Machine, expected: str) -> None:
    said = machine.asks("roots")
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith(expected)


def test_make_setup_asks_before_it_installs_anything() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("$(BUILD)/packages.stamp: packages.txt\n")[2]
    assert recipe.splitlines()[0] == "\t@scripts/debian.sh setup"
