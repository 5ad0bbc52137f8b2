"""docs/compatibility.md is what the tests reported, and the doctor goes by the same versions."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from linkmgr import doctor
from linkmgr.doctor import Verdict, versions
from linkmgr.hypervisors.qemu.qmp.features import Features

ROOT = Path(__file__).parents[3]
Program = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = str(ROOT / "scripts/compatibility.py")
    loader = importlib.machinery.SourceFileLoader("compatibility", path)
    spec = importlib.util.spec_from_loader("compatibility", loader)
    assert spec
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


def made_up(version: str, *names: str, here: str | None = "works") -> dict[str, Any]:
    """A report of some files."""
    return {
        "day": "2026-01-02",
        "versions": dict.fromkeys(
            ("Debian", "Python", "QEMU", "libvirt", "systemd", "Linux"), version
        ),
        "files": {name: {"passed": 2} for name in names},
        "differences": {"a revert": {"here": here, "tests": []}} if here else {},
    }


def test_the_page_is_what_the_kept_reports_make_of_it(script: ModuleType) -> None:
    assert (ROOT / "docs/compatibility.md").read_text() == script.page(script.reports()), (
        "written by hand, or not anew: make compatibility"
    )


def test_the_kept_reports_are_of_whole_runs(script: ModuleType) -> None:
    for name, each in script.reports().items():
        assert len(each["files"]) >= script.WHOLE_RUN, f"{name}: a part of the tests only"


def test_the_doctor_goes_by_the_versions_that_were_tested(script: ModuleType) -> None:
    ran = script.reports()
    assert list(ran) == ["bookworm", "trixie", "sid"]
    for name, known in versions.TESTED.items():
        read = [versions.read(each["versions"][name]) for each in ran.values()]
        found = [each[: len(known[0])] for each in read if each is not None]
        assert list(known) == found, f"{name}: linkmgr/doctor/versions.py"


def test_a_page_says_what_ran_what_was_skipped_and_what_differs(script: ModuleType) -> None:
    old, new = made_up("1.0", "tests/unit"), made_up("2.0", "tests/unit", here="refused | really")
    new["files"]["tests/unit"] |= {"skipped": 1, "failed": 1, "reasons": {"x: no such thing": 1}}
    text = script.page({"bookworm": old, "sid": new})
    assert "|  | Debian 12 | sid |\n| --- | --- | --- |\n| Debian | 1.0 | 2.0 |" in text
    assert "| passed | 2 | 2 |\n| skipped | 0 | 1 |\n| failed | 0 | 1 |" in text
    assert "- sid: failed in tests/unit\n" in text
    assert "- sid: 1 skipped: x: no such thing\n" in text
    assert "| a revert | works | refused \\| really |" in text
    only = script.page({"bookworm": old, "sid": made_up("2.0", here=None)})
    assert "| a revert | works | - |" in only


def test_a_page_says_where_the_most_ran_only_if_it_did(script: ModuleType) -> None:
    some = made_up("1.0", "tests/unit")
    more = made_up("1.0", "tests/unit", "tests/integration/swap/test_story.py")
    other = made_up("1.0", "tests/integration/libvirt/test_hook.py")
    says = "The most is tested on Debian 12: 2 files."
    assert says in script.page({"bookworm": more, "trixie": some, "sid": some})
    for here in (some, other):
        assert "The most" not in script.page({"bookworm": here, "trixie": some, "sid": some})
    assert "The most" not in script.page({"bookworm": more, "trixie": some, "sid": other})


def test_what_is_refused_is_read_in_the_code(script: ModuleType) -> None:
    text = script.page(script.reports())
    for each in Features("", frozenset()).missing:
        assert f"`{each}`" in text
    assert "| `<interface type='hostdev'>` | is a device of the host" in text
    assert "| `e1000e` | not seen | seen | seen |" in text
    assert "| QEMU before 4.2 |" in text


def test_a_report_that_lacks_a_file_of_the_one_that_is_kept_does_not_replace_it(
    script: ModuleType, tmp_path: Path
) -> None:
    results, kept, said = tmp_path / "new", tmp_path / "kept", list[str]()
    results.mkdir()
    whole = ("tests/unit", "tests/integration/swap/test_story.py")
    for version, names, now in [
        ("1.0", whole, "1.0"),
        ("2.0", whole[:1], "1.0"),
        ("3.0", (*whole, "tests/integration/libvirt/test_hook.py"), "3.0"),
    ]:
        (results / "sid.json").write_text(json.dumps(made_up(version, *names)))
        script.keep(results, kept, said.append)
        assert json.loads((kept / "sid.json").read_text())["versions"]["QEMU"] == now
    assert any("test_story.py for one; make test-sid" in each for each in said)


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("QEMU", (7, 2, 22), "tested"),
        ("QEMU", (10, 0), "tested"),
        ("QEMU", (8, 2, 2), "not tested, should work (7.2, 10.0 and 11.1 are)"),
        ("QEMU", (6, 2), "not tested, should work (7.2, 10.0 and 11.1 are)"),
        ("QEMU", (12, 0), "not tried yet, should work"),
        ("systemd", (252, 39), "tested"),
        ("systemd", (263,), "not tried yet, should work"),
        ("Debian", (13,), "tested"),
        ("Debian", (14,), "not tried yet, should work"),
    ],
)
def test_a_version_is_tested_or_should_work(name: str, version: tuple[int, ...], says: str) -> None:
    assert versions.tested(name, version) == says


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Put shell scripts into a PATH that has nothing else."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, script: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.mark.parametrize(
    ("release", "says"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n',
         "Debian GNU/Linux 12 (bookworm): tested"),
        ('PRETTY_NAME="Debian GNU/Linux forky/sid"\nID=debian\n',
         "Debian GNU/Linux forky/sid: tested as it was on one day; what counts are the versions"),
        ('PRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu\nVERSION_ID="24.04"\n',
         "Ubuntu 24.04.1 LTS: not tested; what counts are the versions of QEMU, libvirt and "
         "systemd"),
        ("", "unnamed: not tested; what counts are the versions of QEMU, libvirt and systemd"),
    ],
)  # fmt: skip
async def test_the_doctor_names_distribution_python_and_systemd(
    program: Program, tmp_path: Path, release: str, says: str
) -> None:
    program("systemctl", "echo 'systemd 252 (252.39-1~deb12u1)'; echo '+PAM +AUDIT'")
    (tmp_path / "os-release").write_text(release)
    distribution, python, systemd = await doctor.host(tmp_path / "os-release")
    assert (distribution.what, distribution.verdict) == (says, Verdict.WORKS)
    assert (python.name, python.verdict) == ("Python", Verdict.WORKS)
    assert (systemd.what, systemd.verdict) == ("252: tested", Verdict.WORKS)


async def test_a_host_without_systemd_and_os_release_is_no_failure(
    program: Program, tmp_path: Path
) -> None:
    distribution, _, systemd = await doctor.host(tmp_path / "none")
    assert distribution.verdict is Verdict.UNKNOWN
    assert (systemd.verdict, systemd.used) == (Verdict.MISSING, False)


@pytest.mark.parametrize(
    ("version", "verdict", "says"),
    [
        ("8.0.0", Verdict.MISSING, "too old: it cannot put a NIC on a hub (qemu:override)"),
        ("8.2.0", Verdict.WORKS, "not tested, should work (9.0, 11.3 and 12.8 are)"),
        ("12.8.0", Verdict.WORKS, "tested"),
        ("13.0.0", Verdict.WORKS, "not tried yet, should work"),
    ],
)
async def test_a_libvirt_is_too_old_or_should_work(
    program: Program, tmp_path: Path, version: str, verdict: Verdict, says: str
) -> None:
    program("libvirtd", f"echo 'libvirtd (libvirt) {version}'")
    (tmp_path / "libvirt-sock").touch()
    found = (await doctor.libvirt(tmp_path))[0]
    assert (found.verdict, found.bad) == (verdict, False)
    assert found.what == f"libvirtd (libvirt) {version}, {tmp_path}/libvirt-sock: {says}"
    assert bool(found.todo) == (verdict is Verdict.MISSING)
