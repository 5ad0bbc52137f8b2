"""libvirt through its own program: what ``linkmgr prepare`` reads and defines.

virsh and not libvirt-python: this is done once for a domain, by a person, and on a host that has
libvirt's guests virsh is there, whereas libvirt-python needs a compiler.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from linkmgr.errors import (
    CannotPrepare,
    LibvirtRefused,
    LibvirtUnreachable,
    LinkmgrError,
    NotFound,
    Unsupported,
)
from linkmgr.libvirt.xml.document import Document
from linkmgr.libvirt.xml.interfaces import select_nics
from linkmgr.libvirt.xml.monitor import in_schema_order
from linkmgr.text.suggest import did_you_mean
from linkmgr.text.untrusted import shell_command

VIRSH_TIMEOUT_S = 30.0  #: that libvirt may take for one answer

_NO_CONNECTION = "failed to connect to the hypervisor"  # virsh's own words, before libvirt's
#: In libvirt's own capabilities, which have an element for each CPU: too long to be read as XML.
_SECURITY_MODEL = re.compile(rb"<secmodel>\s*<model>([a-z0-9_-]{1,32})</model>")
_EMULATOR = re.compile(rb"<path>([^<]{1,4096})</path>")  # the first one in it
_QEMU_HERE = re.compile(r"^Running hypervisor: QEMU (\d+)\.(\d+)", re.MULTILINE)
_CHANGING = ("define", "managedsave-define")  # commands that change what libvirt has stored
_LOST = ("Disconnected from", "End of file while reading data", "client socket is closed")


@dataclass(frozen=True)
class DomainFacts:
    """What keeps the wiring that a domain has now.

    :param runs: whether it runs, and keeps its wiring until it is started again.
    :param saved: whether it has saved state (managedsave), which is resumed with its wiring.
    """

    runs: bool
    saved: bool


class Virsh:
    """libvirt, at one connection.

    Everything that asks it raises `LibvirtUnreachable` when no answer came, `LibvirtRefused` when
    the answer was an error that has no better name, and `Unsupported` where there is no virsh.

    :param uri: as for ``virsh --connect``; ``None`` leaves it to virsh.
    :param timeout: seconds that one answer may take; by default `VIRSH_TIMEOUT_S`.
    """

    def __init__(self, uri: str | None = None, *, timeout: float | None = None) -> None:
        self._timeout = VIRSH_TIMEOUT_S if timeout is None else timeout
        self._connect = ["--connect", uri] if uri else []
        self._at = f" at {uri}" if uri else ""

    def xml(self, domain: str, *, secrets: bool = False) -> bytes:
        """The domain's stored XML, which holds for its next start.

        :param secrets: with passwords, which a domain that is defined without them loses.
        :raise NotFound: there is no such domain.
        """
        words = ["dumpxml", "--inactive", *(["--security-info"] if secrets else [])]
        return self._run(*words, "--domain", domain)

    def check(self, domain: str, *, saved_too: bool = False) -> DomainFacts:
        """Refuse a domain that has state of another wiring, or no stored XML.

        :param saved_too: whether one with saved state is not refused.
        :raise CannotPrepare: with what to do first.
        """
        said = self._run("dominfo", "--domain", domain).decode(errors="replace")
        facts = {key.strip(): value.strip() for key, _, value in
                 (line.partition(":") for line in said.splitlines())}  # fmt: skip
        if facts.get("Persistent") == "no":
            raise CannotPrepare(
                f"domain {domain} is transient: libvirt keeps no XML of it for a next start",
                hint="prepare the file that it is created from: linkmgr prepare --xml FILE.xml",
            )
        saved = facts.get("Managed save") == "yes"
        if saved and not saved_too:
            raise CannotPrepare(
                f"domain {domain} has saved state (managedsave), which only a QEMU with the same "
                "wiring can load",
                hint=f"'{shell_command('virsh start', domain)}' and shut it down inside, or drop "
                f"the state: '{shell_command('virsh managedsave-remove', domain)}'",
            )
        return DomainFacts(facts.get("State") not in ("shut off", "crashed", None), saved)

    def check_networks(self, document: Document, which: str | None) -> None:
        """Refuse a NIC whose network of libvirt passes a device of the host through.

        :param which: of the domain's NICs; see `select_nics`.
        :raise CannotPrepare: which NIC.
        """
        for nic in select_nics(document, which):
            name = nic.element.get("source", "network")
            if nic.kind != "network" or not name:
                continue
            try:
                forward = Document(self._run("net-dumpxml", "--network", name)).root.find("forward")
            except LibvirtRefused:
                continue  # it does not exist now: libvirt will say so, if it is still wanted
            if forward and forward.attributes.get("mode") == "hostdev":
                raise CannotPrepare(
                    f"the NIC's network {name} passes a device of the host through",
                    hint="leave this NIC as it is, and name the others with --nic",
                ).about(str(nic))

    def names(self) -> list[str]:
        """The domains that have stored XML, running or not."""
        return self._lines("list", "--all", "--persistent", "--name")

    def saved(self) -> list[str]:
        """The domains with saved state (managedsave)."""
        return self._lines("list", "--all", "--with-managed-save", "--name")

    def saved_xml(self, domain: str, *, secrets: bool = False) -> bytes:
        """The XML in a domain's saved state, with which it is resumed."""
        words = ["--security-info"] if secrets else []
        return self._run("managedsave-dumpxml", *words, "--domain", domain)

    def define_saved(self, domain: str, xml: bytes) -> None:
        """Have a domain's saved state resumed with another XML.

        :raise LibvirtRefused: libvirt does not take it for the same machine.
        """
        words = ("managedsave-define", "--xml", "/dev/stdin", "--domain", domain)
        self._run(*words, xml=xml)

    def default_emulator(self, architecture: str) -> str:
        """The path of the QEMU that libvirt starts where a domain names no other.

        :param architecture: of the domain; empty for the host's.
        """
        words = ["--arch", architecture] if architecture else []
        found = _EMULATOR.search(self._run("domcapabilities", *words))
        return found[1].decode(errors="replace") if found else ""

    def qemu_version(self) -> tuple[int, int]:
        """The version of the QEMU that libvirt starts where a domain names no other.

        :raise LibvirtRefused: it does not say.
        """
        said = self._run("version").decode(errors="replace")
        if (found := _QEMU_HERE.search(said)) is None:
            raise LibvirtRefused(
                "'virsh version' names no QEMU", hint="install QEMU, then restart libvirtd"
            )
        return int(found[1]), int(found[2])

    def with_snapshots(self) -> list[str]:
        """The domains with snapshots."""
        return self._lines("list", "--all", "--with-snapshot", "--name")

    def snapshots(self, domain: str) -> list[str]:
        """The snapshots of a domain that hold its memory, too."""
        return self._lines("snapshot-list", "--active", "--name", "--domain", domain)

    def snapshot_xml(self, domain: str, snapshot: str) -> bytes:
        """A snapshot's XML."""
        return self._run("snapshot-dumpxml", "--snapshotname", snapshot, "--domain", domain)

    def _lines(self, *words: str) -> list[str]:
        said = self._run(*words).decode(errors="replace")
        return [line.strip() for line in said.splitlines() if line.strip()]

    def security_models(self) -> list[str]:
        """The security drivers of the host, by libvirt's names: ``apparmor``, ``dac``."""
        return [each.decode() for each in _SECURITY_MODEL.findall(self._run("capabilities"))]

    def exists(self, domain: str) -> bool:
        """Whether there is a domain of that name."""
        try:
            self._run("domid", "--domain", domain)
        except NotFound:
            return False
        return True

    def define(self, xml: bytes) -> None:
        """Store a domain's XML, if libvirt's schema allows it.

        :raise CannotPrepare: libvirt refused it.
        """
        try:
            text = in_schema_order(Document(xml)).source
            self._run("define", "--validate", "--file", "/dev/stdin", xml=text)
        except LibvirtRefused as error:
            raise CannotPrepare(
                error.what,
                hint="the domain is as it was, and saved state that it has; see libvirt's own log",
            ) from error

    def _names(self) -> list[str]:
        """The domains that there are; none when libvirt does not say."""
        try:
            said = self._run("list", "--all", "--name").decode(errors="replace")
        except LinkmgrError:
            return []
        return [name for name in said.split("\n") if name]

    def _run(self, *words: str, xml: bytes | None = None) -> bytes:
        argv = ["virsh", "--quiet", *self._connect, *words]
        try:
            done = subprocess.run(
                argv, input=xml or b"", capture_output=True, check=False, timeout=self._timeout,
                env=os.environ | {"LC_ALL": "C"},
            )  # fmt: skip
        except FileNotFoundError:
            raise Unsupported(
                "virsh is not installed here, and a domain is asked for by name",
                hint="'apt install libvirt-clients', or give the domain's XML in a file",
            ) from None
        except subprocess.TimeoutExpired:
            raise LibvirtUnreachable(
                f"libvirt did not answer 'virsh {words[0]}' within {self._timeout:g} s",
                hint=_unanswered(words[0]),
                sent=True,
            ) from None
        if done.returncode == 0:
            return done.stdout
        said = " ".join(done.stderr.decode(errors="replace").replace("error:", "").split())
        if _NO_CONNECTION in said:
            text = said.partition(_NO_CONNECTION)[2].strip() or said
            raise LibvirtUnreachable(
                f"there is no connection to libvirt{self._at}: {text}",
                hint="look whether libvirtd (or virtqemud) runs and --connect names it; call as "
                "root",
            )
        if any(each in said for each in _LOST):
            raise LibvirtUnreachable(
                f"the connection to libvirt ended before it answered 'virsh {words[0]}': {said}",
                hint=_unanswered(words[0]),
                sent=True,
            )
        no_domain = "failed to get domain" in said or "Domain not found" in said
        if no_domain and words[0] != "list":
            raise NotFound(
                f"libvirt has no domain {words[-1]}",
                hint=did_you_mean(words[-1], self._names())
                or "see 'virsh list --all'; a file is written with a slash or ends with .xml",
            )
        raise LibvirtRefused(f"'virsh {words[0]}' failed: {said}", hint="see libvirt's own log")


def _unanswered(command: str) -> str:
    """Return what to do after a command of virsh that may have been carried out or not."""
    if command in _CHANGING:
        return f"look at libvirtd, and whether '{command}' was done; then try again"
    return "look at libvirtd, then try again; nothing was changed by this"


def validate(xml: bytes, what: str) -> bool:
    """Check a domain's XML against libvirt's own schema, where ``virt-xml-validate`` is installed.

    :param what: that is checked, for the error.
    :return: whether it could be checked.
    :raise CannotPrepare: it is not valid.
    """
    if shutil.which("virt-xml-validate") is None or shutil.which("xmllint") is None:
        return False
    argv: Sequence[str] = ["virt-xml-validate", "-", "domain"]
    xml = in_schema_order(Document(xml)).source
    try:
        done = subprocess.run(
            argv, input=xml, capture_output=True, check=False, timeout=VIRSH_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise LinkmgrError(
            f"virt-xml-validate did not end within {VIRSH_TIMEOUT_S:g} s", hint="try again"
        ) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        first = next((line for line in said if "error" in line), said[0] if said else "no reason")
        raise CannotPrepare(
            f"{what} does not agree with libvirt's schema: {first[:300]}",
            hint="see all of it with virt-xml-validate(1)",
        )
    return True
