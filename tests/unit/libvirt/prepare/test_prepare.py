"""A domain's XML is prepared, and only what has to change does."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkmgr import hub_args
from linkmgr.errors import CannotPrepare
from linkmgr.libvirt.prepare.rewrite import prepare, refresh, undo
from linkmgr.libvirt.prepare.virsh import validate
from linkmgr.libvirt.xml.document import Document, Element, _Reader
from linkmgr.libvirt.xml.interfaces import nics_of
from linkmgr.libvirt.xml.monitor import (
    MonitorForm,
    find_leak,
    find_monitor,
    is_outdated,
    with_reconnect_ms,
)
from linkmgr.libvirt.xml.qemu_namespace import arguments, override
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
    assert there[-4:] == ["-chardev", "null,id=lm-null", "-mon", MON]
    assert override(document, "ua-lmqmp", "chardev") == "lm-null"
    (channel,) = channels(document)
    assert channel.get("source", "mode") == "connect"
    assert channel.get("source", "path") == "/run/linkmgr/qmp.sock"
    assert channel.get("source/reconnect", "timeout") == "1"
    assert channel.get("source/seclabel", "model") == "dac"


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


@pytest.mark.parametrize("beginning", [b"-netdev", b"hubport,id=lm-sink", b"null,", b"chardev="])
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


# --- the monitor ----------------------------------------------------------------------------------
MON = "chardev=charua-lmqmp,mode=control"


def channels(document: Document) -> list[Element]:
    devices = document.root.find("devices")
    assert devices is not None
    found = [each for each in devices.children if each.name == "channel"]
    return [each for each in found if each.get("target", "name") == "linkmgr"]


def path_of(xml: bytes) -> str:
    (channel,) = channels(Document(xml))
    return channel.get("source", "path")


def test_the_monitor_is_what_is_asked_for_and_stays() -> None:
    done = prepare(PLAIN, monitor="/run/a,b'&.sock")
    assert path_of(done.xml) == "/run/a,b'&.sock"
    assert prepare(done.xml).xml == done.xml
    moved = prepare(done.xml, monitor="/run/other.sock").xml
    assert path_of(moved) == "/run/other.sock"
    assert arguments(Document(moved)).count("-mon") == 1
    assert undo(moved).xml == PLAIN


def test_the_socket_is_kept_from_each_security_driver_that_gives_files_away() -> None:
    made = prepare(PLAIN, models=["apparmor", "dac", "selinux", "none", "a' b"]).xml
    source = channels(Document(made))[0].find("source")
    assert source is not None
    labels = [each.attributes for each in source.children if each.name == "seclabel"]
    assert labels == [{"model": each, "relabel": "no"} for each in ("dac", "selinux")]
    names = [each.name for each in source.children]
    assert names == ["reconnect", "seclabel", "seclabel"]  # libvirt's schema wants this order
    assert prepare(made, models=["dac", "selinux"]).xml == made
    assert prepare(made).xml == made  # nothing is known of the host
    there = prepare(made, models=["dac"]).xml  # on a host without it the domain would not start
    assert b"selinux" not in there
    assert b"<seclabel" not in prepare(PLAIN, models=[]).xml


@pytest.mark.parametrize(
    ("label", "models"),
    [
        ("<seclabel type='none' model='dac'/>", None),
        ("<seclabel type='none' model='dac'/>", ["selinux", "dac"]),
        ("<seclabel type='static' model='dac'><label>+1:+1</label></seclabel>", ["none", "dac"]),
        ("<seclabel type='dynamic' model='dac' relabel='no'/>", ["dac"]),
        ("<seclabel type='none'/>", ["selinux", "dac"]),
    ],
)
def test_a_security_driver_that_labels_nothing_of_the_domain_is_told_nothing_of_the_socket(
    label: str, models: list[str] | None
) -> None:
    """libvirt defines no domain that has such a driver leave a file alone once more."""
    xml = domain("<interface type='user'/>", more=label)
    made = prepare(xml, models=models).xml
    source = channels(Document(made))[0].find("source")
    assert source is not None
    told = [each.attributes["model"] for each in source.children if each.name == "seclabel"]
    off = "selinux" if "model=" not in label else "dac"
    assert told == [each for each in models or [] if each not in (off, "none")]
    assert prepare(made, models=models).xml == refresh(made, models=models).xml == made
    assert undo(made).xml == xml


OFF = "<seclabel type='none'/>"  # of the host's first security driver, whichever that is


def test_the_socket_is_kept_from_dac_where_the_host_of_a_label_without_a_model_is_not_known() -> (
    None
):
    """The label may be of another driver, and then libvirt would give the socket away."""
    made = prepare(domain("<interface type='user'/>", more=OFF)).xml
    assert b"<seclabel model='dac' relabel='no'/>" in made


@pytest.mark.parametrize("models", [["apparmor", "dac"], ["selinux", "dac"], ["dac"]])
def test_what_is_right_on_its_host_is_right_where_the_host_is_not_known(models: list[str]) -> None:
    made = prepare(domain("<interface type='user'/>", more=OFF), models=models).xml
    assert (b"<seclabel model='dac' relabel='no'/>" in made) == (models[0] != "dac")
    assert find_monitor(Document(made), models).whole
    assert find_monitor(Document(made)).whole
    assert refresh(made).xml == prepare(made).xml == made


def test_a_socket_that_a_known_host_would_give_away_is_kept_from_it() -> None:
    there = prepare(domain("<interface type='user'/>", more=OFF), models=["dac"]).xml
    assert not find_monitor(Document(there), ["apparmor", "dac"]).whole
    here = refresh(there, models=["apparmor", "dac"]).xml
    assert b"<seclabel model='dac' relabel='no'/>" in here


def test_what_libvirt_adds_to_the_channel_is_no_damage() -> None:
    done = prepare(PLAIN).xml
    stored = done.replace(
        b"<alias name='ua-lmqmp'/>",
        b"<alias name='ua-lmqmp'/>\n      <address type='virtio-serial' controller='0' bus='0' "
        b"port='3'/>",
    )
    assert stored != done
    assert prepare(stored).xml == stored
    assert undo(stored).xml == PLAIN


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("<reconnect enabled='yes' timeout='1'/>", ""),
        ("timeout='1'", "timeout='60'"),
        ("<seclabel model='dac' relabel='no'/>", ""),
        ("relabel='no'", "relabel='yes'"),
        ("mode='connect'", "mode='bind'"),
        ("<target type='virtio' name='linkmgr'/>", "<target type='virtio' name='other'/>"),
        ("<alias name='ua-lmqmp'/>", ""),
        ("<qemu:arg value='null,id=lm-null'/>", ""),
        ("<qemu:arg value='-chardev'/>", ""),
        ("value='null,id=lm-null'", "value='null,id=lm-null,logfile=/log'"),
        (f"<qemu:arg value='{MON}'/>", ""),
        (f"'{MON}'", "'chardev=charua-lmqmp,mode=readline'"),
        (f"'{MON}'", "'charua-lmqmp'"),
        (f"<qemu:arg value='{MON}'/>", f"<qemu:arg value='{MON}'/><qemu:arg value='-mon'/>"
         "<qemu:arg value='charua-lmqmp'/>"),
        ("value='lm-null'/>", "value='charua-lmqmp'/>"),
        ("<qemu:property name='chardev' type='string' value='lm-null'/>", ""),
    ],
)  # fmt: skip
def test_a_monitor_that_was_damaged_is_mended_and_keeps_its_path(there: str, instead: str) -> None:
    done = prepare(PLAIN, monitor="/run/own.sock").xml
    damaged = done.replace(there.encode(), instead.encode())
    assert damaged != done
    mended = prepare(damaged).xml
    assert path_of(mended) == "/run/own.sock"
    assert Document(mended).root.meaning() == Document(done).root.meaning()
    assert refresh(damaged).xml == mended
    assert undo(mended).xml == PLAIN
    assert find_leak(Document(mended)) is None


def test_the_domains_own_monitors_and_channels_stay_when_ours_is_mended() -> None:
    more = ["-chardev", "null,id=lm-qmp2", "-mon", "chardev=lm-qmp2,mode=control"]
    args = "".join(f"<qemu:arg value='{value}'/>" for value in more)
    agent = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    xml = domain(
        "<interface type='user'/>", agent,
        more=f"<qemu:commandline {QEMU}>{args}</qemu:commandline>",
    )  # fmt: skip
    done = prepare(xml).xml
    assert prepare(done.replace(b"timeout='1'", b"timeout='9'")).xml == done
    assert undo(done).xml == xml


def with_chardev(value: str) -> str:
    return (f"<qemu:commandline {QEMU}><qemu:arg value='-chardev'/><qemu:arg value='{value}'/>"
            "</qemu:commandline>")  # fmt: skip


@pytest.mark.parametrize("value", ["null,id=lm-null", "file,path=/log,id=lm-null"])
def test_a_chardev_of_ones_own_with_the_id_of_linkmgrs_is_refused_and_never_removed(
    value: str,
) -> None:
    xml = domain("<interface type='user'/>", more=with_chardev(value))
    with pytest.raises(CannotPrepare, match="a chardev 'lm-null' of its own") as refused:
        prepare(xml)
    assert "another id" in str(refused.value.hint)
    assert undo(xml).xml == refresh(xml).xml == xml


def test_a_chardev_of_ones_own_in_what_an_older_linkmgr_prepared_is_never_removed() -> None:
    old = (OLD / "plain.xml").read_bytes()
    ours = re.search(rb"<qemu:arg value='-chardev'/>", old)
    assert ours is not None
    own = b"<qemu:arg value='-chardev'/><qemu:arg value='file,path=/log,id=lm-null'/>"
    xml = old[: ours.start()] + own + old[ours.start() :]
    for rewrite in (prepare, refresh, undo):
        with pytest.raises(CannotPrepare, match="a chardev 'lm-null' of its own"):
            rewrite(xml)


@pytest.mark.parametrize("damage", ["", "null,id=lm-null", MON, "ua-lmqmp"])
@pytest.mark.parametrize("value", ["file,path=/log,id=lm-null", "ringbuf,id=lm-null"])
def test_a_chardev_of_ones_own_beside_a_monitor_of_linkmgrs_is_never_removed(
    value: str, damage: str
) -> None:
    """Whether linkmgr's is whole, lost its own chardev, or anything else."""
    own = f"<qemu:arg value='-chardev'/><qemu:arg value='{value}'/>"
    made = re.sub(b"(?=<qemu:arg )", own.encode(), prepare(PLAIN).xml, count=1)
    assert own.encode() in made
    xml = re.sub(rf"<qemu:arg value='{damage}'/>|<alias name='{damage}'/>".encode(), b"", made)
    assert (xml == made) == (damage == "")
    for rewrite in (prepare, refresh, undo):
        with pytest.raises(CannotPrepare, match="a chardev 'lm-null' of its own"):
            rewrite(xml)


def test_a_chardev_of_ones_own_beside_a_monitor_that_was_left_behind_stays() -> None:
    own = "<qemu:arg value='-chardev'/><qemu:arg value='file,path=/log,id=lm-null'/>"
    mon = f"<qemu:arg value='-mon'/><qemu:arg value='{MON}'/>"
    xml = "<qemu:commandline {}>{}</qemu:commandline>"
    both = domain("<interface type='user'/>", more=xml.format(QEMU, own + mon))
    alone = domain("<interface type='user'/>", more=xml.format(QEMU, own))
    assert refresh(both).xml == alone


def test_a_chardev_of_ones_own_with_the_id_of_an_older_linkmgrs_is_never_removed() -> None:
    xml = domain("<interface type='user'/>", more=with_chardev("file,path=/log,id=lm-qmp"))
    with pytest.raises(CannotPrepare, match="a chardev 'lm-qmp' of its own"):
        prepare(xml)
    assert undo(xml).xml == refresh(xml).xml == xml


OLD = Path(__file__).parents[2] / "data/prepared_before"  # what linkmgr wrote before the channel


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_an_older_linkmgr_prepared_is_prepared_anew_and_undone(path: Path) -> None:
    old, plain = (OLD / path.name).read_bytes(), path.read_bytes()
    assert find_monitor(Document(old)).form is MonitorForm.COMMANDLINE
    assert is_outdated(Document(old))
    new = prepare(plain).xml
    assert refresh(old).xml == prepare(old).xml == new
    assert not is_outdated(Document(new))
    assert refresh(new).xml == new
    assert undo(old).xml == undo(new).xml


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_saved_xml_of_an_older_linkmgr_changes_in_the_word_that_a_newer_qemu_refuses(
    path: Path,
) -> None:
    old = (OLD / path.name).read_bytes()
    assert old.count(b",reconnect=1") == 1
    new = with_reconnect_ms(Document(old)).source
    assert Document(new).root.meaning() == (
        Document(old.replace(b",reconnect=1", b",reconnect-ms=1000")).root.meaning()
    )
    assert with_reconnect_ms(Document(new)).source == new


def test_arguments_of_others_keep_the_way_in_which_they_dial_again() -> None:
    args = "<qemu:arg value='-chardev'/><qemu:arg value='socket,id=mine,path=/a,reconnect=5'/>"
    document = Document(domain("", more=f"<qemu:commandline {QEMU}>{args}</qemu:commandline>"))
    assert with_reconnect_ms(document) is document


OLD_DIAL = "socket,id=lm-qmp,path={},server=off,reconnect=1"


@pytest.mark.parametrize(
    ("dial", "path"),
    [
        ("socket,id=lm-qmp,path=/run/own,,1.sock,server=on,wait=off", "/run/own,1.sock"),
        ("socket,id=lm-qmp,path=/run/own.sock,server=off", "/run/own.sock"),
        ("socket,path=/run/own.sock,reconnect=1,id=lm-qmp,server=on", "/run/own.sock"),
        (OLD_DIAL.format("/run/own.sock") + ",logfile=/tmp/log", "/run/own.sock"),
        ("socket,id=lm-qmp,path=/run/own.sock,server=off,reconnect-ms=1000", "/run/own.sock"),
        ("socket,id=lm-qmp,path=own.sock,server=off,reconnect=1", "/run/linkmgr/qmp.sock"),
        ("socket,id=lm-qmp,host=127.0.0.1,port=1,server=off", "/run/linkmgr/qmp.sock"),
        ("null,id=lm-qmp", "/run/linkmgr/qmp.sock"),
    ],
)
def test_an_old_monitor_keeps_its_path_when_it_is_written_anew(dial: str, path: str) -> None:
    there = OLD_DIAL.format("/run/linkmgr/qmp.sock").encode()
    old = (OLD / "plain.xml").read_bytes()
    assert there in old
    changed = old.replace(there, dial.encode())
    for made in (prepare(changed).xml, refresh(changed).xml):
        assert path_of(made) == path
        assert b"lm-qmp" not in made
    assert undo(changed).xml == PLAIN


@pytest.mark.parametrize(
    "mon",
    ["chardev=lm-qmp,mode=readline", "chardev=lm-qmp", "lm-qmp", "mode=control,chardev=lm-qmp"],
)
def test_another_way_to_use_the_old_monitors_chardev_goes(mon: str) -> None:
    old = (OLD / "plain.xml").read_bytes()
    ours = b"<qemu:arg value='chardev=lm-qmp,mode=control'/>"
    changed = f"<qemu:arg value='{mon}'/>".encode()
    for damaged in (
        old.replace(ours, changed),
        old.replace(ours, ours + b"<qemu:arg value='-mon'/>" + changed),
        re.sub(rb"\n *<qemu:arg value='-chardev'/>", b"", old),
        re.sub(rb"(\n *<qemu:arg value='socket,[^>]*>)", rb"\1\1", old),
    ):
        assert damaged != old
        assert prepare(damaged).xml == prepare(PLAIN).xml
        assert undo(damaged).xml == PLAIN


def test_of_a_domain_that_was_never_prepared_nothing_is_prepared_anew() -> None:
    assert refresh(PLAIN).xml == PLAIN
    one = prepare(PLAIN, nic="52:54:00:00:00:02").xml
    assert refresh(one).xml == one
    left = domain("<interface type='user'/>", prepare_channel())
    assert find_leak(Document(left)) is not None
    assert find_leak(Document(refresh(left).xml)) is None


def prepare_channel() -> str:
    done = Document(prepare(PLAIN).xml)
    return done.text(channels(done)[0]).decode()


# --- what the guest could speak through -----------------------------------------------------------
OTHER = "<serial type='unix'><source mode='connect' path='{}'/></serial>"


def test_a_channel_without_its_override_is_named_and_mended() -> None:
    done = prepare(PLAIN).xml
    assert find_leak(Document(done)) is None
    override_ = re.search(rb"\n *<qemu:device alias='ua-lmqmp'>.*?</qemu:device>", done, re.DOTALL)
    assert override_ is not None
    open_ = done.replace(override_[0], b"")
    found = find_leak(Document(open_))
    assert found is not None
    assert "'linkmgr', whose qemu:override is not there" in found.what
    assert "prepare web1 --refresh" in found.hint
    assert is_outdated(Document(open_))
    mended = refresh(open_)
    assert mended.xml == done
    assert "could have spoken to the service as its QEMU" in mended.notes[-1]


@pytest.mark.parametrize("path", ["/run/linkmgr/qmp.sock", "/var/run/linkmgr//qmp.sock"])
def test_another_device_that_leads_to_the_service_is_named_and_refused(path: str) -> None:
    xml = domain("<interface type='user'/>", OTHER.format(path))
    found = find_leak(Document(xml))
    assert found is not None
    assert f"a device that leads to {path}" in found.what
    with pytest.raises(CannotPrepare, match="could speak to the service"):
        prepare(xml)
    own = domain("<interface type='user'/>", OTHER.format("/run/own.sock"))
    with pytest.raises(CannotPrepare, match="could speak to the service"):
        prepare(own, monitor="/run/own.sock")
    assert prepare(own).nics == ("ua-net0",)


def test_a_chardev_that_is_no_monitor_is_named() -> None:
    dial = "-chardev,socket,,id=x,,path=/run/linkmgr/qmp.sock,,server=off".replace(",,", ";")
    word, value = dial.split(",")
    args = f"<qemu:arg value='{word}'/><qemu:arg value='{value.replace(';', ',')}'/>"
    more = f"<qemu:commandline {QEMU}>{args}{{}}</qemu:commandline>"
    found = find_leak(Document(domain("<interface type='user'/>", more=more.format(""))))
    assert found is not None
    assert "no monitor" in found.what
    mon = "<qemu:arg value='-mon'/><qemu:arg value='chardev=x,mode=control'/>"
    assert find_leak(Document(domain("<interface type='user'/>", more=more.format(mon)))) is None


# --- many NICs ------------------------------------------------------------------------------------
def many(nics: int) -> bytes:
    return domain(
        *(
            f"\n    <interface type='bridge'>\n      <mac address='52:54:00:00:00:{n:02x}'/>\n"
            "      <source bridge='br0'/>\n    </interface>"
            for n in range(nics)
        )
    )


def test_the_time_of_a_preparation_grows_with_the_nics_and_not_with_their_square() -> None:
    """Counted in bytes that are read, which is what takes the time; 50 NICs took 0.8 s once."""

    def bytes_read(nics: int) -> int:
        read = 0
        begin = _Reader.__init__

        def counted(self: _Reader, source: bytes) -> None:
            nonlocal read
            read += len(source)
            begin(self, source)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Reader, "__init__", counted)
            xml = many(nics)
            done = prepare(xml).xml
            assert prepare(done).xml == done
            assert undo(done).xml == xml
        return read

    assert bytes_read(100) < 2.2 * bytes_read(50)


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


def test_the_order_that_libvirt_writes_is_not_the_one_of_its_schema(tmp_path: Path) -> None:
    if shutil.which("virt-xml-validate") is None or shutil.which("xmllint") is None:
        pytest.skip("libvirt's schema is not here: apt install libvirt-clients libxml2-utils")
    done = prepare(PLAIN, models=["dac", "selinux"]).xml
    labels = re.search(rb"(\n *<seclabel[^>]*>)+", done)
    assert labels is not None
    stored = done.replace(labels[0], b"").replace(b"\n        <rec", labels[0] + b"\n        <rec")
    assert stored != done
    path = tmp_path / "stored.xml"
    path.write_bytes(stored)
    words = ["virt-xml-validate", str(path), "domain"]
    assert subprocess.run(words, capture_output=True, check=False).returncode != 0
    assert validate(stored, "what libvirt writes")
    assert prepare(stored).xml == stored
