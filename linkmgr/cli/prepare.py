"""``linkmgr prepare``: a libvirt domain whose NICs boot on hubs. Needs no service."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from linkmgr.cli.framework import Command
from linkmgr.cli.output import note, printed_as_json
from linkmgr.cli.params import DomainNicType, DomainType, is_file
from linkmgr.text.untrusted import quoted

if TYPE_CHECKING:
    from linkmgr.libvirt.prepare.rewrite import Rewritten
    from linkmgr.libvirt.prepare.virsh import DomainFacts, Virsh


@dataclass(frozen=True)
class _How:
    """What is to be done to a domain's XML.

    :param models: of the host's security drivers; ``None`` if that host is not known.
    """

    nic: str | None = None
    undo: bool = False
    refresh: bool = False
    monitor: str | None = None
    trusting: bool = False
    models: Collection[str] | None = None


@click.command(
    cls=Command,
    examples=[
        "linkmgr prepare web1",
        "linkmgr prepare web1 --define",
        "linkmgr prepare web1.xml --xml >prepared.xml",
        "linkmgr prepare web1 --undo --define",
        "linkmgr prepare --refresh --all",
    ],
)
@click.argument("domain", type=DomainType(), metavar="DOMAIN.xml|DOMAIN", required=False)
@click.option(
    "--nic",
    type=DomainNicType(),
    metavar="ALIAS|MAC",
    help="One NIC only; by default all of the domain.",
)
@click.option("--undo", is_flag=True, help="Make the NICs again what they were.")
@click.option(
    "--trust-metadata",
    is_flag=True,
    help="With --undo: also where the record of a NIC names scripts or files for libvirt.",
)
@click.option(
    "--refresh",
    is_flag=True,
    help="Prepare anew what an older linkmgr prepared, and nothing else; defines it.",
)
@click.option("--all", "all_domains", is_flag=True, help="With --refresh: all domains.")
@click.option("--define", is_flag=True, help="Hand the result to libvirt, as virsh define does.")
@click.option("--xml", "as_xml", is_flag=True, help="Print the whole XML, not what is different.")
@click.option(
    "--monitor",
    metavar="PATH",
    help="The socket on which the service waits for QEMUs; by default /run/linkmgr/qmp.sock.",
)
@click.option("-c", "--connect", metavar="URI", help="As for virsh: which libvirt.")
@click.pass_context
def prepare(
    ctx: click.Context,
    *,
    domain: str | None,
    nic: str | None,
    undo: bool,
    trust_metadata: bool,
    refresh: bool,
    all_domains: bool,
    define: bool,
    as_xml: bool,
    monitor: str | None,
    connect: str | None,
) -> None:
    """Make a libvirt domain boot with NICs whose cables can change.

    Prints what is different, as diff -u does. What has a slash, ends with .xml or is - (stdin) is a
    file; it is never written. Without --define or --refresh nothing is changed. It holds from the
    domain's next start on: shut it down and start it, a reboot inside is not enough.
    """
    from linkmgr.libvirt.prepare.virsh import Virsh

    if undo and (monitor is not None or refresh):
        other = "--refresh" if refresh else "--monitor"
        raise click.UsageError(f"{other} says nothing together with --undo.")
    if refresh and nic is not None:
        raise click.UsageError("--refresh is for all NICs that are prepared: leave --nic out.")
    if trust_metadata and not undo:
        raise click.UsageError("--trust-metadata says nothing without --undo.")
    if all_domains and (not refresh or domain is not None or as_xml):
        raise click.UsageError("--all is for --refresh alone, without a DOMAIN and without --xml.")
    how = _How(nic, undo, refresh, monitor, trust_metadata)
    virsh = Virsh(connect)
    if all_domains:
        ctx.exit(_refresh_all(virsh, how))
    if domain is None:
        raise click.UsageError("Missing argument 'DOMAIN.xml|DOMAIN'.")
    if is_file(domain):
        said, xml = _file(virsh, domain, how, define=define)
    else:
        said, xml, facts = _domain(virsh, domain, how, define=define or refresh)
        saved = _saved(virsh, domain, facts, defined=said["defined"]) if refresh else None
        said |= {"saved": saved, "notes": [*said["notes"], *([saved] if saved else [])]}
    if printed_as_json(said | ({"xml": xml.decode()} if as_xml else {})):
        return
    for each in said["notes"]:
        note(each)
    if as_xml:
        sys.stdout.flush()
        sys.stdout.buffer.write(xml)
    else:
        click.echo(said["diff"], nl=False)


def _file(virsh: Virsh, path: str, how: _How, *, define: bool) -> tuple[dict[str, Any], bytes]:
    """Rewrite a file's XML; define it, if it is to be. What is said of it, and the XML."""
    from linkmgr.libvirt.xml.document import Document
    from linkmgr.libvirt.xml.interfaces import domain_name

    xml = _read(path)
    if define and not how.undo:
        how = replace(how, models=virsh.security_models())
    made, notes = _rewrite(xml, how, virsh if define else None)
    if define:
        name = domain_name(Document(made.xml))
        if virsh.exists(name):
            virsh.check(name)
        virsh.define(made.xml)
    return _told(path, xml, made, how, notes, defined=define), made.xml


def _domain(
    virsh: Virsh, name: str, how: _How, *, define: bool
) -> tuple[dict[str, Any], bytes, DomainFacts]:
    """As `_file`, of a domain of libvirt. Its saved state stays as it is; see `_saved`."""
    notes = []
    facts = virsh.check(name, saved_too=how.refresh)
    if facts.runs:
        notes.append(f"{name} runs, and keeps its wiring until it is shut down and started again")
    xml = virsh.xml(name)
    if not how.undo:
        how = replace(how, models=virsh.security_models())
    made, more = _rewrite(xml, how, virsh)
    defined = define and made.xml != xml
    if defined:  # once more, with the passwords, which are in nothing that is printed
        again, _ = _rewrite(virsh.xml(name, secrets=True), how, None)
        virsh.define(again.xml)
    return _told(name, xml, made, how, [*notes, *more], defined=defined), made.xml, facts


def _saved(virsh: Virsh, name: str, facts: DomainFacts, *, defined: bool) -> str | None:
    """Have saved state resumed by this QEMU, once the domain itself is defined; what was done.

    :raise LibvirtRefused: with what became of the domain.
    """
    from linkmgr.errors import LibvirtRefused
    from linkmgr.libvirt.prepare.saved_state import refresh_saved

    if not facts.saved:
        return None
    try:
        return refresh_saved(virsh, name)
    except LibvirtRefused as error:
        became = "is prepared anew" if defined else "is as it was"
        raise LibvirtRefused(
            f"{error.what}; the saved state of {name} stays as it was, and the domain itself "
            f"{became}",
            hint=error.hint,
        ) from error


def _refresh_all(virsh: Virsh, how: _How) -> int:
    """Prepare all domains anew that were prepared; say of each what came of it."""
    from linkmgr.cli.exit_codes import Exit
    from linkmgr.errors import LibvirtUnreachable, LinkmgrError

    found: list[dict[str, Any]] = []
    for name in virsh.names():
        one: dict[str, Any] = {"domain": name, "changed": False, "saved": None, "error": None}
        try:
            said, _, facts = _domain(virsh, name, how, define=True)
            one["changed"] = said["changed"]
            one["saved"] = _saved(virsh, name, facts, defined=said["defined"])
        except LibvirtUnreachable:
            raise
        except LinkmgrError as error:
            one["error"] = str(error)
        found.append(one)
    failed = any(each["error"] for each in found)
    if not printed_as_json({"domains": found}):
        for each in found:
            if each["error"]:
                note(f"{each['domain']}: {each['error']}")
            if each["changed"]:
                click.echo(f"{each['domain']}  prepared anew; holds from its next start on")
            if each["saved"]:
                note(each["saved"])
        if not any(each["changed"] or each["saved"] or each["error"] for each in found):
            note("no domain has to be prepared anew")
    return int(Exit.FINDINGS if failed else Exit.OK)


def _told(
    name: str, xml: bytes, made: Rewritten, how: _How, notes: Sequence[str], *, defined: bool
) -> dict[str, Any]:
    """What is said of a domain, as JSON has it."""
    changed, last = made.xml != xml, []
    if not changed:
        if how.refresh and not _is_prepared(xml):
            last = ["it was never prepared, so it cannot be prepared anew; leave --refresh out"]
        else:
            last = ["there is nothing to undo" if how.undo else "it is prepared already"]
    return {
        "changed": changed,
        "defined": defined,
        "nics": made.nics,
        "notes": [*notes, *made.notes, *last],
        "diff": _diff(xml, made.xml, name),
    }


def _is_prepared(xml: bytes) -> bool:
    """Whether a NIC of a domain is prepared."""
    from linkmgr.libvirt.xml.document import Document
    from linkmgr.libvirt.xml.prepared_element import prepared_nics_of

    return bool(prepared_nics_of(Document(xml)))


def _rewrite(xml: bytes, how: _How, virsh: Virsh | None) -> tuple[Rewritten, list[str]]:
    """Rewrite it; tell too if libvirt's schema could not be asked.

    :param virsh: is asked about the networks that its NICs are on.
    """
    from linkmgr.libvirt.prepare.rewrite import prepare, refresh, undo
    from linkmgr.libvirt.prepare.virsh import validate
    from linkmgr.libvirt.xml.document import Document

    document = Document(xml)  # first of all: what is no safe XML is shown to nobody
    checked = validate(xml, "the domain's XML")
    if how.undo:
        made = undo(xml, nic=how.nic, trust_metadata=how.trusting)
    elif how.refresh:
        made = refresh(xml, monitor=how.monitor, models=how.models)
    else:
        if virsh is not None:
            virsh.check_networks(document, how.nic)
        made = prepare(xml, nic=how.nic, monitor=how.monitor, models=how.models)
    if made.xml != xml:
        validate(made.xml, "what came of it")
    if checked:
        return made, []
    return made, [
        "virt-xml-validate is not installed, so libvirt's schema was not asked "
        "('apt install libvirt-clients libxml2-utils')"
    ]


def _read(path: str) -> bytes:
    from linkmgr.errors import BadOption
    from linkmgr.libvirt.xml.document import MAX_BYTES

    try:
        if path == "-":
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadOption(
            f"{quoted(path, 1000)} cannot be read: {error.strerror}",
            hint="give a file with the XML of a domain",
        ) from error


def _diff(before: bytes, after: bytes, name: str) -> str:
    # Only \n ends a line here: what else Python takes for the end of one can stand in an attribute.
    old, new = (
        [line + "\n" for line in text.decode(errors="replace").split("\n")]
        for text in (before, after)
    )
    lines = difflib.unified_diff(old, new, f"{name} (as it is)", f"{name} (changed)")
    return "".join(lines)
