"""One ``<interface>``: as one on a hub, and as it was before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from linkmgr.errors import CannotPrepare, LinkmgrError
from linkmgr.libvirt.xml.document import Document, quoted
from linkmgr.libvirt.xml.interfaces import DomainNic

#: What of an interface is the cable's and goes with it, and how a person calls it.
CABLE_ELEMENTS: Mapping[str, str] = {
    "source": "", "backend": "", "local": "", "guest": "", "tune": "", "coalesce": "",
    "virtualport": "virtual port", "vlan": "VLAN", "bandwidth": "bandwidth limits",
    "port": "port isolation", "ip": "addresses", "route": "routes", "script": "script",
    "downscript": "script for the end", "portForward": "port forwarding",
}  # fmt: skip

#: What `restored_interface` takes from before. The rest of the interface is as it is by then.
_OURS = frozenset({*CABLE_ELEMENTS, "target", "link", "alias"})

#: Names of devices that libvirt does not keep, since it gives them by itself.
_AUTOMATIC_DEVICE = re.compile(r"(vnet|vif|macvtap|macvlan)[0-9]*")
_OUR_DEVICE = re.compile(r"lmn[0-9a-f]{10}")

_MEND = "mend <linkmgr:prepared> there, or write the <interface> anew and remove it"


def hub_interface(document: Document, nic: DomainNic, alias: str) -> bytes:
    """The interface as one whose tap carries nothing, with its link down."""
    device = device_name(nic, alias)
    try:
        made = document.part(nic.element)
    except CannotPrepare as error:
        raise CannotPrepare(
            "the <interface> uses a namespace prefix that is declared outside of it, and would "
            "mean nothing in a record",
            hint="remove it, or declare it (xmlns:...) in the <interface> itself",
        ).about(str(nic)) from error
    made = made.set_attribute(made.root, "type", "ethernet")
    made = made.drop_attribute(made.root, "trustGuestRxFilters")
    gone = set(CABLE_ELEMENTS)
    if nic.element.get("target", "dev") != device:
        gone.add("target")
    if nic.alias != alias:
        gone.add("alias")
    made = made.edited(*(made.removal(each) for each in made.root.children if each.name in gone))
    if (link := made.root.find("link")) is not None:
        made = made.set_attribute(link, "state", "down")
    new = [
        (0, f"<{name} {attribute}={quoted(value)}/>")
        for name, attribute, value in (
            ("target", "dev", device), ("link", "state", "down"), ("alias", "name", alias)
        )
        if made.root.find(name) is None
    ]  # fmt: skip
    return made.append(made.root, new).source if new else made.source


def restored_interface(document: Document, nic: DomainNic, before: bytes) -> bytes:
    """The interface as it was, with what was changed since and is not the cable's."""
    made, now = parse_original(before, nic), nic.element
    names = dict.fromkeys(e.name for e in (*made.root.children, *now.children))
    for name in [name for name in names if name not in _OURS]:
        old = [e for e in made.root.children if e.name == name]
        new = [e for e in now.children if e.name == name]
        if [e.meaning() for e in old] == [e.meaning() for e in new]:
            continue
        made = made.edited(*(made.removal(each) for each in old))
        if new:
            made = made.append(made.root, [(0, document.text(each).decode()) for each in new])
    return made.text(made.root)  # without what may stand before and behind it


def parse_original(before: bytes, nic: DomainNic) -> Document:
    """Parse the original interface of a NIC.

    :raise CannotPrepare: it is none, or no XML.
    """
    try:
        made = Document(before)
    except LinkmgrError as error:
        raise CannotPrepare(
            f"what the NIC was is recorded in <metadata>, but cannot be read: {error.what}",
            hint=_MEND,
        ).about(str(nic)) from error
    if made.root.name != "interface":
        raise CannotPrepare(
            f"what is recorded in <metadata> is no interface but a {ascii(made.root.name)[:43]}",
            hint=_MEND,
        ).about(str(nic))
    return made


def device_name(nic: DomainNic, alias: str) -> str:
    """The name of the host's device: the domain's own, else one that no other domain has."""
    target = nic.element.find("target")
    own = target.attributes.get("dev", "") if target else ""
    managed = target is None or target.attributes.get("managed", "yes") == "yes"
    given = _AUTOMATIC_DEVICE.fullmatch(own) or _OUR_DEVICE.fullmatch(own)  # not by a person
    if own and managed and not given:
        return own
    # A copy of the domain under another name gets another one when it is prepared again. Not from
    # the uuid, which XML that is written by hand most often lacks.
    digest = hashlib.sha256(f"{nic.domain}/{alias}".encode()).hexdigest()
    return f"lmn{digest[:10]}"
