"""What cannot be prepared, or undone, is refused: a sentence, and the domain as it was."""

from __future__ import annotations

import re

import pytest

from linkmgr import hub_args
from linkmgr.errors import BadOption, CannotPrepare, UnknownNic
from linkmgr.libvirt.prepare.rewrite import prepare, undo
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.interfaces import nics_of
from tests.unit.prepare_lab import PLAIN, QEMU, domain


@pytest.mark.parametrize("path", ["qmp.sock", "/" + "x" * 107, "/run/a\nb"])
def test_a_socket_that_cannot_be_one_is_refused(path: str) -> None:
    with pytest.raises(BadOption, match="cannot be the socket"):
        prepare(PLAIN, monitor=path)


@pytest.mark.parametrize(
    ("interface", "what", "hint"),
    [
        ("<interface type='hostdev'/>", "passed through", "--nic"),
        ("<interface type='vdpa'/>", "vDPA", "--nic"),
        ("<interface type='vhostuser'/>", "vhost-user", "--nic"),
        ("<interface type='null'/>", "crashes libvirtd", "another type"),
        ("<interface type='vds'/>", "'vds', which is not known", "--nic"),
        ("<interface/>", "'', which is not known", "--nic"),
        ("<interface type='user'><driver queues='4'/></interface>", "4.* queues", "queues="),
        ("<interface type='user'><driver queues='x'/></interface>", "'x' queues", "queues="),
        (
            "<interface type='direct'><source dev='eth1' mode='passthrough'/></interface>",
            "mode passthrough", "mode='bridge'",
        ),
        (
            "<interface type='bridge'><filterref filter='clean-traffic'/></interface>",
            "clean-traffic", "remove <filterref>",
        ),
    ],
)  # fmt: skip
def test_a_nic_that_cannot_work_is_refused(interface: str, what: str, hint: str) -> None:
    good = "<interface type='user'><mac address='52:54:00:00:00:07'/></interface>"
    xml = domain(good, interface)
    with pytest.raises(CannotPrepare, match=what) as refused:
        prepare(xml)
    assert refused.value.code == "cannot-prepare"
    assert refused.value.nic == "web1/NIC number 2"
    assert hint in (refused.value.hint or "")
    assert prepare(xml, nic="52:54:00:00:00:07").nics == ("ua-net0",)


OWN_HUB = "hubport,hubid={},id=mine"


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (
            f"<qemu:override {QEMU}><qemu:device alias='net1'/></qemu:override>",
            "speaks of net1",
        ),
        (
            f"<qemu:commandline {QEMU}><qemu:arg value='-set'/>"
            "<qemu:arg value='device.net0.x-txtimer=1'/></qemu:commandline>",
            "speaks of net0",
        ),
        (
            f"<qemu:override {QEMU}><qemu:device alias='ua-net0'><qemu:frontend><qemu:property "
            "name='netdev' type='string' value='x'/></qemu:frontend></qemu:device></qemu:override>",
            "says already what the NIC is wired to",
        ),
        (
            f"<qemu:commandline {QEMU}><qemu:arg value='-netdev'/>"
            "<qemu:arg value='hubport,id=lm-hub-ua-net0,hubid=1'/></qemu:commandline>",
            "'hubport,id=lm-hub-ua-net0,hubid=1', which the NIC needs",
        ),
        (
            f"<qemu:commandline {QEMU}><qemu:arg value='-netdev'/><qemu:arg value='"
            + hub_args("ua-net0", mac="52:54:00:00:00:01")[1].replace("lm-hub-ua-net0", "mine")
            + "'/></qemu:commandline>",
            "id=mine,.*which the NIC needs",
        ),
    ],
)
def test_what_the_domain_says_to_qemu_itself_is_not_broken(more: str, what: str) -> None:
    with pytest.raises(CannotPrepare, match=what):
        prepare(domain("<interface type='user'/>", more=more))


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        (b"", "not XML"),
        (b"<domain", "not XML"),
        (b"<domain><a></domain>", "not XML"),
        (b"<x:domain/>", "not XML"),
        ("<domain>ä</domain>".encode("latin-1"), "not XML"),
        ("<domain/>".encode("utf-16"), "not in UTF-8"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?><domain/>', "ISO-8859-1"),
        (b"<!DOCTYPE domain><domain type='qemu'/>", "document type"),
        (b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><d>&x;</d>', "document type"),
        (b"<domain>" + b"<a>" * 300 + b"</a>" * 300 + b"</domain>", "256 levels"),
        (b"<domain>" + b" " * (1 << 20) + b"</domain>", "1048576 bytes"),
        (b"<network/>", "'network', not of a domain"),
        (b"<domain type='lxc'><name>a</name></domain>", "'lxc'"),
        (b"<domain type='kvm'/>", "no name"),
        (b"<domain type='kvm'><name>a</name></domain>", "has no NIC"),
        (b"<domain type='kvm'><name/></domain>", "'' cannot be the name of a VM"),
    ],
)
def test_what_is_no_domain_of_qemu_is_refused(xml: bytes, what: str) -> None:
    with pytest.raises(CannotPrepare, match=what):
        prepare(xml)


def test_a_billion_laughs_are_refused_before_the_first_one() -> None:
    entities = "".join(
        f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' if n else '<!ENTITY l0 "ha">' for n in range(30)
    )
    xml = f"<!DOCTYPE domain [{entities}]><domain type='qemu'>&l29;</domain>".encode()
    for rewrite in (prepare, undo):
        with pytest.raises(CannotPrepare, match="document type"):
            rewrite(xml)


def test_a_nic_that_is_not_there_is_an_unknown_nic() -> None:
    for rewrite in (prepare, undo):
        with pytest.raises(UnknownNic, match=r"52:54:00:00:00:01, 52:54:00:00:00:02"):
            rewrite(PLAIN, nic="net7")
    twin = domain("<interface type='user'><mac address='52:54:00:00:00:07'/></interface>" * 2)
    with pytest.raises(CannotPrepare, match="2 NICs that are called 52:54"):
        prepare(twin, nic="52:54:00:00:00:07")


@pytest.mark.parametrize("name", ["web 2", "-web", "wëb", "x" * 64])
def test_a_domain_that_would_never_be_taken_in_is_refused(name: str) -> None:
    other = f"<name>{name}</name>".encode()
    with pytest.raises(CannotPrepare, match="cannot be the name of a VM") as refused:
        prepare(PLAIN.replace(b"<name>web1</name>", other))
    assert "virsh domrename" in str(refused.value.hint)
    assert "1 to 63 letters, digits" in str(refused.value.hint)
    as_before = prepare(PLAIN).xml.replace(b"<name>web1</name>", other)
    assert undo(as_before).xml == PLAIN.replace(b"<name>web1</name>", other)


def test_a_name_that_libvirt_cannot_change_by_a_command_gets_advice_that_is_a_sentence() -> None:
    """virsh domrename takes no name that is longer than that of a file may be."""
    with pytest.raises(CannotPrepare, match="cannot be the name of a VM") as refused:
        prepare(PLAIN.replace(b"<name>web1</name>", f"<name>{'x' * 256}</name>".encode()))
    assert str(refused.value.hint).startswith("give it another name; use 1 to 63 letters")


def test_two_nics_of_one_alias_are_refused() -> None:
    nic = "<interface type='user'><alias name='ua-x'/></interface>"
    done = prepare(domain(nic)).xml
    element = nics_of(Document(done))[0].element
    copied = done[: element.end] + done[element.start : element.end] + done[element.end :]
    for xml in (domain(nic, nic), copied):
        for rewrite in (prepare, undo):
            for which in (None, "ua-x"):
                with pytest.raises(CannotPrepare, match=r"2 NICs .*ua-x") as refused:
                    rewrite(xml, nic=which)
                assert "alias" in str(refused.value.hint)


def test_two_nics_of_an_alias_that_libvirt_does_not_keep_are_two_nics() -> None:
    xml = domain("<interface type='user'><alias name='net0'/></interface>" * 2)
    done = prepare(xml)
    assert done.nics == ("ua-net0", "ua-net1")
    assert undo(done.xml).xml == xml


def test_a_prepared_nic_whose_alias_was_changed_is_refused() -> None:
    renamed = prepare(PLAIN).xml.replace(b"<alias name='ua-net1'/>", b"<alias name='ua-x'/>")
    for rewrite in (prepare, undo):
        with pytest.raises(CannotPrepare, match="was prepared as ua-net1, and is called ua-x"):
            rewrite(renamed)


def test_a_nic_that_was_removed_since_leaves_nothing_after_undo() -> None:
    done = prepare(PLAIN)
    gone = Document(done.xml)
    back = undo(gone.remove(nics_of(gone)[1].element).source).xml
    plain = Document(PLAIN)
    assert back == plain.remove(nics_of(plain)[1].element).source


@pytest.mark.parametrize("record", [b"<interface", b"<!DOCTYPE a><interface/>", b"<disk/>", b""])
def test_a_record_that_cannot_be_read_is_not_put_into_the_domain(record: bytes) -> None:
    done = prepare(domain("<interface type='user'/>")).xml
    damaged = re.sub(rb"<!\[CDATA\[.*?\]\]>", b"<![CDATA[" + record + b"]]>", done)
    assert damaged != done
    with pytest.raises(CannotPrepare, match="recorded in <metadata>") as refused:
        undo(damaged)
    assert refused.value.nic == "web1/ua-net0"


# --- what others may have written into <metadata> -------------------------------------------------
def recorded(interface: str) -> bytes:
    """A prepared domain whose record somebody has edited."""
    done = prepare(domain("<interface type='user'/>")).xml
    edited = re.sub(rb"<!\[CDATA\[.*?\]\]>", f"<![CDATA[{interface}]]>".encode(), done)
    assert edited != done
    return edited


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("<script path='/tmp/evil'/>", "<script path='/tmp/evil'>"),
        ("<downscript path='/tmp/evil'/>", "<downscript path='/tmp/evil'>"),
        ("<backend tap='/tmp/tun' vhost='/tmp/vhost'/>", "<backend vhost='/tmp/vhost'>"),
        ("<backend type='passt' logFile='/etc/shadow'/>", "<backend logFile='/etc/shadow'>"),
    ],
)
def test_a_record_has_libvirt_run_or_open_nothing_unless_a_person_says_so(
    inside: str, named: str
) -> None:
    xml = recorded(f"<interface type='ethernet'>{inside}</interface>")
    with pytest.raises(CannotPrepare, match="others than root may have written") as refused:
        undo(xml)
    assert named in refused.value.what
    assert "--trust-metadata" in str(refused.value.hint)
    assert inside.encode() in undo(xml, trust_metadata=True).xml
    assert inside.encode() not in prepare(xml).xml.replace(b"CDATA", b"").split(b"]]>")[1]


@pytest.mark.parametrize(
    "interface",
    [
        "<interface type='hostdev'><source><address type='pci' bus='0x03'/></source></interface>",
        "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>",
        "<interface type='vhostuser'><source type='unix' path='/x' mode='client'/></interface>",
        "<interface type='direct'><source dev='eth0' mode='passthrough'/></interface>",
        "<interface type='user'><driver queues='4'/></interface>",
        "<interface/>",
    ],
)
def test_a_record_of_what_is_never_prepared_is_refused_whoever_says_so(interface: str) -> None:
    xml = recorded(interface)
    for trusting in (False, True):
        with pytest.raises(CannotPrepare, match="was never prepared"):
            undo(xml, trust_metadata=trusting)


def test_an_undo_says_what_each_nic_leads_to_again() -> None:
    (note,) = undo(
        recorded(
            "<interface type='bridge' trustGuestRxFilters='yes'><source bridge='br-mgmt'/>"
            "<target dev='uplink'/></interface>"
        )
    ).notes
    assert note == (
        "web1/ua-net0: again of type bridge, bridge 'br-mgmt', device 'uplink', "
        "trustGuestRxFilters, as its record in <metadata> says"
    )


@pytest.mark.parametrize("alias", ["", "ua-x", "ua-net0,hubid=1", "a" * 300])
def test_a_record_of_a_nic_that_is_not_there_writes_nothing(alias: str) -> None:
    record = f"<linkmgr:nic alias='{alias}'><![CDATA[<interface type='hostdev'/>]]></linkmgr:nic>"
    done = prepare(PLAIN).xml
    more = done.replace(b"</linkmgr:prepared>", record.encode() + b"</linkmgr:prepared>")
    assert undo(more).xml == PLAIN
