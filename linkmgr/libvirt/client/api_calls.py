"""What is asked of libvirt, as blocking calls on one connection; they run in its thread.

Each takes libvirt-python (`linkmgr.libvirt.client.libvirt_python.load_libvirt_python`) and a
connection first, and raises libvirt-python's own error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from linkmgr.errors import LibvirtRefused
from linkmgr.libvirt.xml.document import Document, Element
from linkmgr.libvirt.xml.status_file import pid_of

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NO_METADATA = 80  # VIR_ERR_NO_DOMAIN_METADATA
_NO_NETWORK = 43  # VIR_ERR_NO_NETWORK
_INVALID = 8  # VIR_ERR_INVALID_ARG


class DomainState(StrEnum):
    """What a domain does, in virsh's words; in the order of libvirt's numbers."""

    NONE = "no state"
    RUNNING = "running"
    IDLE = "idle"
    PAUSED = "paused"
    SHUTDOWN = "in shutdown"
    SHUT_OFF = "shut off"
    CRASHED = "crashed"
    PM_SUSPENDED = "pmsuspended"


_STATES = tuple(DomainState)


@dataclass(frozen=True)
class DomainView:
    """A domain, as libvirt sees it now.

    :param pid: of its QEMU, from libvirt's status file; ``None`` when it does not run, or cannot be
        seen from here.
    """

    uuid: str
    name: str
    active: bool
    state: DomainState
    pid: int | None
    persistent: bool


def domains(api: Any, connection: Any, run_dir: Path) -> list[DomainView]:
    """All domains, by name."""
    found = []
    for domain in connection.listAllDomains():
        try:
            found.append(view(domain, run_dir))
        except api.libvirt.libvirtError as error:
            if not connection.isAlive():
                raise
            if error.get_error_code() != LibvirtRefused.NO_DOMAIN:  # else it is gone by now
                found.append(_unseen(domain))
    return sorted(found, key=lambda each: each.name)


def view(domain: Any, run_dir: Path) -> DomainView:
    """One domain."""
    number = domain.state()[0]
    state = _STATES[number] if 0 <= number < len(_STATES) else DomainState.NONE
    active = bool(domain.isActive())
    name = domain.name()
    return DomainView(
        uuid=domain.UUIDString(),
        name=name,
        active=active,
        state=state,
        pid=pid_of(name, run_dir) if active else None,
        persistent=bool(domain.isPersistent()),
    )


def _unseen(domain: Any) -> DomainView:
    """A domain of which libvirt says no more than that it is there."""
    return DomainView(
        uuid=domain.UUIDString(),
        name=domain.name(),
        active=False,
        state=DomainState.NONE,
        pid=None,
        persistent=False,
    )


def find_domain(connection: Any, which: str) -> Any:
    """A domain by its uuid or its name."""
    if _UUID.fullmatch(which):
        return connection.lookupByUUIDString(which)
    return connection.lookupByName(which)


def xml(api: Any, connection: Any, which: str, *, live: bool) -> str:
    """A domain's XML, without passwords: what holds now, or what holds for its next start."""
    flags = 0 if live else api.libvirt.VIR_DOMAIN_XML_INACTIVE
    return str(find_domain(connection, which).XMLDesc(flags))


def network_xml(api: Any, connection: Any, name: str) -> str | None:
    """The XML of a network of libvirt's own; ``None`` if there is none of that name."""
    try:
        return str(connection.networkLookupByName(name).XMLDesc(0))
    except api.libvirt.libvirtError as error:
        if error.get_error_code() == _NO_NETWORK:
            return None
        raise


def metadata(api: Any, connection: Any, which: str, uri: str, *, live: bool) -> str | None:
    """The element of a namespace in a domain's metadata; ``None`` if there is none."""
    lv = api.libvirt
    flags = lv.VIR_DOMAIN_AFFECT_LIVE if live else lv.VIR_DOMAIN_AFFECT_CONFIG
    try:
        return str(
            find_domain(connection, which).metadata(lv.VIR_DOMAIN_METADATA_ELEMENT, uri, flags)
        )
    except lv.libvirtError as error:
        if error.get_error_code() == _NO_METADATA:
            return None
        raise


def set_metadata(
    api: Any,
    connection: Any,
    which: str,
    *,
    uri: str,
    key: str,
    text: str | None,
    live: bool,
    config: bool,
) -> None:
    """Write, or with ``None`` remove, the element of a namespace in a domain's metadata."""
    lv = api.libvirt
    flags = (lv.VIR_DOMAIN_AFFECT_LIVE if live else 0) | (
        lv.VIR_DOMAIN_AFFECT_CONFIG if config else 0
    )
    try:
        find_domain(connection, which).setMetadata(
            lv.VIR_DOMAIN_METADATA_ELEMENT, text, key, uri, flags
        )
    except lv.libvirtError as error:
        if not (text is None and error.get_error_code() == _NO_METADATA):
            raise


def set_link(api: Any, connection: Any, which: str, mac: str, *, up: bool) -> None:
    """Set the link of a running domain's NIC, as ``virsh domif-setlink`` does.

    :raise LibvirtRefused: the domain has no NIC of that address, or several.
    """
    domain = find_domain(connection, which)
    document = Document(domain.XMLDesc(0).encode())
    nic = _only_nic(document, which, mac)
    state, link = "up" if up else "down", nic.find("link")
    if link is None:
        document = document.append(nic, [(0, f"<link state='{state}'/>")])
    else:
        document = document.set_attribute(link, "state", state)
    nic = _only_nic(document, which, mac)
    text = document.source[nic.start : nic.end].decode()
    domain.updateDeviceFlags(text, api.libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _only_nic(document: Document, which: str, mac: str) -> Element:
    devices = document.root.find("devices")
    found = [
        each
        for each in (devices.children if devices else ())
        if each.name == "interface" and each.get("mac", "address").lower() == mac.lower()
    ]
    if len(found) != 1:
        raise LibvirtRefused(
            f"domain {which} has {len(found) or 'no'} NICs with the address {mac}",
            number=_INVALID,
            hint="see 'virsh domiflist'; give each NIC an address of its own",
        )
    return found[0]
