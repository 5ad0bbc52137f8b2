"""A monitor's path leads where its caller may go, and nobody else can change where that is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkmgr.errors import BadRequest, Forbidden
from linkmgr.service.auth.monitor_path import authorize, parse_address, parse_path, resolve_trusted
from linkmgr.service.auth.peer import Peer
from linkmgr.service.auth.policy import Access
from linkmgr.service.config.schema import AccessSection, Rule

GROUP = 54321


def everybody(_: int) -> bool:
    return True


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Path]:
    """The socket of a monitor in a directory of its own."""
    (tmp_path / "vms").mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "vms" / "web1.qmp"))
        yield tmp_path / "vms" / "web1.qmp"


@pytest.mark.parametrize("text", ["", "web1.qmp", "./web1.qmp", "/", "/run/..", "/run/a\0b"])
def test_a_path_that_is_not_absolute_or_names_no_file_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="is not the absolute path of a socket"):
        parse_path(text)


def test_a_plain_path_is_left_as_it_is(monitor: Path) -> None:
    assert resolve_trusted(monitor, everybody) == monitor
    assert resolve_trusted(monitor.parent / ".." / "vms" / "web1.qmp", everybody) == monitor


def test_what_does_not_exist_is_for_whoever_connects_to_say(tmp_path: Path) -> None:
    for path in (tmp_path / "none.qmp", tmp_path / "none" / "none.qmp", tmp_path / "\ud800"):
        assert resolve_trusted(path, everybody) == path


def test_a_link_of_ours_in_a_directory_of_ours_is_followed_and_is_not_in_the_result(
    monitor: Path, tmp_path: Path
) -> None:
    (tmp_path / "var").symlink_to("vms")
    (tmp_path / "run").symlink_to(tmp_path / "var")
    assert resolve_trusted(tmp_path / "run" / "web1.qmp", everybody) == monitor
    assert resolve_trusted(tmp_path / "run" / "none.qmp", everybody) == monitor.parent / "none.qmp"


def test_a_socket_that_is_a_link_is_refused_wherever_it_leads(monitor: Path) -> None:
    for target in (monitor, monitor.parent / "none"):
        link = monitor.parent / f"to-{target.name}"
        link.symlink_to(target)
        with pytest.raises(BadRequest, match=f"to-{target.name} is a symbolic link"):
            resolve_trusted(link, everybody)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_link_in_a_directory_that_others_can_write_is_refused(
    monitor: Path, tmp_path: Path, mode: int
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    (shared / "vms").symlink_to(monitor.parent)
    with pytest.raises(BadRequest, match="shared/vms is a symbolic link"):
        resolve_trusted(shared / "vms" / "web1.qmp", everybody)
    shared.chmod(mode | 0o1000)  # as /tmp: what is ours stays ours
    assert resolve_trusted(shared / "vms" / "web1.qmp", everybody) == monitor


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link away")
def test_a_link_of_another_user_is_refused(monitor: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "vms").symlink_to(monitor.parent)
    os.chown(shared / "vms", 65534, 65534, follow_symlinks=False)
    with pytest.raises(BadRequest, match="is a symbolic link"):
        resolve_trusted(shared / "vms" / "web1.qmp", everybody)
    os.chown(shared / "vms", 0, 0, follow_symlinks=False)
    os.chown(shared, 65534, 65534)
    with pytest.raises(BadRequest, match="is a symbolic link"):
        resolve_trusted(shared / "vms" / "web1.qmp", everybody)


def test_links_that_go_round_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(BadRequest, match="is a symbolic link"):
        resolve_trusted(tmp_path / "one" / "web1.qmp", everybody)


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path, Path("/dev/null")):
        with pytest.raises(BadRequest, match="is not a socket"):
            resolve_trusted(path, everybody)


def test_a_socket_whose_owner_the_caller_does_not_speak_for_is_forbidden(monitor: Path) -> None:
    asked: list[int] = []

    def nobody(owner: int) -> bool:
        asked.append(owner)
        return False

    with pytest.raises(Forbidden, match=f"belongs to uid {os.geteuid()}"):
        resolve_trusted(monitor, nobody)
    assert asked == [os.geteuid()]


@pytest.mark.parametrize(
    ("uid", "owners"),
    [(0, {0, 1000, 1001, 1002}), (1000, {0, 1000}), (1001, {1001})],
    ids=["root", "member", "user-with-rules"],
)
def test_who_asks_decides_whose_monitors_may_be_named(
    uid: int, owners: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    access = Access(AccessSection(rules=[Rule(user=1001, nics=["mine/*"], networks=["*"])]))
    peer = Peer(uid, uid, 1, frozenset({uid, GROUP}))
    assert {owner for owner in (0, 1000, 1001, 1002) if access.may_use_sockets_of(peer, owner)} == (
        owners
    )


def test_a_domain_of_libvirt_may_be_named_instead_of_a_path() -> None:
    assert parse_address("/run/web1.qmp") == Path("/run/web1.qmp")
    assert parse_address("libvirt:web1") == "libvirt:web1"
    assert authorize("libvirt:web1", everybody) == "libvirt:web1"
    for text in ("libvirt:", "libvirt: ", "libvirt:a\nb"):
        with pytest.raises(BadRequest, match="names no domain"):
            parse_address(text)


def test_a_domain_of_libvirt_is_as_root_s_own_socket_would_be() -> None:
    with pytest.raises(Forbidden, match="libvirt:web1 is root's"):
        authorize("libvirt:web1", lambda owner: owner != 0)


def test_a_guest_that_dials_is_named_by_nobody() -> None:
    with pytest.raises(BadRequest, match="is not the absolute path of a socket"):
        parse_address("inbound:e4575ab2-7cba-58df-aac2-669e6faac4ef")
