"""What an author can do to a domain's XML is undone byte for byte, or refused briefly."""

from __future__ import annotations

import re

import pytest

from linkmgr.errors import CannotPrepare
from linkmgr.libvirt.prepare.rewrite import prepare, refresh, undo
from linkmgr.libvirt.xml.document import MAX_BYTES, Document
from linkmgr.libvirt.xml.monitor import MonitorForm, find_leak, find_monitor
from linkmgr.text.untrusted import SENTENCE_LIMIT
from tests.unit.prepare_lab import PLAIN, QEMU, domain

NIC = "<interface type='user'/>"
PREPARED = prepare(PLAIN).xml


def override(alias: str, name: str, value: str) -> bytes:
    made = (
        f"<qemu:device alias='{alias}'><qemu:frontend><qemu:property name='{name}' "
        f"type='string' value='{value}'/></qemu:frontend></qemu:device>"
    )
    return made.encode()


@pytest.mark.parametrize("within", [b"</qemu:frontend>", b"</qemu:device>", b"</qemu:override>"])
def test_the_last_override_of_a_property_counts_as_for_libvirt(within: bytes) -> None:
    """With the channel's own chardev back in its port the guest would speak to the service."""
    more = override("ua-lmqmp", "chardev", "charua-lmqmp")
    device = PREPARED.index(b"<qemu:device alias='ua-lmqmp'>")
    if within == b"</qemu:frontend>":
        more = more[more.index(b"<qemu:property") : more.index(b"</qemu:frontend>")]
    elif within == b"</qemu:device>":
        more = more[more.index(b"<qemu:frontend") : more.index(b"</qemu:device>")]
    at = PREPARED.index(within, device)
    opened = PREPARED[:at] + more + PREPARED[at:]
    assert find_monitor(Document(opened)).form is MonitorForm.OPEN
    assert find_leak(Document(opened)) is not None
    assert prepare(opened).xml == refresh(opened).xml
    assert find_leak(Document(prepare(opened).xml)) is None
    assert undo(opened).xml == PLAIN


def test_a_nic_that_a_second_override_wires_elsewhere_is_wired_to_its_hub_again() -> None:
    more = override("ua-net0", "netdev", "hostua-net0")
    damaged = PREPARED.replace(b"</qemu:override>", more + b"</qemu:override>")
    assert damaged != PREPARED
    assert more not in prepare(damaged).xml
    assert undo(damaged).xml == PLAIN


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        (domain(NIC, more=f"<devices>{NIC}</devices>"), "2 elements <devices>"),
        (domain(NIC, more="<name>other</name>"), "2 elements <name>"),
        (domain(NIC, more="<metadata/><metadata/>"), "2 elements <metadata>"),
        (domain(NIC, more=f"<qemu:override {QEMU}/>" * 2), "2 elements <override>"),
        (domain(NIC, more=f"<qemu:commandline {QEMU}/>" * 3), "3 elements <commandline>"),
        (
            re.sub(
                rb"(<linkmgr:prepared.*?</linkmgr:prepared>)", rb"\1\1", PREPARED, flags=re.DOTALL
            ),
            "2 elements <prepared>",
        ),
        (
            re.sub(rb"(<linkmgr:nic .*?</linkmgr:nic>)", rb"\1\1", PREPARED, flags=re.DOTALL),
            "2 records of the NIC ua-net0",
        ),
    ],
)
def test_what_is_there_twice_and_would_be_seen_once_is_refused(xml: bytes, what: str) -> None:
    for rewrite in (prepare, undo):
        with pytest.raises(CannotPrepare, match=what):
            rewrite(xml)


@pytest.mark.parametrize(
    ("device", "what"),
    [
        ("<disk type='file'><alias name='ua-lmqmp'/></disk>", "<disk> has the alias ua-lmqmp"),
        (
            "<interface type='user'><alias name='ua-lmqmp'/></interface>",
            "<interface> has the alias",
        ),
        ("<channel type='pty'><alias name='ua-lmqmp'/></channel>", "<channel> has the alias"),
        ("<channel type='pty'><target type='virtio' name='linkmgr'/></channel>", "of its own"),
        (
            "<channel type='unix'><source mode='bind'/><target type='virtio' name='linkmgr'/>"
            "</channel>",
            "of its own",
        ),
    ],
)
def test_a_device_that_has_what_the_monitor_needs_is_refused_and_stays(
    device: str, what: str
) -> None:
    xml = domain(NIC, device)
    with pytest.raises(CannotPrepare, match=what):
        prepare(xml)
    assert refresh(xml).xml == xml


LONG = "n" * 900_000
ODD = "a&#x202e;b"


@pytest.mark.parametrize("text", [LONG, ODD], ids=["long", "odd"])
@pytest.mark.parametrize(
    "xml",
    [
        "<domain type='qemu'><name>{}</name><devices><interface type='user'/></devices></domain>",
        "<domain type='{}'><name>{}</name></domain>",
        "<domain type='qemu'><name>a</name><metadata/><metadata/><title>{}</title></domain>",
        "<domain type='qemu'><name>a</name><devices><interface type='{}'/></devices></domain>",
        "<domain type='qemu'><name>a</name><devices><interface type='x'><alias name='ua-{}'/>"
        "</interface></devices></domain>",
        "<domain type='qemu'><name>a</name><devices><interface type='user'><alias name='ua-{}'/>"
        "</interface></devices></domain>",
        "<domain type='qemu'><name>a</name><devices><interface type='x'><mac address='{}'/>"
        "</interface></devices></domain>",
        "<{0}/>",
    ],
)
def test_a_name_that_is_long_or_odd_makes_no_long_or_odd_refusal(xml: str, text: str) -> None:
    if "<{0}" in xml:
        text = text.replace("&#x202e;", "é")
    whole = xml.format(text, "a").encode()
    with pytest.raises(CannotPrepare) as refused:
        prepare(whole)
    said = str(refused.value)
    assert said.isprintable()
    assert len(said) < 3 * SENTENCE_LIMIT
    assert len(refused.value.what) <= SENTENCE_LIMIT


@pytest.mark.parametrize("alias", ["net" + "1" * 5000, "net٣"])
def test_an_alias_that_libvirt_gives_to_no_nic_is_no_number(alias: str) -> None:
    xml = domain(f"<interface type='user'><alias name='{alias}'/></interface>")
    assert prepare(xml).nics == ("ua-net0",)
    assert undo(prepare(xml).xml).xml == xml


@pytest.mark.parametrize(
    "interface",
    [
        "<interface type='user' x:y='1'/>",
        "<interface type='user'><x:y/></interface>",
    ],
)
def test_a_prefix_that_is_declared_outside_of_a_nic_is_named(interface: str) -> None:
    xml = domain(interface).replace(b"<devices>", b"<devices xmlns:x='u'>")
    with pytest.raises(CannotPrepare, match="declared outside of it") as refused:
        prepare(xml)
    assert refused.value.nic == "web1/NIC number 1"


@pytest.mark.parametrize(
    "xml",
    [
        PLAIN.replace(b"\n", b"\r"),
        PLAIN.replace(b"\n", b"\r\n", 3),
        PLAIN.replace(b"\n", b"\r\n", 14),
        domain("<interface type='user'>\r\n<model type='virtio'/>\r</interface>"),
        domain("<interface type='user'>\r<x y='a&lt;]]>&#10;'/>\n</interface>"),
    ],
    ids=["old Macintosh", "the first three", "within a NIC", "in a NIC alone", "with references"],
)
def test_lines_that_end_in_different_ways_come_back_as_they_were(xml: bytes) -> None:
    made = prepare(xml).xml
    assert prepare(made).xml == made
    assert undo(made).xml == xml


def test_what_could_be_prepared_can_be_undone_however_long_it_is() -> None:
    xml = domain(
        f"<interface type='bridge'><source bridge='{'b' * (MAX_BYTES - 5000)}'/></interface>"
    )
    made = prepare(xml).xml
    assert undo(made).xml == xml


def test_a_domain_that_would_be_too_large_when_prepared_is_refused_as_such() -> None:
    with pytest.raises(CannotPrepare, match=r"what would come of it cannot be read: .*10000 elem"):
        prepare(domain(*[NIC] * 2000))


@pytest.mark.parametrize(
    ("before", "behind"), [(b"<?xml version='1.0'?>", b""), (b"\n", b" <!-- -->")]
)
def test_a_record_that_was_written_by_hand_is_its_interface_alone(
    before: bytes, behind: bytes
) -> None:
    edited = re.sub(
        rb"<!\[CDATA\[(.*?)\]\]>", rb"<![CDATA[" + before + rb"\1" + behind + rb"]]>",
        PREPARED, flags=re.DOTALL,
    )  # fmt: skip
    assert edited != PREPARED
    assert undo(edited).xml == PLAIN
