"""AppArmor's rules for guests: well formed, and doctor sees whether guests have them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from linkmgr import doctor
from linkmgr.doctor import Verdict

RULES = Path(__file__).parents[3] / "packaging" / "apparmor"
PARSER = shutil.which("apparmor_parser", path="/usr/sbin:/sbin")
PROFILE = """include <tunables/global>
profile guest flags=(attach_disconnected) {
  include <abstractions/base>
  include <abstractions/libvirt-qemu.d/linkmgr>
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An /etc/apparmor.d with libvirt's abstraction as Debian 12 has it, and linkmgr's rules."""
    for name in ("abstractions/libvirt-qemu.d", "local/abstractions"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(RULES, tmp_path / "abstractions/libvirt-qemu.d/linkmgr")
    text = "  /dev/kvm rw,\n  #include <local/abstractions/libvirt-qemu>\n"
    (tmp_path / "abstractions/libvirt-qemu").write_text(text)
    (tmp_path / "local/abstractions/libvirt-qemu").touch()
    (tmp_path / "enabled").write_text("Y\n")
    return tmp_path


def compiled(folder: Path) -> subprocess.CompletedProcess[bytes]:
    assert PARSER is not None
    (folder / "profile").write_text(PROFILE)
    # Against the features that the parser knows: this kernel may have no AppArmor at all.
    words = ["--skip-kernel-load", "--skip-cache", "--features-file", "/dev/null", "--stdout"]
    include = ["--Include", "/etc/apparmor.d", "--base", str(folder)]
    return subprocess.run(
        [PARSER, *words, *include, str(folder / "profile")], capture_output=True, check=False
    )


@pytest.mark.newer_debian
@pytest.mark.skipif(PARSER is None, reason="apparmor is not installed")
def test_the_rules_for_guests_are_well_formed(
    folder: Path, differs: Callable[[str, str], None]
) -> None:
    done = compiled(folder)
    assert done.returncode == 0, done.stderr.decode()
    rules = folder / "abstractions/libvirt-qemu.d/linkmgr"
    written = rules.read_text()
    rules.write_text(written.replace("qmp.sock rw,", "qmp.sock rz,"))
    assert compiled(folder).returncode != 0
    # The parser of AppArmor 4.1 and newer does without the last comma.
    rules.write_text(written.replace("qmp.sock rw,", "qmp.sock rw"))
    taken = compiled(folder).returncode == 0
    differs("AppArmor's rule without the comma at its end", "taken" if taken else "refused")


async def test_where_apparmor_is_off_or_confines_no_guests_there_is_nothing_to_say(
    folder: Path,
) -> None:
    (folder / "off").write_text("N\n")
    assert await doctor.apparmor(folder, folder / "off") == []
    assert await doctor.apparmor(folder, folder / "not-in-this-kernel") == []
    (folder / "abstractions/libvirt-qemu").unlink()
    assert await doctor.apparmor(folder, folder / "enabled") == []


async def test_rules_that_guests_do_not_have_are_missed(folder: Path) -> None:
    (not_included,) = await doctor.apparmor(folder, folder / "enabled")
    assert not_included.verdict is Verdict.MISSING
    site = folder / "local/abstractions/libvirt-qemu"
    assert str(site) in str(not_included.todo)
    site.write_text("# include <abstractions/libvirt-qemu.d/linkmgr>\n")
    assert (await doctor.apparmor(folder, folder / "enabled"))[0].verdict is Verdict.MISSING
    site.write_text("include if exists <abstractions/libvirt-qemu.d/linkmgr>\n")
    assert (await doctor.apparmor(folder, folder / "enabled"))[0].verdict is Verdict.WORKS
    (folder / "abstractions/libvirt-qemu.d/linkmgr").unlink()
    (gone,) = await doctor.apparmor(folder, folder / "enabled")
    assert (gone.verdict, "cannot use macvtaps" in gone.what) == (Verdict.MISSING, True)


async def test_a_newer_libvirt_includes_the_rules_by_itself(folder: Path) -> None:
    text = "  /dev/kvm rw,\n  include if exists <abstractions/libvirt-qemu.d>\n"
    (folder / "abstractions/libvirt-qemu").write_text(text)
    assert (await doctor.apparmor(folder, folder / "enabled"))[0].verdict is Verdict.WORKS
