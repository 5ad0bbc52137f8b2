"""A domain's XML is prepared, and only what has to change does."""

from __future__ import annotations

import difflib
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkmgr import hub_args
from linkmgr.errors import CannotPrepare
from linkmgr.libvirt.domain_xml import Document
from linkmgr.libvirt.nics import nics_of
from linkmgr.libvirt.prepare import prepare, undo
from linkmgr.libvirt.qemu_xml import arguments, override
from linkmgr.libvirt.virsh import validate
from tests.unit.cli_runner import run
from tests.unit.prepare_lab import BY_HAND, DATA, FILES, PLAIN, QEMU, domain


def lost_lines(before: bytes, after: bytes) -> list[bytes]:
    """The lines that are not there any more."""
    old, new = before.decode().split("\n"), after.decode().split("\n")
    return [line[2:].encode() for line in difflib.ndiff(old, new) if line.startswith("- ")]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def xml(request: pytest.FixtureRequest) -> bytes:
    made: bytes = request.param.read_bytes()
    return made


def test_each_nic_is_on_a_hub_of_hub_args_and_dials(xml: bytes) -> None:
    done = prepare(xml)
    document = Document(done.xml)
    nics = nics_of(document)
    there = arguments(document)
    assert [nic.alias for nic in nics] == list(done.nics)
    for nic in nics:
        assert nic.kind == "ethernet"
        assert nic.element.get("link", "state") == "down"
        assert nic.element.find("source") is None
        assert 0 < len(nic.element.get("target", "dev")) <= 15
        args = hub_args(nic.alias, mac="52:54:00:00:00:01")
        assert " ".join(args[:4]) in " ".join(there)
        assert f"netdev={override(document, nic.alias, 'netdev')}," in args[5]
    dial = "socket,id=lm-qmp,path=/run/linkmgr/qmp.sock,server=off,reconnect=1"
    assert there[-4:] == ["-chardev", dial, "-mon", "chardev=lm-qmp,mode=control"]


def test_preparing_twice_changes_nothing(xml: bytes) -> None:
    once = prepare(xml)
    twice = prepare(once.xml)
    assert (twice.xml, twice.nics, twice.notes) == (once.xml, (), ())


def test_undo_gives_back_the_same_bytes(xml: bytes) -> None:
    back = undo(prepare(xml).xml)
    if b"<metadata/>" in xml:  # it is gone when nothing is in it
        xml = xml.replace(b"  <metadata/>\n", b"")
    assert back.xml == xml


def test_undo_of_what_is_not_prepared_changes_nothing(xml: bytes) -> None:
    assert undo(xml).xml == xml


def test_what_is_valid_for_libvirt_stays_so(xml: bytes) -> None:
    if shutil.which("virt-xml-validate") is None or shutil.which("xmllint") is None:
        pytest.skip("libvirt's schema is not here: apt install libvirt-clients libxml2-utils")
    assert validate(xml, "before")
    assert validate(prepare(xml).xml, "after")
    with pytest.raises(CannotPrepare, match="does not agree with libvirt's schema"):
        validate(xml.replace(b"<devices", b"<gadgets").replace(b"/devices", b"/gadgets"), "it")


def test_nothing_but_the_nic_loses_a_line() -> None:
    done = prepare(PLAIN, nic="52:54:00:00:00:01").xml
    assert [line.strip() for line in lost_lines(PLAIN, done)] == [
        b"<interface type='bridge'>",
        b"<source bridge='br0'/>",
    ]


def test_what_a_person_wrote_stays_byte_for_byte() -> None:
    done = prepare(BY_HAND).xml
    for kept in (
        "<!-- Zoë's guest; & < > and ]]> are only words here -->\n<domain xmlns:q=\"http://",
        '       type="qemu" >\n\t<name>web&#x31;</name><!-- no uuid -->\n\t<memory   unit =',
        '<mine:note xmlns:mine="urn:mine" text="a > b">keep &#x41; <![CDATA[<me>]]></mine:note>\n',
        '\t\t<interface\n\t\t           type="ethernet"  >\n\t\t\t<!-- a comment with <source/>',
        "<mac address='52:54:00:AB:CD:01' />",
        '<target dev="uplink0"/>\n\t\t\t<link   state = "down" />\n\t\t\t<alias name="ua-uplink"/>',
        "<q:arg value=\"name=opt/x,string=y\"/>\n\t\t<q:arg value='-netdev'/>",
        '<q:property name="x-txtimer" type="unsigned" value="1"/><',
        "\t<!-- the end -->\n</domain>\n<!-- behind -->\n",
    ):
        assert kept in done.decode() or kept.rstrip("<") in done.decode(), kept


def test_the_ends_of_lines_stay() -> None:
    crlf = (DATA / "crlf.xml").read_bytes()
    done = prepare(crlf).xml
    assert re.search(rb"[^\r]\n", done) is None
    one_line = (DATA / "one_line.xml").read_bytes()
    assert b"\n" not in prepare(one_line).xml


def test_what_libvirt_adds_after_the_preparation_stays_after_undo() -> None:
    bare = domain("<interface type='bridge'><source bridge='br0'/><rom bar='off'/></interface>")
    done = prepare(bare).xml
    stored = done.replace(b"<rom bar='off'/>", b'<mac address="52:54:00:00:00:09"/><mtu size="9"/>')
    back = nics_of(Document(undo(stored).xml))[0]
    assert (back.kind, back.mac, back.alias) == ("bridge", "52:54:00:00:00:09", "")
    assert back.element.get("source", "bridge") == "br0"
    assert back.element.get("mtu", "size") == "9"
    assert back.element.find("rom") is None
    assert back.element.find("link") is None


def test_one_nic_is_prepared_and_undone_alone() -> None:
    first = prepare(PLAIN, nic="52:54:00:00:00:01")
    assert first.nics == ("ua-net0",)
    both = prepare(first.xml, nic="52:54:00:00:00:02")
    assert both.nics == ("ua-net1",)
    assert undo(both.xml, nic="ua-net1").xml == first.xml
    assert undo(undo(both.xml, nic="ua-net0").xml).xml == PLAIN


def test_the_alias_of_a_running_domain_becomes_one_that_stays() -> None:
    live = domain(
        "<interface type='user'><alias name='net3'/></interface>",
        "<interface type='user'><alias name='ua-net1'/></interface>",
        "<interface type='user'/>",
        "<interface type='user'><target dev='vnet7'/></interface>",
    )
    done = prepare(live)
    assert done.nics == ("ua-net3", "ua-net1", "ua-net2", "ua-net4")
    devices = [nic.element.get("target", "dev") for nic in nics_of(Document(done.xml))]
    assert len(set(devices)) == 4
    assert all(re.fullmatch(r"lmn[0-9a-f]{10}", device) for device in devices)


@pytest.mark.parametrize("beginning", [b"-netdev", b"hubport,id=lm-sink", b"socket,", b"chardev="])
def test_a_preparation_that_lost_an_argument_is_mended(beginning: bytes) -> None:
    done = prepare(PLAIN).xml
    damaged = re.sub(rb"\n *<qemu:arg value='%b[^>]*/>" % beginning, b"", done, count=1)
    assert damaged != done
    mended = Document(prepare(damaged).xml)
    for nic in nics_of(mended):
        args = hub_args(nic.alias, mac="52:54:00:00:00:01")[:4]
        assert " ".join(args) in " ".join(arguments(mended))
    assert arguments(mended).count("-chardev") == arguments(mended).count("-mon") == 1
    assert undo(mended.source).xml == PLAIN or beginning == b"-netdev"


def test_a_hub_that_stands_there_twice_is_mended() -> None:
    done = prepare(PLAIN).xml
    hub = (
        rb"(\n *<qemu:arg value='-netdev'/>\n *<qemu:arg value='hubport,id=lm-sink-ua-net1,[^>]*>)"
    )
    twice = re.sub(hub, rb"\1\1", done)
    assert twice != done
    values = arguments(Document(prepare(twice).xml))
    assert sorted(values) == sorted(arguments(Document(done)))


def test_a_preparation_that_lost_its_override_is_mended() -> None:
    done = prepare(PLAIN).xml
    wrong = done.replace(b"value='lm-hub-ua-net0'", b"value='lm-hub-net0'")
    assert Document(prepare(wrong).xml).root.meaning() != Document(wrong).root.meaning()
    assert override(Document(prepare(wrong).xml), "ua-net0", "netdev") == "lm-hub-ua-net0"
    assert undo(prepare(wrong).xml).xml == PLAIN


def test_a_link_that_was_set_with_virsh_stays_as_it_is() -> None:
    done = prepare(PLAIN).xml.replace(b"<link state='down'/>", b"<link state='up'/>")
    assert prepare(done).xml == done


def test_the_monitor_is_what_is_asked_for_and_stays() -> None:
    done = prepare(PLAIN, monitor="/run/a,b'&.sock")
    assert "socket,id=lm-qmp,path=/run/a,,b'&.sock,server=off,reconnect=1" in (
        arguments(Document(done.xml))
    )
    assert prepare(done.xml).xml == done.xml
    moved = prepare(done.xml, monitor="/run/other.sock").xml
    assert arguments(Document(moved)).count("-mon") == 1
    assert b"a,,b" not in moved
    assert undo(moved).xml == PLAIN


DIAL = "socket,id=lm-qmp,path={},server=off,reconnect=1"


@pytest.mark.parametrize(
    ("dial", "path"),
    [
        ("socket,id=lm-qmp,path=/run/own,,1.sock,server=on,wait=off", "/run/own,,1.sock"),
        ("socket,id=lm-qmp,path=/run/own.sock,server=off", "/run/own.sock"),
        ("socket,path=/run/own.sock,reconnect=1,id=lm-qmp,server=on", "/run/own.sock"),
        (DIAL.format("/run/own.sock") + ",logfile=/tmp/log", "/run/own.sock"),
        ("socket,id=lm-qmp,path=own.sock,server=off,reconnect=1", "/run/linkmgr/qmp.sock"),
        ("socket,id=lm-qmp,host=127.0.0.1,port=1,server=off", "/run/linkmgr/qmp.sock"),
        ("null,id=lm-qmp", "/run/linkmgr/qmp.sock"),
    ],
)
def test_a_monitor_with_other_options_is_mended_and_keeps_its_path(dial: str, path: str) -> None:
    done = prepare(PLAIN).xml
    there = DIAL.format("/run/linkmgr/qmp.sock").encode()
    assert there in done
    mended = prepare(done.replace(there, dial.encode()))
    assert arguments(Document(mended.xml))[-4:] == [
        "-chardev", DIAL.format(path), "-mon", "chardev=lm-qmp,mode=control",
    ]  # fmt: skip
    assert arguments(Document(mended.xml)).count("-chardev") == 1
    assert prepare(mended.xml).xml == mended.xml
    assert undo(mended.xml).xml == PLAIN


@pytest.mark.parametrize(
    "mon",
    ["chardev=lm-qmp,mode=readline", "chardev=lm-qmp", "lm-qmp", "mode=control,chardev=lm-qmp"],
)
def test_another_way_to_use_the_monitors_chardev_goes(mon: str) -> None:
    done = prepare(PLAIN).xml
    ours = b"<qemu:arg value='chardev=lm-qmp,mode=control'/>"
    changed = f"<qemu:arg value='{mon}'/>".encode()
    beside = ours + b"<qemu:arg value='-mon'/>" + changed
    for damaged in (done.replace(ours, changed), done.replace(ours, beside)):
        assert prepare(damaged).xml == done
        assert undo(damaged).xml == PLAIN


def test_a_chardev_without_its_word_goes_and_its_path_stays() -> None:
    done = prepare(PLAIN, monitor="/run/own.sock").xml
    alone = re.sub(rb"\n *<qemu:arg value='-chardev'/>", b"", done)
    twice = re.sub(rb"(\n *<qemu:arg value='socket,[^>]*>)", rb"\1\1", done)
    assert prepare(alone).xml == done
    assert prepare(twice).xml == done


def test_the_domains_own_monitors_stay_when_ours_is_mended() -> None:
    more = ["-chardev", "null,id=lm-qmp2", "-mon", "chardev=lm-qmp2,mode=control"]
    args = "".join(f"<qemu:arg value='{value}'/>" for value in more)
    xml = domain(
        "<interface type='user'/>", more=f"<qemu:commandline {QEMU}>{args}</qemu:commandline>"
    )
    done = prepare(xml).xml
    mended = prepare(done.replace(b"server=off", b"server=on")).xml
    assert mended == done
    assert undo(mended).xml == xml


def test_a_monitor_for_a_qemu_that_counts_milliseconds_is_whole() -> None:
    done = prepare(PLAIN).xml.replace(b"reconnect=1'", b"reconnect-ms=1000'")
    assert prepare(done).xml == done


def test_what_was_the_cables_is_said() -> None:
    (note,) = prepare(BY_HAND).notes
    assert note.startswith("web1/ua-uplink: its VLAN belonged to its cable")


def test_the_original_can_hold_the_end_of_a_cdata_section() -> None:
    xml = domain("<interface type='user'><!-- ]]> --><model type='a]]&gt;'/></interface>")
    assert undo(prepare(xml).xml).xml == xml


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
SPACE = st.sampled_from(["", " ", "\n    ", "\n\t", "\n\n  "])
PART = st.one_of(
    TEXT.map(lambda text: f"<!--{text.replace('-', '')}-->"),
    TEXT.map(lambda text: f"<?pi {text.replace('?', '')}?>"),
    TEXT.map(lambda text: "<boot order=\"{}\"/>".format(re.sub('[&<"]', "'", text))),
    st.sampled_from([
        "<mac address='52:54:00:00:00:01'/>", "<source bridge='br0'/>", "<link state=\"up\"/>",
        "<alias name='ua-x'/>", "<target dev='tap0'/>", "<vlan><tag id='>'/></vlan>",
        "<!-- <source/> -->",
    ]),
)  # fmt: skip


@given(st.lists(st.tuples(SPACE, PART), max_size=6, unique_by=lambda part: part[1][:5]), SPACE)
def test_any_interface_comes_back_as_it_was_written(parts: list[tuple[str, str]], end: str) -> None:
    inside = "".join(space + part for space, part in parts) + end
    xml = domain(f"<interface  type = 'bridge'>{inside}</interface>", more="<!-- end -->")
    done = prepare(xml)
    assert prepare(done.xml).xml == done.xml
    assert undo(done.xml).xml == xml
    assert done.xml.endswith(b"<!-- end -->\n</domain>") or b"<!-- end -->" in done.xml


# --- the command ----------------------------------------------------------------------------------
async def test_the_command_prints_what_would_change_and_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "web1.xml"
    path.write_bytes(PLAIN)
    shown = await run(tmp_path / "none", "prepare", str(path))
    assert shown.exit_code == 0, shown.output
    assert "-    <interface type='bridge'>\n+    <interface type='ethernet'>\n" in shown.stdout
    assert path.read_bytes() == PLAIN

    whole = await run(tmp_path / "none", "prepare", str(path), "--xml")
    assert whole.stdout_bytes == prepare(PLAIN).xml
    path.write_bytes(whole.stdout_bytes)
    again = await run(tmp_path / "none", "prepare", str(path))
    assert (again.stdout, "it is prepared already" in again.stderr) == ("", True)
    back = await run(tmp_path / "none", "prepare", str(path), "--undo", "--xml")
    assert back.stdout_bytes == PLAIN


async def test_the_command_tells_a_program_too(tmp_path: Path) -> None:
    words = ["prepare", str(DATA / "plain.xml"), "--json", "--nic", "52:54:00:00:00:02"]
    said = json.loads((await run(tmp_path / "none", *words)).stdout)
    assert (said["changed"], said["defined"], said["nics"]) == (True, False, ["ua-net1"])
    assert said["diff"].startswith("---")


async def test_the_commands_refusal_is_a_sentence_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "web1.xml"
    xml = PLAIN.replace(b"<model type='virtio'/>", b"<model type='virtio'/><driver queues='4'/>")
    path.write_bytes(xml)
    refused = await run(tmp_path / "none", "prepare", str(path))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == (
        "linkmgr: web1/52:54:00:00:00:01: the NIC has '4' queues, and a hub has one. "
        "To do: remove queues= from its <driver>.\n"
    )
    missing = await run(tmp_path / "none", "prepare", str(tmp_path / "none.xml"))
    assert missing.exit_code == 2
    both = await run(tmp_path / "none", "prepare", str(path), "--undo", "--monitor", "/run/q")
    assert both.exit_code == 2
