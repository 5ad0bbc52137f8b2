"""What cannot boot on a hub: each refusal says which NIC, why, and what to do."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from linkmgr.errors import BadName, CannotPrepare
from linkmgr.libvirt.xml import qemu_namespace
from linkmgr.libvirt.xml.document import QEMU, Document
from linkmgr.libvirt.xml.interfaces import DomainNic, domain_name, is_automatic, nics_of
from linkmgr.libvirt.xml.prepared_element import PREPARED_NAMESPACE, prepared_aliases
from linkmgr.model import check_name
from linkmgr.text.untrusted import printable, shell_command

#: Kinds of libvirt whose NIC is QEMU's own, so that it can be held by a hub.
KINDS = frozenset(
    {"bridge", "network", "direct", "ethernet", "user", "internal", "mcast", "server", "client",
     "udp"}
)  # fmt: skip

_NOT_QEMUS = "leave this NIC as it is, and name the others with --nic"
REFUSED: Mapping[str, tuple[str, str]] = {
    "hostdev": ("is a device of the host that is passed through: QEMU has no cable of it",
                _NOT_QEMUS),
    "vdpa": ("is vDPA: its queues are in hardware, and no hub of QEMU can stand in between",
             _NOT_QEMUS),
    "vhostuser": ("is vhost-user: another process has the guest's queues, and no hub of QEMU can "
                  "stand in between", _NOT_QEMUS),
    "null": ("is of type 'null', which crashes libvirtd 9.0", "give it another type, such as user"),
}  # fmt: skip

_NAME_SHOWN = 63  # characters: as long as the name of a VM may be
_NAME_MAX = 255  # characters of a domain's name: it is the name of a file
_ONCE = frozenset(
    {"name", "devices", "metadata", f"{{{PREPARED_NAMESPACE}}}prepared", f"{{{QEMU}}}commandline",
     f"{{{QEMU}}}override"}
)  # fmt: skip
_SET = re.compile(r"device\.(net[0-9]{1,9})\.")
_HUB = re.compile(r"hubport,(?:.*,)?hubid=([0-9]+)(?:,|\Z)")
_ID = re.compile(r"(?:.*,)?id=([^,]+)")


def check_domain(document: Document) -> None:
    """Refuse what is no domain of QEMU, one that is never taken in, or one without NICs.

    :raise CannotPrepare: with what it is instead.
    """
    root = document.root
    if root.name != "domain":
        raise CannotPrepare(
            f"this is the XML of a {ascii(root.name)[:43]}, not of a domain",
            hint="give what 'virsh dumpxml --inactive DOMAIN' prints",
        )
    kind = root.attributes.get("type", "")
    if kind not in ("kvm", "qemu", "hvf"):
        raise CannotPrepare(
            f"domain {_shown_name(document)} is of type {ascii(kind)[:43]}, and only QEMU has hubs",
            hint="prepare domains of the types kvm and qemu",
        )
    if not root.find("name"):
        raise CannotPrepare("the domain has no name", hint="add a <name>")
    try:
        check_name("VM", domain_name(document))
    except BadName as error:
        name = domain_name(document)
        how = f", while it is shut off: '{rename_command(name)}'" if len(name) <= _NAME_MAX else ""
        raise CannotPrepare(
            f"{error.what}, so linkmgr would never take the domain in",
            hint=f"give it another name{how}; {error.hint}",
        ) from error
    if not nics_of(document):
        raise CannotPrepare(
            f"domain {_shown_name(document)} has no NIC",
            hint="add an <interface>, of type user if it need not be connected at first",
        )


def check_once(document: Document) -> None:
    """Refuse what is there several times, of which libvirt or linkmgr would see one.

    :raise CannotPrepare: what that is.
    """
    metadata = document.root.find("metadata")
    elements = [*document.root.children, *(metadata.children if metadata else ())]
    for name, count in Counter(each.name for each in elements if each.name in _ONCE).items():
        if count > 1:
            raise CannotPrepare(
                f"the domain has {count} elements <{name.rpartition('}')[2]}> where one may be",
                hint="merge them into one",
            )
    for alias, count in Counter(prepared_aliases(document)).items():
        if count > 1:
            raise CannotPrepare(
                f"<linkmgr:prepared> has {count} records of the NIC {printable(alias)}",
                hint="leave the one that says what the NIC was",
            )


def check_aliases(document: Document) -> None:
    """Refuse two NICs of one alias that stays: one record and one wiring would be both's.

    :raise CannotPrepare: which alias.
    """
    for alias, count in Counter(nic.user_alias for nic in nics_of(document)).items():
        if alias and count > 1:
            raise CannotPrepare(
                f"domain {_shown_name(document)} has {count} NICs with the alias "
                f"{printable(alias)}",
                hint="give each an alias of its own, or none: remove <alias> from what was copied",
            )


def check_nic(nic: DomainNic) -> None:
    """Refuse a NIC that cannot be held by a hub.

    :raise CannotPrepare: why not.
    """
    if nic.kind not in KINDS:
        what, hint = REFUSED.get(
            nic.kind, (f"is of type {ascii(nic.kind)[:43]}, which is not known", _NOT_QEMUS)
        )
        raise CannotPrepare(f"the NIC {what}", hint=hint).about(str(nic))
    element = nic.element
    queues = element.get("driver", "queues")
    if queues not in ("", "1"):
        raise CannotPrepare(
            f"the NIC has {ascii(queues)[:43]} queues, and a hub has one",
            hint="remove queues= from its <driver>",
        ).about(str(nic))
    if nic.kind == "direct" and element.get("source", "mode") == "passthrough":
        raise CannotPrepare(
            "the NIC has a device of the host to itself (mode passthrough), as SR-IOV needs it: "
            "its address and VLAN are set in that device",
            hint="give it mode='bridge', and plug it into a network of the driver direct with "
            "mode=passthru later",
        ).about(str(nic))
    if (rules := element.find("filterref")) is not None:
        name = rules.attributes.get("filter", "?")
        raise CannotPrepare(
            f"the NIC is filtered by libvirt ({ascii(name)[:43]}), and libvirt filters no cable of "
            "linkmgr: the guest would be without its filter",
            hint="remove <filterref>, and see that its networks filter",
        ).about(str(nic))


def check_clashes(document: Document, nic: DomainNic) -> None:
    """Refuse a NIC whose new alias would turn what the domain says by alias into nothing.

    libvirt ignores an override of an alias that does not exist, without a word.

    :raise CannotPrepare: where it says so.
    """
    if nic.user_alias:
        return
    named = [alias for alias in qemu_namespace.overridden(document) if is_automatic(alias)]
    for value in qemu_namespace.arguments(document):
        named += _SET.findall(value)
    if named:
        raise CannotPrepare(
            f"the NIC has no alias that stays, and needs one; but the domain's own qemu:override "
            f"or qemu:commandline speaks of {named[0]}, an alias that libvirt gives by the order "
            "of the NICs without one",
            hint=f"give that NIC <alias name='ua-{named[0]}'/>, and write ua-{named[0]} there too",
        ).about(str(nic))


class UsedIds:
    """The ids and hubs that the domain's own qemu:commandline and qemu:override use."""

    def __init__(self, document: Document) -> None:
        self._wired = {
            alias for alias, name in qemu_namespace.overrides(document) if name == "netdev"
        }
        self._ids: dict[str, str] = {}  # -> the value that has it
        self._hubs: dict[str, str] = {}
        for value in qemu_namespace.arguments(document):
            self._take(value)

    def reserve(self, nic: DomainNic, alias: str, args: Sequence[str]) -> None:
        """Reserve the ids and hubs of a NIC.

        :param args: that the NIC needs.
        :raise CannotPrepare: which of them is taken.
        """
        if alias in self._wired:
            raise CannotPrepare(
                "the domain's own qemu:override says already what the NIC is wired to",
                hint=f"remove the property netdev of {alias} there, and what it needs in "
                "qemu:commandline",
            ).about(str(nic))
        for value in args:
            an_id, hub = _ID.match(value), _HUB.match(value)
            other = (an_id and self._ids.get(an_id[1])) or (hub and self._hubs.get(hub[1]))
            if other:
                raise CannotPrepare(
                    f"the domain's own qemu:commandline has {ascii(other)[:103]}, which the NIC "
                    "needs for its hub",
                    hint="remove it there, or give the NIC another alias",
                ).about(str(nic))
        for value in args:
            self._take(value)

    def _take(self, value: str) -> None:
        if found := _ID.match(value):
            self._ids.setdefault(found[1], value)
        if found := _HUB.match(value):
            self._hubs.setdefault(found[1], value)


def _shown_name(document: Document) -> str:
    return printable(domain_name(document), _NAME_SHOWN)


def can_be_vm(name: str) -> bool:
    """Whether a domain's name can be the name of a VM, which it will be."""
    try:
        check_name("VM", name)
    except BadName:
        return False
    return True


def rename_command(name: str) -> str:
    """Return the command that gives a domain, while it is shut off, a name that a VM can have."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:63]
    new = kept or f"vm-{hashlib.sha256(os.fsencode(name)).hexdigest()[:6]}"
    return shell_command(f"virsh domrename --new-name {new}", name)
