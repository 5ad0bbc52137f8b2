"""A configuration is read strictly, and every mistake is told with its line."""

from __future__ import annotations

import os
import socket
import tomllib
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkmgr.errors import BadConfig
from linkmgr.model import Drift
from linkmgr.service.config import schema as config_module
from linkmgr.service.config.schema import (
    Config,
    Limits,
    Permission,
    load_config,
    looks_cut_off,
    reload_config,
)
from linkmgr.service.config.toml_lines import key_lines

ROOT = Path(__file__).parents[4]


def written(folder: Path, text: str) -> Path:
    path = folder / "linkmgr.toml"
    path.write_text(dedent(text))
    return path


def test_a_file_of_comments_is_the_default(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "# nothing yet\n")) == Config()


@pytest.mark.parametrize("text", ["", "\n", " \t\n\n"])
def test_a_file_that_a_full_disk_has_emptied_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "linkmgr.toml"
    path.write_text(text)
    with pytest.raises(BadConfig, match="is empty, as after a full disk") as refused:
        load_config(path)
    assert "remove it" in (refused.value.hint or "")


def test_a_file_whose_last_line_has_no_end_is_used_and_told(tmp_path: Path) -> None:
    path = tmp_path / "linkmgr.toml"
    path.write_text("[limits]\nevents = 70")
    assert load_config(path).limits.events == 70, "it may have been 700"
    assert str(path) in (looks_cut_off(path) or "")
    path.write_text("[limits]\nevents = 70\n")
    assert looks_cut_off(path) is None
    assert looks_cut_off(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("rule", "lacks"),
    [
        ("", "plug, set_link, unplug, but does not say of which nics"),
        ("nics = ['web1/*']", "plug, set_link, unplug, but does not say of which networks"),
        ("networks = ['blue']", "does not say of which nics"),
        ("verbs = ['add_vm', 'plug']\nnetworks = ['blue']", "add_vm, plug, but does not say"),
        (
            "verbs = ['create_network']\nnics = ['*']",
            "create_network, but does not say of which",
        ),
        ("verbs = ['gc']\nnics = ['*']", "allows gc, but does not say of which networks"),
        ("verbs = ['add_vm', 'remove_vm']\nnics = ['web1/*']", None),
        ("verbs = ['create_network', 'create_port']\nnetworks = ['t-*']", None),
        ("nics = []\nnetworks = []", None),
        ("verbs = []", None),
    ],
)
def test_a_rule_says_of_which_nics_and_networks(
    tmp_path: Path, rule: str, lacks: str | None
) -> None:
    path = tmp_path / "linkmgr.toml"
    path.write_text(f"# rules\n[[access.rules]]\nuser = 1001\n{rule}\n")
    if lacks is None:
        assert load_config(path).access.rules
    else:
        with pytest.raises(BadConfig, match=r"line 2: access\.rules\.0 allows ") as refused:
            load_config(path)
        assert lacks in str(refused.value)


def test_the_example_of_the_documentation_is_right_and_complete(tmp_path: Path) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    config = load_config(written(tmp_path, example))
    assert config.networks["blue"].options == {"bridge": "br0"}
    assert config.networks["blue"].ports == {"p7": {"isolated": True}}
    assert config.networks["blue"].drift is Drift.REPAIR
    assert config.access.rules[0].verbs == [Permission.PLUG, Permission.UNPLUG]
    assert config.limits == Limits(), "it shows the defaults"
    raw = tomllib.loads(example)
    assert raw["limits"].keys() == Limits.model_fields.keys()
    assert all(f"`{verb}`" in page for verb in Permission)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("[limits]\n\nevents = 1\nheartbeat = 3\n", 4, "did you mean heartbeat_seconds?"),
        ("# c\n[acess]\n", 2, "did you mean access?"),
        ("limits.evnts = 1", 1, "did you mean events?"),
        ("[limits]\nevents = '1'\n", 2, "limits.events should be a valid integer"),
        ("[limits]\nevents = 0\n", 2, "greater than or equal to 1"),
        ("[limits]\nheartbeat_seconds = nan\n", 2, "finite"),
        ("[limits]\nevents = true\n", 2, "valid integer"),
        ("\n[networks.blue]\noptions = {}\n", 2, "networks.blue.driver is missing"),
        ("[networks.blue]\ndriver = 'bridge'\noptions.bridge = 'b'\ndrift = 'x'\n", 4, "'repair'"),
        ("[networks.blue]\ndriver = 'brigde'\n", 2, "no network driver 'brigde'"),
        ("[networks.'a/b']\ndriver = 'bridge'\n", 1, "cannot be the name of a network"),
        (
            "[networks.b]\ndriver = 'bridge'\n[networks.b.options]\nbridge = 'b'\nbrige = 'c'\n",
            5,
            "no option 'brige'",
        ),
        (
            "[networks.b]\ndriver = 'bridge'\n[networks.b.options]\nmtu = 'x'\nbridge = 'b'\n",
            4,
            "option 'mtu'",
        ),
        ("[networks.b]\ndriver = 'bridge'\n[networks.b.options]\n", 3, "needs the option 'bridge'"),
        (
            "[networks.b]\ndriver = 'bridge'\noptions = {bridge='b'}\n[networks.b.ports]\n"
            "p7 = { isolatd = true }\n",
            5,
            "no option 'isolatd'",
        ),
        (
            "[networks.b]\ndriver = 'bridge'\noptions = {bridge='b'}\n[networks.b.ports]\n"
            "ok = {}\n'no/' = {}\n",
            6,
            "cannot be the name of a port",
        ),
        ("[[access.rules]]\nuser = 1\n[[access.rules]]\nuser = 1.5\n", 4, "access.rules.1.user"),
        ("[[access.rules]]\nuser = 'no-such-user'\n", 2, "there is no user 'no-such-user'"),
        ("[[access.rules]]\nuser = 1\nverbs = [\n 'plug',\n 'plugg',\n]\n", 5, "'plug'"),
        ("[[access.rules]]\nuser = 1\n\nnetwork = ['x']\n", 4, "did you mean networks?"),
        ("\n[networks.fd]\ndriver = 'bridge'\n", 2, "fd"),
        ("x = 1\nx = 2\n", 2, "is not TOML"),
        ("a = [\n1,\n2\n", 4, "is not TOML"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, line: int, told: str) -> None:
    path = tmp_path / "linkmgr.toml"
    path.write_text(text)
    with pytest.raises(BadConfig) as caught:
        load_config(path)
    message = caught.value.what
    assert str(path) in message
    assert f"line {line}" in message or (line == 4 and "end of document" in message), message
    assert told in message, message
    assert caught.value.code == "bad-config"


def test_all_mistakes_are_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[limits]\nb = 1\na = 1\n[access]\nc = 1\n")
    with pytest.raises(BadConfig, match=r"line 2: limits\.b .* line 3: limits\.a .* line 5: acc"):
        load_config(path)


def test_of_very_many_mistakes_some_are_told(tmp_path: Path) -> None:
    path = tmp_path / "linkmgr.toml"
    path.write_text("\n".join(f"k{number} = 1" for number in range(50)))
    with pytest.raises(BadConfig, match="and 40 more"):
        load_config(path)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BadConfig, match="cannot be read"):
            load_config(path)
    (tmp_path / "latin").write_bytes(b"# \xe9\n")
    with pytest.raises(BadConfig, match="not UTF-8"):
        load_config(tmp_path / "latin")


AWKWARD = '''\
"a b".'c.d' = 1
str = """
x = 1
[no.table] \\" """
lit = \'\'\'
y = 2\'\'\'
"quote\\"d" = "]"

[t] # comment = 1
date = 1979-05-27 07:32:00Z
list = [ # comment ]
  1, [2, "]"],
  { deep = 3 },
]
inline = { a.b = 1, c = { d = "}" } }
[[t.many]]
k = 1
[[t.many]]
k = 2
[t.many.sub]
k = 3
[[t.many.more]]
k = 4
'''


def test_every_key_has_its_line_however_it_is_written() -> None:
    lines = key_lines(AWKWARD)
    numbers = {
        ("a b", "c.d"): 1, ("str",): 2, ("lit",): 5, ('quote"d',): 7, ("t",): 9, ("t", "date"): 10,
        ("t", "list"): 11, ("t", "list", 1): 12, ("t", "list", 2, "deep"): 13,
        ("t", "inline", "a", "b"): 15, ("t", "inline", "c", "d"): 15, ("t", "many"): 16,
        ("t", "many", 0, "k"): 17, ("t", "many", 1): 18, ("t", "many", 1, "k"): 19,
        ("t", "many", 1, "sub", "k"): 21, ("t", "many", 1, "more", 0, "k"): 23,
    }  # fmt: skip
    assert {path: lines.get(path) for path in numbers} == numbers
    assert paths(tomllib.loads(AWKWARD)) == set(lines)
    assert key_lines(AWKWARD.replace("\n", "\r\n")) == lines


def paths(value: Any, path: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, each in value.items():
            found |= paths(each, (*path, key))
    if isinstance(value, list):
        for number, each in enumerate(value):
            found |= paths(each, (*path, number))
    return found


KEYS = st.sampled_from(["a", "b", '"c d"', "'e.f'", "a.b", 'g."h"'])
VALUES = st.recursive(
    st.sampled_from(
        ["1", "true", "1979-05-27", '"x=1 # ]"', "'[t]'", '"""\nk = 1\n"""', "'''}'''"]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: "[\n" + " ,#c\n".join(each) + "\n]"),
        st.tuples(st.sampled_from("xyz"), inner).map(lambda pair: f"{{ {pair[0]} = {pair[1]} }}"),
    ),
    max_leaves=6,
)
LINES = st.one_of(
    st.tuples(KEYS, VALUES).map(" = ".join),
    KEYS.map(lambda key: f"[{key}]"),
    KEYS.map(lambda key: f"[[ {key} ]] # c"),
    st.just("  # a = 1"),
)


@given(st.lists(LINES, max_size=8).map("\n".join))
def test_what_tomllib_reads_and_what_has_a_line_is_the_same(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(key_lines(text)) == paths(document)


@pytest.mark.parametrize("text", ["", "\n", "# all of it is a comment\n"])
def test_an_empty_file_in_place_of_the_one_in_force_is_a_mistake(tmp_path: Path, text: str) -> None:
    path = tmp_path / "linkmgr.toml"
    path.write_text("[networks.blue]\ndriver = 'bridge'\noptions = { bridge = 'br0' }\n")
    in_force = load_config(path)
    assert reload_config(path, in_force) == in_force
    path.write_text(text)
    with pytest.raises(BadConfig, match="is empty"):
        reload_config(path, in_force)
    path.write_text("# nothing yet\n")
    assert reload_config(path, Config()) == Config()


@pytest.mark.parametrize("default", [True, False])
def test_a_file_that_is_gone_is_a_mistake_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: bool
) -> None:
    path = tmp_path / "linkmgr.toml"
    if default:
        monkeypatch.setattr(config_module, "DEFAULT_PATH", path)
    in_force = Config(limits=Limits(events=7))
    with pytest.raises(BadConfig, match=r"is gone|No such file"):
        reload_config(path, in_force)
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadConfig):
        reload_config(path, in_force)


def test_a_byte_order_mark_is_named(tmp_path: Path) -> None:
    path = tmp_path / "linkmgr.toml"
    path.write_bytes(b"\xef\xbb\xbf[limits]\nevents = 7\n")
    with pytest.raises(BadConfig, match="byte order mark"):
        load_config(path)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "linkmgr.toml"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/tty")
        case "folder":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
    with pytest.raises(BadConfig, match="not a regular file"):
        load_config(path)
