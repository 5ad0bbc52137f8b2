"""Domain XML by an author who means harm: read within a tenth of a second, or refused at once."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from linkmgr.errors import BadMetadata, CannotPrepare
from linkmgr.libvirt.domains.applier import MAX_SHOWN, MAX_TEXT, in_a_line
from linkmgr.libvirt.xml.desired_cables import MAX_CABLES, MAX_CABLES_BYTES, desired_cables_of_xml
from linkmgr.libvirt.xml.document import (
    MAX_ATTRIBUTES,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_NAMESPACE,
    Document,
)
from linkmgr.libvirt.xml.status_file import BadDomainStatus, parse_status

#: Seconds of the loop that one domain may cost.
BUDGET = 0.1


def domain(metadata: bytes) -> bytes:
    return b"<domain><name>web1</name><metadata>" + metadata + b"</metadata></domain>"


def cables(inner: str) -> bytes:
    return domain(f"<lm:cables xmlns:lm='urn:linkmgr:cables'>{inner}</lm:cables>".encode())


def filled(part: bytes, size: int = MAX_BYTES - 200) -> bytes:
    return part * (size // len(part))


def numbered(part: str, number: int) -> bytes:
    return " ".join(part.format(i) for i in range(number)).encode()


HARMFUL = {
    "many empty elements between white space": domain(b"<a/> \n" * 330_000),
    "as many elements as one mebibyte takes": domain(filled(b"<a/>")),
    "deep and wide": domain(filled(b"<a>" * 200 + b"</a>" * 200)),
    "too deep": domain(b"<a>" * 100_000),
    "many attributes": domain(b"<a " + numbered("a{}=''", 90_000) + b"/>"),
    "many namespaces": domain(b"<a " + numbered("xmlns:a{}='u'", 55_000) + b"/>"),
    "a long namespace in each name": domain(
        b"<a xmlns:x='" + b"u" * 400_000 + b"'>" + numbered("<x:b{}/>", 9_000) + b"</a>"
    ),
    "a long namespace by default": domain(
        b"<a xmlns='" + b"u" * 400_000 + b"'>" + numbered("<b{}/>", 9_000) + b"</a>"
    ),
    "longer than libvirt takes": domain(b" " * (5 << 20)),
}

HARMLESS = {
    "text in many pieces": domain(filled(b"a&#10;")),
    "lines": domain(filled(b"\n")),
    "comments": domain(filled(b"<!---->")),
    "instructions": domain(filled(b"<?a?>")),
    "sections": domain(filled(b"<![CDATA[x]]>")),
    "elements between white space": domain(b"<a/> \n" * (MAX_ELEMENTS - 3)),
    "elements with attributes": domain(
        b"<a b='1' c='2'/> \n" * min(MAX_ELEMENTS - 3, MAX_ATTRIBUTES // 2)
    ),
    "deep": domain(filled(b"<a>" * 200 + b" x</a>" * 200, 1000 * 24)),
    "a long value": domain(b"<a b='" + filled(b"&lt;") + b"'/>"),
    "a long name": domain(b"<" + filled(b"n", 500_000) + b"/>"),
}


def cpu_of(work: Callable[[], object]) -> float:
    """The least of three: what else runs on this machine is not what is measured."""
    spent = []
    for _ in range(3):
        begun = time.thread_time()
        work()
        spent.append(time.thread_time() - begun)
    return min(spent)


@pytest.mark.parametrize("xml", HARMFUL.values(), ids=HARMFUL.keys())
def test_what_would_take_long_is_refused_within_the_budget(xml: bytes) -> None:
    def read() -> None:
        with pytest.raises(CannotPrepare) as raised:
            Document(xml)
        assert len(str(raised.value)) < 500

    assert cpu_of(read) < BUDGET


@pytest.mark.parametrize("xml", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_is_odd_and_within_the_bounds_is_read_within_the_budget(xml: bytes) -> None:
    assert cpu_of(lambda: Document(xml)) < BUDGET
    assert cpu_of(lambda: desired_cables_of_xml(xml)) < BUDGET


@pytest.mark.parametrize(
    ("inner", "what"),
    [
        (f"<lm:cable {'n' * 900_000}='x'/>", "attribute"),
        ("".join(f"<lm:cable nic='n{i}'/>" for i in range(MAX_CABLES + 1)), "cables"),
        (f"<lm:cable nic='{'n' * 900_000}'/>", "bytes"),
        (
            "<lm:cable nic='n' driver='bridge'>"
            f"<lm:option name='bridge' value='{'v' * MAX_CABLES_BYTES}'/></lm:cable>",
            "bytes",
        ),
    ],
    ids=["an attribute", "cables", "a name", "an option"],
)
def test_cables_that_are_too_many_or_too_long_are_refused_briefly(inner: str, what: str) -> None:
    def read() -> None:
        with pytest.raises(BadMetadata) as raised:
            desired_cables_of_xml(cables(inner))
        assert len(str(raised.value)) < 500

    assert cpu_of(read) < BUDGET


def test_a_refusal_says_which_bound_and_what_it_is() -> None:
    for xml, bound in (
        (domain(b" " * MAX_BYTES), MAX_BYTES),
        (domain(b"<a/>" * MAX_ELEMENTS), MAX_ELEMENTS),
        (domain(b"<a b=''/>" * (MAX_ATTRIBUTES + 1)), MAX_ATTRIBUTES),
        (domain(b"<a>" * MAX_DEPTH), MAX_DEPTH),
        (domain(b"<a xmlns='" + b"u" * (MAX_NAMESPACE + 1) + b"'/>"), MAX_NAMESPACE),
    ):
        with pytest.raises(CannotPrepare, match=f"more than {bound}|longer than {bound}"):
            Document(xml)


def test_a_status_file_with_such_a_domain_in_it_is_refused_within_the_budget() -> None:
    xml = b"<domstatus>" + HARMFUL["many empty elements between white space"] + b"</domstatus>"

    def read() -> None:
        with pytest.raises(BadDomainStatus):
            parse_status(xml[: MAX_BYTES + 1])
        with pytest.raises(BadDomainStatus):
            parse_status(xml)

    assert cpu_of(read) < BUDGET


def test_a_large_domain_that_means_well_is_read() -> None:
    """As many NICs as a machine may have, each with all that libvirt writes of one."""
    nic = """
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet1'/>
      <model type='virtio'/><link state='up'/><alias name='ua-net{}'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>"""
    devices = "".join(nic.format(i) for i in range(MAX_CABLES))
    asked = "".join(f"<lm:cable nic='ua-net{i}' network='blue'/>" for i in range(MAX_CABLES))
    xml = cables(asked)[: -len(b"</domain>")] + f"<devices>{devices}</devices></domain>".encode()
    assert len(desired_cables_of_xml(xml).by_nic) == MAX_CABLES


def test_what_is_said_of_many_nics_or_long_options_stays_a_line() -> None:
    said = in_a_line(["x" * MAX_CABLES_BYTES] * MAX_CABLES)
    assert len(said) < MAX_SHOWN * (MAX_TEXT + 2) + 20
    assert said.endswith(f"and {MAX_CABLES - MAX_SHOWN} more")
    assert in_a_line(["one", "two"]) == "one; two"
