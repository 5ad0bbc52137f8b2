"""``linkmgr status``: one line per NIC, troubles first, each with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from linkmgr.cli.framework import Command
from linkmgr.cli.output import age, aligned, natural, note, printable, printed_as_json, where
from linkmgr.cli.runner import run_with_client
from linkmgr.text.untrusted import shell_command, shell_word

if TYPE_CHECKING:
    from linkmgr.client import Client
    from linkmgr.model import Finding, Nic, VmInfo

CHECK_TIMEOUT_S = 3.0  #: for which the check may hold up the status


@dataclass(frozen=True)
class StatusLine:
    """A line of the status: one NIC, or one trouble.

    :param todo: what to do about it; ``None`` when all is well.
    """

    subject: str
    text: str
    todo: str | None = None


@click.command(cls=Command, examples=["linkmgr status", "linkmgr status --json"])
def status() -> None:
    """Show what every NIC is plugged into, troubles first."""
    vms, nics, findings, why = run_with_client(_look, "asking every guest")
    if findings is None:
        note(f"{why}; only states are shown")
    found = findings or []
    if printed_as_json({"vms": vms, "nics": nics, "findings": findings}):
        return
    if not vms:
        click.echo(
            "No VM is known. A guest of libvirt is, once it is prepared and started: 'linkmgr "
            "prepare DOMAIN --define'.\nAdd any other with 'linkmgr vm add NAME QMP-SOCKET'."
        )
    for text in report(lines(vms, nics, found, datetime.now(UTC))):
        click.echo(text)


async def _look(client: Client) -> tuple[list[VmInfo], list[Nic], list[Finding] | None, str]:
    """VMs, NICs, what the check found, and why that is not known."""
    import asyncio

    from linkmgr.errors import HostError, MonitorError

    async def check() -> tuple[list[Finding] | None, str]:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await client.check(), ""
        except TimeoutError:
            return None, "the check takes long"
        except (HostError, MonitorError) as error:
            return None, f"the check failed: {error.what}"

    vms, nics, (findings, why) = await asyncio.gather(client.vms(), client.nics(), check())
    return vms, nics, findings, why


def lines(
    vms: Sequence[VmInfo], nics: Sequence[Nic], findings: Sequence[Finding], now: datetime
) -> list[StatusLine]:
    """What is to be said: troubles first, then by name."""
    ways = {vm.name: _way(vm) for vm in vms}
    said = [_by_way_of(ways.get(nic.ref.vm, ""), _of_nic(nic, now)) for nic in nics]
    with_nics = {nic.ref.vm for nic in nics}
    said += [
        _by_way_of(_way(vm), StatusLine(vm.name, f"a guest without NICs, for {age(vm.since, now)}"))
        for vm in vms
        if vm.name not in with_nics
    ]
    troubled = {line.subject for line in said if line.todo}
    said += [
        StatusLine(each.subject, each.what, each.hint)
        for each in findings
        if not (each.code == "unknown" and each.subject in troubled)  # its line says so already
    ]
    return sorted(said, key=lambda line: (line.todo is None, natural(line.subject)))


def report(said: Sequence[StatusLine]) -> list[str]:
    """The lines as text; what to do about a trouble stands under it."""
    texts: list[str] = []
    rows = [(printable(line.subject), printable(line.text)) for line in said]
    for line, text in zip(said, aligned(rows) if rows else [], strict=True):
        if line.todo is None:
            texts.append(f"  {text}")
        else:
            texts += [click.style(f"! {text}", fg="red"), f"    to do: {printable(line.todo)}"]
    return texts


def _way(vm: VmInfo) -> str:
    """How its QEMU is spoken to, if not over a socket of its own."""
    from linkmgr.model import MonitorTransport

    match vm.transport:
        case MonitorTransport.SOCKET:
            return ""
        case MonitorTransport.INBOUND:
            return " (inbound monitor)"
        case MonitorTransport.LIBVIRT:
            return " (through libvirt)"
    return f" ({vm.transport})"  # of a newer service


def _by_way_of(way: str, line: StatusLine) -> StatusLine:
    return replace(line, text=line.text + way)


def _of_nic(nic: Nic, now: datetime) -> StatusLine:  # noqa: PLR0911 - one for each state
    from linkmgr.model import NicState

    subject, vm, since = str(nic.ref), nic.ref.vm, age(nic.since, now)
    match nic.state:
        case NicState.PLUGGED:
            connected = age(nic.connection.since, now) if nic.connection else since
            text = f"plugged into {where(nic)} for {connected}, link {nic.link or 'unknown'}"
            if nic.link is None or nic.link == nic.wanted_link:
                return StatusLine(subject, text)
            return StatusLine(
                subject,
                f"{text}, but should be {nic.wanted_link}",
                f"run 'linkmgr link {shell_word(subject)} {nic.wanted_link}'",
            )
        case NicState.UNPLUGGED:
            return StatusLine(subject, f"unplugged for {since}")
        case NicState.FOREIGN:
            return StatusLine(
                subject,
                f"on a cable that linkmgr did not plug, for {since}",
                f"move it with 'linkmgr plug {shell_word(subject)} NETWORK', or take it off with "
                f"'linkmgr unplug {shell_word(subject)}'",
            )
        case NicState.UNMANAGED:
            return StatusLine(subject, "its cable cannot change: 'linkmgr plug' says why")
        case NicState.UNKNOWN:
            cable = f"; its cable leads into {where(nic)}" if nic.connection else ""
            return StatusLine(
                subject,
                f"unknown: QEMU has not answered for {since}{cable}",
                f"see whether the guest {vm} is stopped or its host overloaded",
            )
        case NicState.GONE:
            return StatusLine(
                subject,
                f"gone: its guest ended {since} ago",
                "start the guest and add it again, or forget it with "
                f"'{shell_command('linkmgr vm remove', vm)}'",
            )
    return StatusLine(subject, nic.describe())  # of a newer service
