"""What virsh says becomes an error of the right kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from linkmgr import doctor
from linkmgr.doctor import Verdict
from linkmgr.errors import (
    CannotPrepare,
    LibvirtRefused,
    LibvirtUnreachable,
    LinkmgrError,
    NotFound,
    Unsupported,
)
from linkmgr.libvirt.prepare import virsh
from linkmgr.libvirt.prepare.virsh import Virsh
from tests.unit.cli_runner import run

Says = Callable[[str], None]

NOT_THERE = (
    "error: failed to connect to the hypervisor\n"
    "error: Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory"
)
LOST = (
    "error: Disconnected from qemu:///system due to end of file\n"
    "error: End of file while reading data: Input/output error"
)


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Let there be a virsh that does nothing but fail with some words, and no other program."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(words: str) -> None:
        path = folder / "virsh"
        path.write_text(f"#!/bin/sh\n/bin/cat >&2 <<'END'\n{words}\nEND\nexit 1\n")
        path.chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("words", "kind", "what"),
    [
        (NOT_THERE, LibvirtUnreachable, "libvirt at test:///x: Failed to connect socket to"),
        (
            "error: failed to connect to the hypervisor\nerror: authentication unavailable: no "
            "polkit agent available to authenticate action 'org.libvirt.unix.manage'",
            LibvirtUnreachable, "authentication unavailable",
        ),
        (LOST, LibvirtUnreachable, "ended before it answered 'virsh dumpxml'"),
        ("error: failed to get domain 'web1'", NotFound, "libvirt has no domain web1"),
        ("error: access denied", LibvirtRefused, "'virsh dumpxml' failed: access denied"),
    ],
)  # fmt: skip
def test_a_failure_of_virsh_says_whether_libvirt_was_reached(
    says: Says, words: str, kind: type[LinkmgrError], what: str
) -> None:
    says(words)
    with pytest.raises(LinkmgrError, match=what) as raised:
        Virsh("test:///x").xml("web1")
    assert type(raised.value) is kind


def test_a_virsh_that_hangs_is_given_up_as_one_that_may_have_done_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "virsh").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "virsh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(virsh, "VIRSH_TIMEOUT_S", 0.2)
    with pytest.raises(LibvirtUnreachable, match="did not answer 'virsh define'") as raised:
        Virsh().define(b"<domain/>")
    assert raised.value.sent
    assert "whether 'define' was done" in str(raised.value.hint)
    with pytest.raises(LibvirtUnreachable) as raised:
        Virsh().define_saved("web1", b"<domain/>")
    assert "whether 'managedsave-define' was done" in str(raised.value.hint)
    with pytest.raises(LibvirtUnreachable) as raised:
        Virsh().xml("web1")
    assert "nothing was changed" in str(raised.value.hint)


def test_only_a_libvirt_that_answered_has_refused_a_definition(says: Says) -> None:
    for words in (NOT_THERE, LOST):
        says(words)
        with pytest.raises(LibvirtUnreachable):
            Virsh().define(b"<domain/>")
    says("error: XML document failed to validate against schema")
    with pytest.raises(CannotPrepare, match="failed to validate"):
        Virsh().define(b"<domain/>")


def test_where_no_virsh_is_a_file_can_still_be_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="not installed") as raised:
        Virsh().xml("web1")
    assert "in a file" in str(raised.value.hint)


async def test_the_command_ends_with_13_where_libvirt_is_not(says: Says, tmp_path: Path) -> None:
    says(NOT_THERE)
    done = await run(tmp_path / "none", "prepare", "web1", "--json")
    assert done.exit_code == 13, done.output
    assert json.loads(done.stdout)["error"]["code"] == "libvirt-unreachable"
    says("error: internal error: something")
    done = await run(tmp_path / "none", "prepare", "web1", "--json")
    assert done.exit_code == 13, done.output
    assert json.loads(done.stdout)["error"]["code"] == "libvirt-refused"


# --- saved state that is prepared anew ------------------------------------------------------------
OLD = (Path(__file__).parents[3] / "data/prepared-e39dc5c.xml").read_text()


@pytest.fixture
def refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Let there be a virsh with one domain of an older linkmgr, saved, and a QEMU of 10.2.

    One of its commands is refused; those that change something are noted in the returned file.
    """
    (tmp_path / "old.xml").write_text(OLD)
    monkeypatch.setenv("PATH", str(tmp_path))
    changed = tmp_path / "changed"

    def make(command: str) -> Path:
        (tmp_path / "virsh").write_text(f"""#!/bin/sh
for word; do case $word in
    {command}) echo 'error: refused' >&2; exit 1;;
    list) echo web1; exit;;
    dominfo) echo 'Persistent: yes'; echo 'State: shut off'; echo 'Managed save: yes'; exit;;
    dumpxml|managedsave-dumpxml) exec /bin/cat {tmp_path}/old.xml;;
    domcapabilities) echo '<path>/usr/bin/qemu-system-x86_64</path>'; exit;;
    version) echo 'Running hypervisor: QEMU 10.2.0'; exit;;
    define|managedsave-define) echo $word >>{changed}; exit;;
esac; done
""")
        (tmp_path / "virsh").chmod(0o755)
        return changed

    return make


async def test_saved_state_is_changed_only_once_the_domain_is_defined(
    refuses: Callable[[str], Path], tmp_path: Path
) -> None:
    changed = refuses("define")
    done = await run(tmp_path / "none", "prepare", "--refresh", "--all", "--json")
    (said,) = json.loads(done.stdout)["domains"]
    assert (said["changed"], said["saved"], "refused" in said["error"]) == (False, None, True)
    done = await run(tmp_path / "none", "prepare", "--refresh", "web1")
    assert done.exit_code == 2, done.output
    assert "the domain is as it was, and saved state that it has" in done.stderr
    assert not changed.exists()


async def test_saved_state_that_libvirt_refuses_does_not_hide_that_the_domain_was_defined(
    refuses: Callable[[str], Path], tmp_path: Path
) -> None:
    changed = refuses("managedsave-define")
    done = await run(tmp_path / "none", "prepare", "--refresh", "--all", "--json")
    assert done.exit_code == 1, done.output
    (said,) = json.loads(done.stdout)["domains"]
    assert (said["changed"], said["saved"]) == (True, None)
    kept = "the saved state of web1 stays as it was, and the domain itself is prepared anew"
    assert kept in said["error"]
    done = await run(tmp_path / "none", "prepare", "--refresh", "web1")
    assert kept in done.stderr
    assert changed.read_text() == "define\ndefine\n"


async def test_doctor_names_old_domains_also_where_no_qemu_is_installed(
    refuses: Callable[[str], Path],
) -> None:
    refuses("version")
    lines = await doctor.prepared("test:///x")
    assert [(each.name, each.verdict) for each in lines] == [
        ("prepared domains", Verdict.MISSING), ("saved states", Verdict.MISSING)
    ]  # fmt: skip
    assert "prepared web1, and QEMU 10.2 and newer cannot start them" in lines[0].what
