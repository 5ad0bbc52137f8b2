"""The NICs of a domain's XML: which there are, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from linkmgr.errors import CannotPrepare, UnknownNic
from linkmgr.libvirt.xml.document import Document, Element
from linkmgr.text.suggest import hint_for_unknown
from linkmgr.text.untrusted import printable, quoted

_AUTOMATIC = re.compile(r"net[0-9]{1,9}")  #: an alias that libvirt gives at the start, by the order


@dataclass(frozen=True)
class DomainNic:
    """An ``<interface>``.

    :param index: among the domain's interfaces.
    :param alias: as it is written; empty without one.
    :param mac: in lower case; empty without one.
    """

    index: int
    element: Element
    domain: str
    alias: str
    mac: str

    @property
    def kind(self) -> str:
        """What it is connected to, in libvirt's words: ``bridge``, ``network``."""
        return self.element.attributes.get("type", "")

    @property
    def user_alias(self) -> str:
        """The alias that stays at each start: libvirt keeps those that begin with ``ua-``."""
        return self.alias if self.alias.startswith("ua-") else ""

    def __str__(self) -> str:
        name = self.alias or self.mac or f"NIC number {self.index + 1}"
        return f"{printable(self.domain)}/{printable(name)}"


def domain_name(document: Document) -> str:
    """The domain's name."""
    name = document.root.find("name")
    return name.text.strip() if name else "?"


def nics_of(document: Document) -> list[DomainNic]:
    """The domain's NICs, in order."""
    devices = document.root.find("devices")
    found = [e for e in devices.children if e.name == "interface"] if devices else []
    name = domain_name(document)
    return [
        DomainNic(index, each, name, each.get("alias", "name"), each.get("mac", "address").lower())
        for index, each in enumerate(found)
    ]


def select_nics(document: Document, which: str | None) -> list[DomainNic]:
    """The NICs that an alias or an address names; all of them without one.

    :param which: an alias with or without its ``ua-``, or an address.
    :raise UnknownNic: there is no such NIC.
    :raise CannotPrepare: there are several.
    """
    nics = nics_of(document)
    if which is None:
        return nics
    found = [nic for nic in nics if which in (nic.alias, nic.user_alias.removeprefix("ua-"))]
    found = found or [nic for nic in nics if nic.mac and which.lower() == nic.mac]
    name = domain_name(document)
    if not found:
        there = [nic.alias or nic.mac or "one without either" for nic in nics]
        raise UnknownNic(
            f"domain {name} has no NIC with the alias or address {quoted(which)}",
            hint=hint_for_unknown(which, there, "it has") if there else "it has no NICs at all",
        )
    if len(found) > 1:
        raise CannotPrepare(
            f"domain {name} has {len(found)} NICs that are called {which}",
            hint="give each an address or an alias of its own",
        )
    return found


def aliases_of(document: Document) -> set[str]:
    """The aliases of all devices, NICs and others."""
    return {e.attributes.get("name", "") for e in document.root.walk() if e.name == "alias"}


def new_alias(nic: DomainNic, taken: Collection[str]) -> str:
    """An alias for a NIC without one that stays: ``ua-net0`` for the first."""
    number = nic.index
    if _AUTOMATIC.fullmatch(nic.alias):
        number = int(nic.alias.removeprefix("net"))
    while f"ua-net{number}" in taken:
        number += 1
    return f"ua-net{number}"


def is_automatic(alias: str) -> bool:
    """Whether libvirt gives such an alias by itself, and another one when NICs come or go."""
    return _AUTOMATIC.fullmatch(alias) is not None
