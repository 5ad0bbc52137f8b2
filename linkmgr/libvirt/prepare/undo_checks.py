"""What is recorded in ``<metadata>`` is looked at before it becomes part of a domain again.

libvirt lets anybody who may edit a domain's metadata write there, and what an ``<interface>`` says
libvirt does as root: it runs scripts, opens files, gives devices of the host away. So a record of
what `prepare` would never have taken is refused, and one that names programs or files is written
only by a person who has seen it and says so.
"""

from __future__ import annotations

from linkmgr.errors import CannotPrepare
from linkmgr.libvirt.prepare.interface import parse_original
from linkmgr.libvirt.prepare.preconditions import check_nic
from linkmgr.libvirt.xml.document import Document, Element
from linkmgr.libvirt.xml.interfaces import DomainNic

#: What libvirt runs or opens as root, or as QEMU's user: the element, and its attributes.
_BY_ROOT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("script", ("path",)),
    ("downscript", ("path",)),
    ("backend", ("tap", "vhost", "logFile", "hostname", "fqdn")),
    ("source", ("path",)),
)

_MEND = "write the <interface> anew, and remove its record from <linkmgr:prepared>"


def check_original(before: bytes, nic: DomainNic, *, trust_metadata: bool) -> Document:
    """Refuse an original interface that no NIC can have been.

    :param trust_metadata: whether programs and files that it names are written.
    :raise CannotPrepare: why not.
    """
    made = parse_original(before, nic)
    was = DomainNic(nic.index, made.root, nic.domain, nic.alias, nic.mac)
    try:
        check_nic(was)
    except CannotPrepare as error:
        raise CannotPrepare(
            f"what is recorded in <metadata> was never prepared: {error.what}", hint=_MEND
        ).about(str(nic)) from error
    named = _by_root(made.root)
    if named and not trust_metadata:
        raise CannotPrepare(
            f"its record in <metadata>, which others than root may have written, has libvirt use "
            f"{', '.join(named)}",
            hint="look whether it was so, then undo it with --trust-metadata; or " + _MEND,
        ).about(str(nic))
    return made


def restored_note(nic: DomainNic, original: Document) -> str:
    """What a NIC leads to again, in a sentence."""
    root = original.root
    source = root.find("source")
    said = [f"of type {ascii(root.attributes.get('type', ''))[1:-1][:43]}"]
    if source is not None:
        said += [f"{key} {ascii(value)[:103]}" for key, value in source.attributes.items()]
    if device := root.get("target", "dev"):
        said.append(f"device {ascii(device)[:43]}")
    if root.attributes.get("trustGuestRxFilters") == "yes":
        said.append("trustGuestRxFilters")
    return f"{nic}: again {', '.join(said)}, as its record in <metadata> says"


def _by_root(interface: Element) -> list[str]:
    found = []
    for each in interface.children:
        for name, attributes in _BY_ROOT:
            if each.name == name:
                found += [
                    f"<{name} {key}={ascii(each.attributes[key])[:103]}>"
                    for key in attributes
                    if key in each.attributes
                ]
    return found
