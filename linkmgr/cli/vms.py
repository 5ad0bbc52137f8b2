"""``vm add``, ``vm remove`` and ``vm list``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from linkmgr.cli.framework import CommandGroup
from linkmgr.cli.output import age, natural, printed_as_json, table
from linkmgr.cli.params import MonitorType, VmType
from linkmgr.cli.runner import removal, run_with_client

if TYPE_CHECKING:
    from linkmgr.client import Client


@click.group(cls=CommandGroup)
def vm() -> None:
    """Guests whose NICs linkmgr takes care of."""


@vm.command(
    examples=["linkmgr vm add web1 /run/web1.qmp", "linkmgr vm add web1 libvirt:web1"],
)
@click.argument("name")
@click.argument("qmp", type=MonitorType(), metavar="QMP-SOCKET|libvirt:DOMAIN")
def add(name: str, qmp: str) -> None:
    """Take charge of a running guest's NICs. Unplugged ones lose their carrier at once.

    QMP-SOCKET is what QEMU was started with: -qmp unix:QMP-SOCKET,server=on,wait=off
    For a domain of libvirt that has no such socket it is libvirt:DOMAIN. A guest that was
    prepared is there by itself.
    """
    nics = run_with_client(lambda client: client.add_vm(name, qmp), f"adding {name}")
    if printed_as_json({"nics": nics}):
        return
    if not nics:
        click.echo(f"{name}  has no NICs")
    for nic in nics:
        click.echo(f"{nic.ref}  {nic.describe()}")


@vm.command(examples=["linkmgr vm remove web1"])
@click.argument("name", type=VmType())
def remove(name: str) -> None:
    """Unplug all NICs of a guest and forget it."""

    async def names(client: Client) -> list[str]:
        return [each.name for each in await client.vms()]

    changed = run_with_client(
        removal(lambda client: client.remove_vm(name), name, names), f"removing {name}"
    )
    if not printed_as_json({"changed": changed}):
        click.echo(f"{name}  removed" if changed else f"{name}  was not known")


@vm.command(name="list", examples=["linkmgr vm list"])
def list_() -> None:
    """List the guests."""
    found = run_with_client(lambda client: client.vms(), "asking every guest")
    if printed_as_json({"vms": found}):
        return
    now = datetime.now(UTC)
    table(
        ["VM", "STATE", "FOR", "NICS", "RUNS", "BY", "MONITOR"],
        [
            [
                each.name,
                each.state,
                age(each.since, now),
                str(len(each.nics)),
                {True: "yes", False: "no", None: "?"}[each.running],
                each.transport,
                each.qmp,
            ]
            for each in sorted(found, key=lambda each: natural(each.name))
        ],
        none="No VMs.",
    )
