"""Advice that names something is a command that a shell takes as it stands."""

from __future__ import annotations

import shlex

import pytest

from linkmgr.errors import BadName
from linkmgr.libvirt.calls import DomainState, DomainView
from linkmgr.libvirt.listing import _command
from linkmgr.libvirt.refusals import can_be_vm, rename_command
from linkmgr.libvirt.silent import _finding
from linkmgr.libvirt.virsh import Virsh
from linkmgr.model import NicRef, check_name
from linkmgr.untrusted import shell_command
from tests.unit.care_lab import UUID

SERVER = "\u0441\u0435\u0440\u0432\u0435\u0440"
ODD = ["my vm", "-dash", SERVER, "a;reboot", "it's", "$(id)", "*", "--help", "'"]


@pytest.mark.parametrize("name", [*ODD, "web1"])
def test_a_name_is_one_word_of_the_command_and_no_option(name: str) -> None:
    words = shlex.split(shell_command("linkmgr prepare", name, "--define"))
    assert words[:2] == ["linkmgr", "prepare"]
    rest = words[2:]
    if name.startswith("-"):
        assert rest == ["--define", "--", name]
    else:
        assert rest == [name, "--define"]


@pytest.mark.parametrize("name", ODD)
def test_a_domain_that_cannot_be_a_vm_is_to_be_renamed_while_it_is_off(name: str) -> None:
    words = shlex.split(_command(view(name, active=False)) or "")
    assert words[:3] == ["virsh", "domrename", "--new-name"]
    assert can_be_vm(words[3])
    assert words[4:] == (["--", name] if name.startswith("-") else [name])
    assert _command(view(name, active=True)) is None, "it cannot be renamed while it runs"


@pytest.mark.parametrize("name", ["7", "web.xml"])
def test_a_name_that_would_be_taken_for_something_else_is_not_what_is_advised(name: str) -> None:
    assert _command(view(name, active=False)) == f"linkmgr prepare {UUID} --define"


def test_two_odd_names_are_not_renamed_to_the_same() -> None:
    assert rename_command("\u0430") != rename_command("\u0431")
    assert can_be_vm(rename_command("x" * 200).split()[3])


def test_the_finding_of_a_silent_guest_quotes_its_name() -> None:
    assert "'virsh dumpxml 'my vm''" in _finding("my vm").hint
    assert "'linkmgr prepare --define -- -dash'" in _finding("-dash").hint


def test_saved_state_is_dropped_by_a_command_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Virsh, "_run", lambda *_, **__: b"Managed save: yes\n")
    with pytest.raises(Exception, match="'virsh managedsave-remove 'my vm''"):
        Virsh(None).check("my vm")
    with pytest.raises(Exception, match="'virsh start -- -dash'"):
        Virsh(None).check("-dash")
    assert Virsh(None).check("my vm", saved_too=True).saved


def test_a_name_that_is_refused_is_shown_in_its_own_letters_and_moves_no_cursor() -> None:
    with pytest.raises(BadName) as refused:
        check_name("VM", SERVER)
    assert str(refused.value).startswith(f"'{SERVER}' cannot be the name of a VM")
    with pytest.raises(BadName) as refused:
        NicRef.parse("\u0441\x1b[2J\u202e")
    assert "'\u0441\\x1b[2J\\u202e' does not name a NIC" in str(refused.value)


def view(name: str, *, active: bool) -> DomainView:
    return DomainView(
        UUID, name, active, DomainState.RUNNING if active else DomainState.SHUT_OFF, None, True
    )
