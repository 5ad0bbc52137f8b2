"""What an author can do to a domain's XML, and what must hold of it all the same."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import TypeVar
from xml.etree import ElementTree

from linkmgr.errors import BadMetadata, CannotPrepare, LinkmgrError
from linkmgr.libvirt.prepare.rewrite import prepare, refresh, undo
from linkmgr.libvirt.xml import monitor
from linkmgr.libvirt.xml.desired_cables import CABLES_NAMESPACE, desired_cables_of_xml
from linkmgr.libvirt.xml.document import QEMU, Document
from linkmgr.libvirt.xml.interfaces import nics_of
from linkmgr.libvirt.xml.prepared_element import PREPARED_NAMESPACE
from linkmgr.text.untrusted import SENTENCE_LIMIT
from tests.corpus.rewriting import Wrong

LOOP_S = 0.1  #: CPU seconds of the service's event loop for one look at a domain
OFFLINE_S = 2.0  #: CPU seconds of ``linkmgr prepare``, which costs only its caller
_SAID = 3 * SENTENCE_LIMIT  # a name, what happened, and what to do
_TRIES = 3  # for a budget: what else runs costs caches

R = TypeVar("R")

Hurt = Callable[[bytes], bytes]


def _metadata(inner: bytes) -> Hurt:
    """Put something into the metadata, making it where there is none."""

    def hurt(xml: bytes) -> bytes:
        if b"</metadata>" in xml:
            return xml.replace(b"</metadata>", inner + b"</metadata>", 1)
        return xml.replace(b"</name>", b"</name><metadata>" + inner + b"</metadata>", 1)

    return hurt


def _root(attributes: bytes) -> Hurt:
    return lambda xml: re.sub(rb"<domain\b", b"<domain " + attributes, xml, count=1)


def _devices(more: bytes) -> Hurt:
    return lambda xml: xml.replace(b"</devices>", more + b"</devices>", 1)


def _put(old: bytes, new: bytes) -> Hurt:
    return lambda xml: xml.replace(old, new)


def _record(text: bytes) -> Hurt:
    """Edit what a NIC was, by hand."""
    return lambda xml: re.sub(
        rb"<!\[CDATA\[<interface.*?\]\]>", lambda _: b"<![CDATA[" + text + b"]]>", xml,
        flags=re.DOTALL,
    )  # fmt: skip


def _twice(pattern: bytes) -> Hurt:
    return lambda xml: re.sub(pattern, rb"\g<0>\g<0>", xml, flags=re.DOTALL)


def _gone(pattern: bytes, xml: bytes) -> bytes:
    return re.sub(pattern, b"", xml, flags=re.DOTALL)


def _renamed(prefix: bytes, declared: bytes) -> Hurt:
    """Have another prefix for linkmgr's namespace of records."""
    return lambda xml: re.sub(rb"(</?)linkmgr:", rb"\1" + prefix, xml).replace(
        b"xmlns:linkmgr=", b"xmlns" + declared + b"="
    )


def _prepared(xml: bytes) -> bytes:
    try:
        return prepare(xml).xml
    except LinkmgrError:
        return xml


_LAUGHS = b"".join(
    b"<!ENTITY l%d '%s'>" % (n, b"&l%d;" % (n - 1) * 10 if n else b"ha") for n in range(30)
)
_NIC = b"<interface type='user'/>"

HURTS: Mapping[str, Hurt] = {
    # as linkmgr itself writes it, so that what follows is done to that
    "prepared": _prepared,
    # too many, too deep, too long
    "330,000 elements": _metadata(b"<a/>" * 330_000),
    "8,000 elements": _metadata(b"<a xmlns='urn:a'>" + b"<b/>" * 8_000 + b"</a>"),
    "100,000 children": _metadata(b"<a xmlns='urn:a'>" + b"<b/> \n" * 100_000 + b"</a>"),
    "250 levels": _metadata(b"<a>" * 250 + b"</a>" * 250),
    "100,000 levels": _metadata(b"<a>" * 100_000),
    "15,000 attributes": _metadata(
        b"<a " + b" ".join(b"a%d=''" % n for n in range(15_000)) + b"/>"
    ),
    "a long value": _root(b"x='" + b"v" * 900_000 + b"'"),
    "a long name": _put(b"</name>", b"n" * 900_000 + b"</name>"),
    "long blanks": _put(b"<devices>", b" " * 500_000 + b"<devices>"),
    "10,000 NICs": _devices(_NIC * 10_000),
    "500 NICs": _devices(b"\n" + _NIC * 500),
    "long aliases": _devices(
        b"<interface type='user'><alias name='ua-" + b"n" * 90_000 + b"'/></interface>"
    ),
    "8,000 arguments": _put(
        b"</domain>",
        b"<q:commandline xmlns:q='%b'>" % QEMU.encode()
        + b"<q:arg value='id=x'/>" * 8_000
        + b"</q:commandline></domain>",
    ),
    # namespaces
    "qemu is another prefix": _root(b"xmlns:qemu='urn:other'"),
    "linkmgr is another prefix": _root(b"xmlns:linkmgr='urn:other'"),
    "another prefix of qemu": _root(b"xmlns:q='%b' xmlns:r='%b'" % (QEMU.encode(), QEMU.encode())),
    "a namespace by default": _root(b"xmlns='urn:other'"),
    "a long namespace": _metadata(b"<a xmlns='" + b"u" * 100_000 + b"'/>"),
    "55,000 namespaces": _metadata(
        b"<a " + b" ".join(b"xmlns:a%d='u'" % n for n in range(55_000)) + b"/>"
    ),
    "our records by another prefix": _renamed(b"x:", b":x"),
    "our records by default": _renamed(b"", b""),
    "a foreign attribute in a NIC": lambda xml: _root(b"xmlns:x='u'")(xml).replace(
        b"<interface ", b"<interface x:y='1' "
    ),
    # entities, instructions, comments, sections
    "laughs": lambda xml: (
        b"<!DOCTYPE domain [" + _LAUGHS + b"]>" + xml.replace(b"</name>", b"&l29;</name>")
    ),
    "an entity that is itself": lambda xml: b"<!DOCTYPE domain [<!ENTITY a '&a;'>]>" + xml,
    "an external entity": lambda xml: (
        b"<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>" + xml
    ),
    "an unknown entity": _put(b"</name>", b"&x;</name>"),
    "instructions": lambda xml: (
        b"<?a?>" + xml.replace(b"<interface ", b"<?b c?><interface ") + b"<?d?>"
    ),
    "comments": lambda xml: (
        b"<!---->"
        + xml.replace(b"<source", b"<!-- <source> ]]> --><source")
        + b"<!-- </domain> -->"
    ),
    "a comment in the name": _put(b"<name>", b"<name><!-- x -->"),
    "sections": lambda xml: re.sub(rb"<name>([^<&]*)</name>", rb"<name><![CDATA[\1]]></name>", xml),
    # encodings
    "UTF-16": lambda xml: xml.decode(errors="replace").encode("utf-16"),
    "UTF-16 without a mark": lambda xml: xml.decode(errors="replace").encode("utf-16-le"),
    "Latin-1": _put(b"</name>", b"\xe4</name>"),
    "Latin-1, declared": lambda xml: (
        b"<?xml version='1.0' encoding='latin-1'?>"
        + xml.replace(b"</name>", b"</name><title>\xe4</title>")
    ),
    "a byte order mark": lambda xml: b"\xef\xbb\xbf" + xml,
    "NUL": _put(b"</name>", b"\0</name>"),
    "ESC": _put(b"</name>", b"\x1b[2J</name>"),
    "a direction mark": _put(b"</name>", "\u202e</name>".encode()),
    "half a surrogate pair": _put(b"</name>", b"&#xD800;</name>"),
    "carriage returns": _put(b"\n", b"\r"),
    "some carriage returns": lambda xml: xml.replace(b"\n", b"\r\n", xml.count(b"\n") // 2),
    # ours, and not as linkmgr writes it
    "records twice": _twice(rb"<linkmgr:nic .*?</linkmgr:nic>"),
    "all records twice": _twice(rb"<linkmgr:prepared.*</linkmgr:prepared>"),
    "the channel twice": _twice(rb"<channel type='unix'>(?:(?!</channel>).)*ua-lmqmp.*?</channel>"),
    "arguments twice": _twice(rb"<qemu:arg [^>]*lm-[^>]*>"),
    "overrides twice": _twice(rb"<qemu:device .*?</qemu:device>"),
    "two commandlines": _twice(rb"<qemu:commandline.*</qemu:commandline>"),
    "9,000 records": _metadata(
        b"<prepared xmlns='%b'>" % PREPARED_NAMESPACE.encode()
        + b"".join(b"<nic alias='ua-%d'/>" % n for n in range(9_000))
        + b"</prepared>"
    ),
    "no records": lambda xml: _gone(rb"<linkmgr:prepared.*</linkmgr:prepared>", xml),
    "no overrides": lambda xml: _gone(rb"<qemu:override.*</qemu:override>", xml),
    "a record of words": _record(b"it was a good NIC"),
    "a record of two": _record(_NIC * 2),
    "a record with a declaration": _record(b"<?xml version='1.0'?>" + _NIC),
    "a record of another element": _record(b"<hostdev/>"),
    "a record of a device of the host": _record(b"<interface type='hostdev'/>"),
    "a record of a script": _record(
        b"<interface type='ethernet'><script path='/tmp/x'/></interface>"
    ),
    "a deep record": _record(b"<a>" * 10_000),
    "a large record": _record(b"<interface type='user'>" + b"<a/>" * 9_000 + b"</interface>"),
    "our alias on a disk": _devices(b"<disk type='file'><alias name='ua-lmqmp'/></disk>"),
    "our alias on a NIC": _devices(b"<interface type='user'><alias name='ua-lmqmp'/></interface>"),
    "one alias twice": _devices(b"<interface type='user'><alias name='ua-a'/></interface>" * 2),
    "an odd alias": _devices(
        b"<interface type='user'><alias name='net" + b"9" * 5_000 + b"'/></interface>"
    ),
    "two cables elements": _metadata(b"<cables xmlns='%b'/>" % CABLES_NAMESPACE.encode() * 2),
    "5,000 cables": _metadata(
        b"<cables xmlns='%b'>" % CABLES_NAMESPACE.encode()
        + b"".join(b"<cable nic='n%d'/>" % n for n in range(5_000))
        + b"</cables>"
    ),
}


def judge(xml: bytes) -> None:
    """Have everything that reads or rewrites a domain's XML look at some.

    :raise Wrong: says what does not hold.
    """
    for look in (_leak, _nics, desired_cables_of_xml):
        _tried(look, xml, LOOP_S)
    _tried(refresh, xml, OFFLINE_S)
    _tried(undo, xml, OFFLINE_S)
    made = _tried(prepare, xml, OFFLINE_S)
    if made is None:
        return
    ElementTree.fromstring(made.xml)
    if prepare(made.xml).xml != made.xml:
        raise Wrong("prepared twice is not prepared once")
    if monitor.find_leak(Document(made.xml)) is not None:
        raise Wrong("its guest could speak to the service")
    if PREPARED_NAMESPACE.encode() in xml:
        return  # what it was before is in its records, whatever they say
    back = _tried(lambda given: undo(given, trust_metadata=True), made.xml, OFFLINE_S)
    if back is None or back.xml != xml:
        raise Wrong("undone is not as it was")


def _leak(xml: bytes) -> object:
    return monitor.find_leak(Document(xml))


def _nics(xml: bytes) -> object:
    return [str(each) for each in nics_of(Document(xml))]


def _tried(work: Callable[[bytes], R], xml: bytes, seconds: float) -> R | None:
    """What came of it; ``None`` if it was refused as it should be."""
    least, made = float("inf"), None
    for _ in range(_TRIES):
        begun = time.thread_time()
        try:
            made = work(xml)
        except (CannotPrepare, BadMetadata) as error:
            _check_refusal(error)
        least = min(least, time.thread_time() - begun)
        if least < seconds:
            return made
    raise Wrong(f"{work} takes {least:.2f} s of CPU")


def _check_refusal(error: LinkmgrError) -> None:
    said = str(error)
    if not error.hint or len(said) > _SAID or not said.isprintable():
        raise Wrong(f"a refusal is no short sentence that says what to do: {said[:_SAID]!r}")
