"""``linkmgr prepare``: a libvirt domain whose NICs boot on hubs. Needs no service."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from linkmgr.cli.base import Verb
from linkmgr.cli.show import note, printed_as_json
from linkmgr.cli.words import DomainNicType, DomainType, is_file
from linkmgr.untrusted import quoted

if TYPE_CHECKING:
    from linkmgr.libvirt.prepare import Rewritten
    from linkmgr.libvirt.virsh import Virsh


@click.command(
    cls=Verb,
    examples=[
        "linkmgr prepare web1",
        "linkmgr prepare web1 --define",
        "linkmgr prepare web1.xml --xml >prepared.xml",
        "linkmgr prepare web1 --undo --define",
    ],
)
@click.argument("domain", type=DomainType(), metavar="DOMAIN.xml|DOMAIN")
@click.option(
    "--nic",
    type=DomainNicType(),
    metavar="ALIAS|MAC",
    help="One NIC only; by default all of the domain.",
)
@click.option("--undo", is_flag=True, help="Make the NICs again what they were.")
@click.option("--define", is_flag=True, help="Hand the result to libvirt, as virsh define does.")
@click.option("--xml", "as_xml", is_flag=True, help="Print the whole XML, not what is different.")
@click.option(
    "--monitor",
    metavar="PATH",
    help="The socket on which the service waits for QEMUs; by default /run/linkmgr/qmp.sock.",
)
@click.option("-c", "--connect", metavar="URI", help="As for virsh: which libvirt.")
def prepare(
    domain: str,
    *,
    nic: str | None,
    undo: bool,
    define: bool,
    as_xml: bool,
    monitor: str | None,
    connect: str | None,
) -> None:
    """Make a libvirt domain boot with NICs whose cables can change.

    Prints what is different, as diff -u does. What has a slash, ends with .xml or is - (stdin) is a
    file; it is never written. Without --define nothing is changed. It holds from the domain's next
    start on: shut it down and start it, a reboot inside is not enough.
    """
    from linkmgr.libvirt.virsh import Virsh

    if undo and monitor is not None:
        raise click.UsageError("--monitor says nothing together with --undo.")
    virsh = Virsh(connect)
    from_file = is_file(domain)
    notes: list[str] = []
    if from_file:
        xml = _read(domain)
    else:
        runs = virsh.check(domain)
        xml = virsh.xml(domain)
        if runs:
            notes.append(
                f"{domain} runs, and keeps its wiring until it is shut down and started again"
            )
    asked = virsh if define or not from_file else None
    made, checked = _rewrite(xml, nic, undo, monitor, asked)
    if not checked:
        notes.append(
            "virt-xml-validate is not installed, so libvirt's schema was not asked "
            "('apt install libvirt-clients libxml2-utils')"
        )
    changed = made.xml != xml
    defined = define and (changed or from_file)
    if defined:
        _define(virsh, domain, from_file, made, (nic, undo, monitor))
    notes += made.notes
    if not changed:
        notes.append("there is nothing to undo" if undo else "it is prepared already")
    diff = _diff(xml, made.xml, domain)
    said = {"changed": changed, "defined": defined, "nics": made.nics, "notes": notes, "diff": diff}
    if printed_as_json(said | ({"xml": made.xml.decode()} if as_xml else {})):
        return
    for each in notes:
        note(each)
    if as_xml:
        sys.stdout.flush()
        sys.stdout.buffer.write(made.xml)
    else:
        click.echo(diff, nl=False)


def _rewrite(
    xml: bytes, nic: str | None, undo: bool, monitor: str | None, virsh: Virsh | None
) -> tuple[Rewritten, bool]:
    """Rewrite it; tell too whether libvirt's schema was asked before and after."""
    from linkmgr.libvirt.domain_xml import Document
    from linkmgr.libvirt.prepare import prepare as rewrite
    from linkmgr.libvirt.prepare import undo as rewrite_back
    from linkmgr.libvirt.virsh import validate

    document = Document(xml)  # first of all: what is no safe XML is shown to nobody
    checked = validate(xml, "the domain's XML")
    if undo:
        made = rewrite_back(xml, nic=nic)
    else:
        if virsh is not None:
            virsh.check_networks(document, nic)
        made = rewrite(xml, nic=nic, monitor=monitor)
    if made.xml != xml:
        validate(made.xml, "what came of it")
    return made, checked


def _define(
    virsh: Virsh,
    domain: str,
    from_file: bool,
    made: Rewritten,
    how: tuple[str | None, bool, str | None],
) -> None:
    from linkmgr.libvirt.domain_xml import Document
    from linkmgr.libvirt.nics import domain_name

    if from_file:
        name = domain_name(Document(made.xml))
        if virsh.exists(name):
            virsh.check(name)
        virsh.define(made.xml)
        return
    # Once more, with the passwords, which are in nothing that is printed.
    again, _ = _rewrite(virsh.xml(domain, secrets=True), *how, None)
    virsh.define(again.xml)


def _read(path: str) -> bytes:
    from linkmgr.errors import BadOption
    from linkmgr.libvirt.domain_xml import MAX_BYTES

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
