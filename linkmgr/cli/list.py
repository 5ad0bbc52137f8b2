"""``nics`` and ``connections``: everything that is known, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from linkmgr.cli.framework import Command
from linkmgr.cli.output import age, natural, note, printed_as_json, table
from linkmgr.cli.runner import run_with_client

if TYPE_CHECKING:
    from linkmgr.client import Client
    from linkmgr.errors import LibvirtError
    from linkmgr.model import DomainInfo, DomainNicInfo, Nic, VmInfo

#: Columns that a narrow terminal can do without.
OPTIONAL_COLUMNS = ("WIRING", "MTU", "MODEL", "BY", "DEVICE")
UNCUT_COLUMNS = ("MAC", "TO DO")  #: columns to be copied from


@click.command(cls=Command, examples=["linkmgr nics", "linkmgr nics --json"])
def nics() -> None:
    """List all NICs, those of libvirt's other guests too."""
    found, vms, domains = run_with_client(_look, "asking every guest")
    if isinstance(domains, Exception):
        note(f"libvirt's other guests are not listed: {domains}")
    others = None if isinstance(domains, Exception) else domains
    if printed_as_json({"nics": found, "domains": others}):
        return
    heads = ["NIC", "STATE", "LINK", "PORT", "DEVICE", "MAC", "MTU", "MODEL", "WIRING", "BY", "FOR"]
    rows = rows_of(found, vms, others or [], datetime.now(UTC))
    if any(row[-1] for row in rows):
        table([*heads, "TO DO"], rows, minor=OPTIONAL_COLUMNS, whole=UNCUT_COLUMNS)
    else:
        table(
            heads,
            [row[:-1] for row in rows],
            none="No NICs.",
            minor=OPTIONAL_COLUMNS,
            whole=UNCUT_COLUMNS,
        )


async def _look(
    client: Client,
) -> tuple[list[Nic], list[VmInfo], list[DomainInfo] | LibvirtError]:
    import asyncio

    from linkmgr.errors import LibvirtError

    async def domains() -> list[DomainInfo] | LibvirtError:
        try:
            return await client.domains()
        except LibvirtError as error:  # what runs is known without it
            return error

    return await asyncio.gather(client.nics(), client.vms(), domains())


def rows_of(
    nics: Sequence[Nic], vms: Sequence[VmInfo], domains: Sequence[DomainInfo], now: datetime
) -> list[list[str]]:
    """A row for each NIC by name; the last column is what to do about it, or empty."""
    ways = {vm.name: str(vm.transport) for vm in vms}
    rows = [
        [
            str(nic.ref), nic.state, nic.link or "?",
            str(nic.connection.port) if nic.connection else "-",
            (nic.connection and nic.connection.device) or "-",
            nic.mac, str(nic.mtu), nic.model, nic.wiring or "fixed",
            ways.get(nic.ref.vm, "?"), age(nic.since, now), "",
        ]
        for nic in nics
    ]  # fmt: skip
    known = {row[0]: row for row in rows}
    for domain in domains:
        for each in domain.nics:
            name = f"{domain.name}/{each.alias or each.mac or '?'}"
            todo = _to_do(domain, each)
            if name in known:
                known[name][-1] = todo
                continue
            rows.append(
                [
                    name, domain.state, each.link or "-",
                    each.network or _wanted(domain, each) or "-",
                    each.device or "-", each.mac, "-", each.model,
                    "hub" if each.prepared else "fixed", domain.transport or "-", "-", todo,
                ]
            )  # fmt: skip
    return sorted(rows, key=lambda row: natural(row[0]))


def _to_do(domain: DomainInfo, nic: DomainNicInfo) -> str:
    """What makes the NIC one whose cable can change, also at its next start; or nothing."""
    if nic.prepared:
        return domain.command or "" if domain.prepared else ""
    if nic.restart:
        return f"shut {domain.name} down and start it"
    if domain.command is None and not _is_name(domain.name) and domain.state != "shut off":
        return "shut it down and look again: its name must be changed first"
    return domain.command or ""


def _is_name(name: str) -> bool:
    from linkmgr.errors import BadName
    from linkmgr.model import check_name

    try:
        check_name("VM", name)
    except BadName:
        return False
    return True


def _wanted(domain: DomainInfo, nic: DomainNicInfo) -> str:
    """What the domain's XML asks for, which is not so now: ``at its start: blue``."""
    if not nic.wanted:
        return ""
    when = "at its start" if domain.state == "shut off" else "desired"
    return f"{when}: {nic.wanted.removeprefix('plugged into ').removesuffix(', link up')}"


@click.command(cls=Command, examples=["linkmgr connections"])
def connections() -> None:
    """List the NICs that are plugged, and into what."""
    found = run_with_client(lambda client: client.connections(), "asking")
    if printed_as_json({"connections": found}):
        return
    now = datetime.now(UTC)
    table(
        ["NIC", "PORT", "ENDPOINT", "DEVICE", "FOR"],
        [
            [
                str(each.nic), str(each.port), str(each.endpoint), each.device or "-",
                age(each.since, now),
            ]
            for each in sorted(found, key=lambda each: natural(str(each.nic)))
        ],
        none="No NIC is plugged.",
    )  # fmt: skip
