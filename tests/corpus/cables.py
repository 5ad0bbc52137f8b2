"""What must hold of desired cables in a domain, in its text and under libvirt.

libvirt is its own test driver, in this process: it reads and writes the XML as all its drivers do,
and runs nothing.
"""

from __future__ import annotations

import re
from typing import Any

from linkmgr.libvirt.client import api_calls, libvirt_python
from linkmgr.libvirt.xml.desired_cables import (
    CABLES_NAMESPACE,
    CABLES_PREFIX,
    DesiredCable,
    DesiredCables,
    InlineNetwork,
    desired_cables_of_xml,
    parse,
    render,
)
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.prepared_element import _HEAD
from linkmgr.model import LinkState, NotifyMode
from tests.corpus.rewriting import Wrong

_EMPTY = re.compile(r"\n *<metadata(/>|>\s*</metadata>)")  # libvirt itself leaves that behind

ASKED = DesiredCables(
    {
        each.nic: each
        for each in (
            DesiredCable("ua-net0", network="blue", port="p1", notify=NotifyMode.FLAP),
            DesiredCable(
                "ua-net1", inline=InlineNetwork("bridge", {"bridge": "br'0\"<&>", "vlan": "7"})
            ),
            DesiredCable("ua-net2", link=LinkState.DOWN),
        )
    }
)


def check_text(xml: bytes) -> None:
    """Cables that are put into a domain's XML are read there, and without them there are none.

    :raise Wrong: says what does not hold.
    """
    if desired_cables_of_xml(xml) != DesiredCables():
        raise Wrong("it asks for cables")
    document, lines = Document(xml), [(0, render(ASKED, key=CABLES_PREFIX))]
    metadata = document.root.find("metadata")
    if metadata is not None:
        document = document.append(metadata, lines)
    else:
        head = [each for each in document.root.children if each.name in _HEAD]
        lines = [(0, "<metadata>"), *lines, (0, "</metadata>")]
        document = document.insert_after(head[-1], lines)
    if desired_cables_of_xml(document.source) != ASKED:
        raise Wrong("other cables are read than were written")


class Libvirt:
    """libvirt's test driver."""

    def __init__(self) -> None:
        self._api = libvirt_python.load_libvirt_python()
        self._api.libvirt.registerErrorHandler(lambda *_: None, None)
        self._connection = self._api.libvirt.open("test:///default")
        for each in self._connection.listAllDomains():  # it brings one
            each.destroy()
            each.undefine()

    def define(self, xml: bytes) -> Any:
        """Define a domain; ``None`` if it is one of which the test driver has not all."""
        other, count = re.subn(rb"(<domain\b[^>]*\btype=)(['\"])\w+\2", rb"\1'test'", xml, count=1)
        try:
            return self._connection.defineXML(other.decode()) if count else None
        except self._api.libvirt.libvirtError:
            return None

    def check(self, xml: bytes, prepared: bytes | None) -> bool:
        """Write cables into a domain, read them, and remove them; take it prepared, too.

        :return: whether libvirt took the domain at all.
        :raise Wrong: says what does not hold.
        """
        domain = self.define(xml)
        if domain is None:
            return False
        before, name = domain.XMLDesc(0), domain.name()
        if self._read(name) is not None:
            raise Wrong("libvirt has cables of it")
        self._write(name, render(ASKED))
        if (
            parse(self._read(name), domain=name) != ASKED
            or desired_cables_of_xml(domain.XMLDesc(0)) != ASKED
        ):
            raise Wrong("libvirt gives other cables than were written")
        self._write(name, None)
        after = domain.XMLDesc(0)
        if after != before and _EMPTY.sub("", after) != _EMPTY.sub("", before):
            raise Wrong("it is not as it was when its cables are removed")
        domain.undefine()
        if prepared is not None:
            domain = self.define(prepared)
            if domain is None:
                raise Wrong("libvirt takes it, and not when it is prepared")
            domain.undefine()
        return True

    def _read(self, name: str) -> str | None:
        return api_calls.metadata(self._api, self._connection, name, CABLES_NAMESPACE, live=False)

    def _write(self, name: str, text: str | None) -> None:
        api_calls.set_metadata(
            self._api, self._connection, name,
            uri=CABLES_NAMESPACE, key=CABLES_PREFIX, text=text, live=False, config=True,
        )  # fmt: skip
