"""Saved state (managedsave) of a domain that an older linkmgr prepared, and a newer QEMU.

libvirt resumes a domain with the XML that it was saved with. Its devices have to be those that its
memory knows, so it cannot be prepared anew; what its monitor dials with can be written anew.
"""

from __future__ import annotations

from linkmgr.libvirt.prepare.virsh import Virsh
from linkmgr.libvirt.xml import monitor
from linkmgr.libvirt.xml.document import Document
from linkmgr.text.untrusted import quoted, shell_command

RECONNECT_MS_SINCE = (9, 2)  #: the first QEMU that knows ``reconnect-ms=``
RECONNECT_UNTIL = (10, 2)  #: the first QEMU that does not know ``reconnect=``


def refresh_saved(virsh: Virsh, domain: str) -> str | None:
    """Have a domain's saved state resumed by the QEMU that is here; change nothing else.

    :return: what was done, or is to be done later, as a sentence without a full stop; ``None`` if
        nothing is.
    :raise LibvirtRefused: libvirt refused it.
    """
    document = Document(virsh.saved_xml(domain, secrets=True))
    mended = monitor.with_reconnect_ms(document)
    if mended is document:
        return None
    own = _own_emulator(virsh, document)
    if own is not None:
        return (
            f"{domain}: its saved state stays as it is, because libvirt does not tell the version "
            f"of {quoted(own, 200)}; if that is QEMU 9.2 or newer, write reconnect-ms=1000 in the "
            f"place of reconnect=1 with '{shell_command('virsh managedsave-edit', domain)}'"
        )
    version = virsh.qemu_version()
    here = "{}.{}".format(*version)
    if version < RECONNECT_MS_SINCE:
        return (
            f"{domain}: its saved state stays as it is, which QEMU {here} resumes and QEMU 10.2 "
            "and newer do not; once QEMU is upgraded, do this again"
        )
    virsh.define_saved(domain, mended.source)
    return f"{domain}: its saved state was changed so that QEMU {here} resumes it"


def _own_emulator(virsh: Virsh, document: Document) -> str | None:
    """The QEMU that a domain names, if it is not the one that libvirt tells the version of."""
    devices = document.root.find("devices")
    named = devices.find("emulator") if devices else None
    path = named.text.strip() if named else ""
    if not path or path == virsh.default_emulator(document.root.get("os/type", "arch")):
        return None
    return path
