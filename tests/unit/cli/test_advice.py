"""Advice that names something is a command that a shell takes as it stands."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkmgr.errors import BadName
from linkmgr.libvirt.client.api_calls import DomainState, DomainView
from linkmgr.libvirt.domains.domain_inventory import _command
from linkmgr.libvirt.domains.unconnected import _unconnected
from linkmgr.libvirt.prepare.preconditions import can_be_vm, rename_command
from linkmgr.libvirt.prepare.virsh import Virsh
from linkmgr.model import NicRef, check_name
from linkmgr.text.untrusted import ip_device, shell_command, shell_word
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
    assert "'virsh dumpxml my\\ vm'" in _unconnected("my vm").hint
    assert "'linkmgr prepare --define -- -dash'" in _unconnected("-dash").hint


def test_saved_state_is_dropped_by_a_command_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Virsh, "_run", lambda *_, **__: b"Managed save: yes\n")
    with pytest.raises(Exception, match=r"'virsh managedsave-remove my\\ vm'"):
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


@pytest.mark.parametrize("name", [*ODD, "", "a b", "a\\b", '"', "`id`", "~", "#x", "a&b|c>d", "!!"])
def test_a_word_is_one_word_for_a_shell_also_inside_the_quotes_of_its_command(name: str) -> None:
    assert shlex.split(f"ip link show {shell_word(name)}") == ["ip", "link", "show", name]
    if (
        "'" not in name
    ):  # pasted with the quotes around the command it is one word that is no command
        assert len(shlex.split(f"'ip link set {ip_device(name)} up'")) == 1
    unquoted = shlex.shlex(
        f"'ip link set {ip_device(name)} up' ", posix=True, punctuation_chars=True
    )
    unquoted.whitespace_split = True
    assert not set(unquoted_tokens(unquoted)) & {";", "&", "|", "(", ")", "<", ">"}


@pytest.mark.parametrize("name", [*ODD, "a;b\x01", "two\nlines;id", "\x85;\u202e", "$x\x1b[2J'"])
def test_bash_reads_the_word_as_it_was(name: str) -> None:
    word = shell_word(name)
    assert word.isprintable()
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.defpath}
    said = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, env=environment
    )
    assert said.stdout.decode() == name


def unquoted_tokens(lexer: shlex.shlex) -> Iterator[str]:
    try:
        yield from lexer
    except ValueError:  # a quote that does not end: the shell waits for more
        return


def test_a_device_that_is_called_like_a_word_of_ip_is_named_as_a_device() -> None:
    assert ip_device("br0") == "br0"
    assert [ip_device(name) for name in ("vf", "up", "-x")] == ["dev vf", "dev up", "dev -x"]


ROOT = Path(__file__).parents[3] / "linkmgr"
PROGRAMS = (
    "linkmgr virsh ip bridge sysctl nft iptables ip6tables chmod chown modprobe systemctl rm"
).replace(" ", "|")
#: The beginning of a text that ends inside of a command.
COMMAND = re.compile(rf"(?:^|[ (]|{{}})'(?:{PROGRAMS}) [^']*$")
QUOTING = {"shell_word", "shell_command", "ip_device", "_target"}
#: What stands in commands and can be no stranger's text: numbers, addresses that were checked,
#: words of linkmgr itself, and what was quoted before.
OURS = {
    "mtu", "view.mtu", "number", "mac", "mode", "words", "words[0]", "off", "place", "name",
    "create", "nic.wanted_link", "DEVICE_GROUP", "each.module", "program", "file", "above_it",
}  # fmt: skip
#: Of these, the ones that have to have been quoted before, in the same file.
QUOTED_BEFORE = {"place", "name", "create", "file", "above_it"}


def commands() -> Iterator[tuple[Path, ast.JoinedStr, ast.FormattedValue]]:
    """Each value that stands in a command of some text of linkmgr."""
    for path in sorted(ROOT.rglob("*.py")):
        if path.is_relative_to(ROOT / "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            before = ""
            for part in node.values:
                if isinstance(part, ast.Constant):
                    before += str(part.value)
                elif isinstance(part, ast.FormattedValue):
                    if COMMAND.search(before):
                        yield path, node, part
                    before += "{}"


def test_every_value_in_a_command_of_an_advice_is_quoted() -> None:
    found = list(commands())
    assert len(found) > 40, "the commands are not found any more"
    for path, node, part in found:
        if isinstance(part.value, ast.Call) and isinstance(part.value.func, ast.Name):
            assert part.value.func.id in QUOTING, (path, ast.unparse(node))
            continue
        text = ast.unparse(part.value)
        assert text in OURS, f"{path}: {text} is not quoted in {ast.unparse(node)}"
        if text in QUOTED_BEFORE:
            assert re.search(rf"\b{text} = .*shell_word", path.read_text()), (path, text)


def view(name: str, *, active: bool) -> DomainView:
    return DomainView(
        UUID, name, active, DomainState.RUNNING if active else DomainState.SHUT_OFF, None, True
    )
