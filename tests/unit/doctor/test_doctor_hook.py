"""Doctor looks at libvirt's hook: there, executable, ours, and known to libvirt."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from linkmgr import doctor
from linkmgr.doctor import ProbeResult, Verdict, libvirt_hook
from tests.hook_copy import HOOK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A host whose libvirtd listens, started in the year 2001 by this test's clock."""
    (tmp_path / "hooks/qemu.d").mkdir(parents=True)
    (tmp_path / "run/libvirt").mkdir(parents=True)
    (tmp_path / "run/libvirt/libvirt-sock").touch()
    started(tmp_path, 1_000_000_000)
    return tmp_path


def started(root: Path, when: float, name: str = "libvirtd") -> None:
    """Let the daemon have been started then."""
    (root / "proc/77").mkdir(parents=True, exist_ok=True)
    (root / "run" / f"{name}.pid").write_text("77\n")
    (root / "proc/stat").write_text("cpu 1 2 3\nbtime 1000000\n")
    ticks = int((when - 1_000_000) * os.sysconf("SC_CLK_TCK"))
    fields = " ".join(["S", *["0"] * 18, str(ticks), "0"])
    (root / "proc/77/stat").write_text(f"77 (libvirtd (x) y) {fields}\n")


def install(root: Path) -> Path:
    path = root / "hooks/qemu.d/50-linkmgr"
    shutil.copy(HOOK, path)
    return path


async def look(root: Path) -> list[ProbeResult]:
    return await doctor.hook(root / "hooks", root, os.geteuid())


async def test_where_libvirt_is_not_there_is_nothing_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await look(tmp_path) == []


async def test_a_hook_that_is_not_installed_is_missed_but_not_needed(folder: Path) -> None:
    (found,) = await look(folder)
    assert (found.verdict, found.bad) == (Verdict.MISSING, False)
    assert "install" in str(found.todo)


async def test_a_hook_that_is_not_executable_is_told(folder: Path) -> None:
    path = install(folder)
    path.chmod(0o644)
    (found,) = await look(folder)
    assert found.verdict is Verdict.MISSING
    assert f"chmod 755 {path}" in str(found.todo)


async def test_a_hook_that_others_can_write_to_is_told(folder: Path) -> None:
    path = install(folder)
    for mode in (0o775, 0o757):
        path.chmod(mode)
        (found,) = await look(folder)
        assert found.verdict is Verdict.MISSING
        assert "root runs it" in found.what
    path.chmod(0o755)
    (found,) = await doctor.hook(folder / "hooks", folder, os.geteuid() + 1)
    assert "root runs it" in found.what


async def test_a_hook_that_is_not_of_this_version_is_told(folder: Path) -> None:
    path = install(folder)
    first, _ = await look(folder)
    assert (first.verdict, "as in this version" in first.what) == (Verdict.WORKS, True)
    path.write_text(path.read_text() + "# mine\n")
    first, _ = await look(folder)
    assert first.verdict is Verdict.MISSING
    assert "changed by hand" in first.what


async def test_an_installation_compares_with_its_own_copy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = install(folder)
    path.write_text(path.read_text().replace("/usr/bin/linkmgr", "/opt/bin/linkmgr"))
    (folder / "venv/hooks").mkdir(parents=True)
    shutil.copy(path, folder / "venv/hooks/qemu")
    monkeypatch.setattr(sys, "prefix", str(folder / "venv"))
    assert (await look(folder))[0].verdict is Verdict.WORKS


@pytest.mark.parametrize("daemon", ["libvirtd", "virtqemud"])
async def test_a_libvirt_that_runs_since_before_may_not_know_of_the_hook(
    folder: Path, daemon: str
) -> None:
    path = install(folder)
    (folder / "run/libvirtd.pid").unlink()
    started(folder, 1_000_000_000, daemon)
    _, known = await look(folder)
    assert known.verdict is Verdict.UNKNOWN
    assert f"systemctl reload {daemon}" in str(known.todo)
    started(folder, time.time() + 5, daemon)
    assert (await look(folder))[1].verdict is Verdict.WORKS
    (folder / f"run/{daemon}.pid").unlink()  # it starts with the next client, and looks then
    assert (await look(folder))[1].verdict is Verdict.WORKS
    assert path.exists()


async def test_a_libvirt_that_had_another_hook_knows_of_ours(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(folder)
    other = folder / "hooks/qemu"
    shutil.copy(HOOK, other)
    ages = {other: 900_000_000.0}
    monkeypatch.setattr(libvirt_hook, "_changed", lambda path: ages.get(path, time.time()))
    assert (await look(folder))[1].verdict is Verdict.WORKS
    other.chmod(0o644)
    assert (await look(folder))[1].verdict is Verdict.UNKNOWN


async def test_a_copy_that_libvirt_runs_too_is_named(folder: Path) -> None:
    path = install(folder)
    copy = path.with_name("50-linkmgr.dpkg-dist")
    shutil.copy(HOOK, copy)
    shutil.copy(HOOK, path.with_name("10-of somebody else"))
    _, named, _ = await look(folder)
    assert named.verdict is Verdict.MISSING
    assert str(copy) in named.what
    assert f"'rm {copy}'" in str(named.todo)
    copy.chmod(0o644)
    assert len(await look(folder)) == 2
