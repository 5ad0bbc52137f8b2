"""``network`` and ``port``: create, delete, list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from linkmgr.cli.framework import CommandGroup
from linkmgr.cli.output import natural, note, pairs, printed_as_json, table
from linkmgr.cli.params import Choice, NetworkType, OptionType, options_of
from linkmgr.cli.runner import removal, run_with_client

if TYPE_CHECKING:
    from linkmgr.client import Client
    from linkmgr.model import Network, Port

OPTIONS = click.argument("options", nargs=-1, type=OptionType(), metavar="[KEY=VALUE]...")


@click.group(cls=CommandGroup)
def network() -> None:
    """Named layer-2 domains that NICs can be plugged into."""


@network.command(
    name="create",
    examples=[
        "linkmgr network create blue bridge bridge=br0 create=true mtu=1400",
        "linkmgr network create green direct parent=eth1 mode=bridge",
    ],
)
@click.argument("name")
@click.argument("driver")
@OPTIONS
@click.option(
    "--drift",
    type=Choice(["repair", "report"]),
    default="repair",
    show_default=True,
    help="What is done when a cable into it is found broken.",
)
def create_network(
    name: str, driver: str, options: tuple[tuple[str, object], ...], drift: str
) -> None:
    """Describe a network. Touches nothing on the host.

    A VALUE is true, false, a whole number, else text; in double quotes it is always text.
    """
    given = options_of(options)

    async def create(client: Client) -> tuple[Network, str | None]:
        made = await client.create_network(name, driver, drift=drift, **given)
        return made, await _missing(client, name)

    made, missing = run_with_client(create, f"creating network {name}")
    if missing:
        note(missing)
    if not printed_as_json(made):
        click.echo(f"network {made}  {made.driver} {pairs(made.options)}".rstrip())


async def _missing(client: Client, network: str) -> str | None:
    """What a plug into a network would fail for now, if the service says so."""
    from linkmgr.errors import LinkmgrError

    try:
        return (await client.network(network)).missing
    except LinkmgrError:  # an older service does not, and the network is made
        return None


@network.command(name="delete", examples=["linkmgr network delete blue"])
@click.argument("name", type=NetworkType())
def delete_network(name: str) -> None:
    """Forget a network that no NIC is plugged into."""

    async def names(client: Client) -> list[str]:
        return [each.name for each in await client.networks()]

    delete = removal(lambda client: client.delete_network(name), name, names)
    changed = run_with_client(delete, f"deleting network {name}")
    if not printed_as_json({"changed": changed}):
        click.echo(f"network {name}  {'deleted' if changed else 'was not there'}")


@network.command(name="list", examples=["linkmgr network list"])
def list_networks() -> None:
    """List the networks."""
    found = run_with_client(lambda client: client.networks(), "asking")
    if not printed_as_json({"networks": found}):
        found.sort(key=lambda each: natural(each.name))
        table(
            ["NETWORK", "DRIVER", "DRIFT", "OPTIONS"],
            [[each.name, each.driver, each.drift, pairs(each.options)] for each in found],
            none="No networks.",
        )


@click.group(cls=CommandGroup)
def port() -> None:
    """Sockets on a network with options of their own."""


@port.command(name="create", examples=["linkmgr port create blue p7 isolated=true"])
@click.argument("network", type=NetworkType())
@click.argument("name")
@OPTIONS
def create_port(network: str, name: str, options: tuple[tuple[str, object], ...]) -> None:
    """Describe a port. Touches nothing on the host."""
    made = run_with_client(
        lambda client: client.create_port(network, name, **options_of(options)),
        f"creating port {network}:{name}",
    )
    if not printed_as_json(made):
        click.echo(f"port {made}  {pairs(made.options)}".rstrip())


@port.command(name="delete", examples=["linkmgr port delete blue p7"])
@click.argument("network", type=NetworkType())
@click.argument("name")
def delete_port(network: str, name: str) -> None:
    """Forget a port that no NIC is plugged into."""

    async def names(client: Client) -> list[str]:
        return [str(each) for each in await _ports(client, None)]

    whole = f"{network}:{name}"
    delete = removal(lambda client: client.delete_port(network, name), whole, names)
    changed = run_with_client(delete, f"deleting {whole}")
    if not printed_as_json({"changed": changed}):
        click.echo(f"port {whole}  {'deleted' if changed else 'was not there'}")


@port.command(name="list", examples=["linkmgr port list", "linkmgr port list blue"])
@click.argument("network", type=NetworkType(), required=False)
def list_ports(network: str | None) -> None:
    """List the ports that were created, on one network or on all."""
    found = run_with_client(lambda client: _ports(client, network), "asking")
    if not printed_as_json({"ports": found}):
        found.sort(key=lambda each: natural(str(each)))
        rows = [[str(each), pairs(each.options)] for each in found]
        table(["PORT", "OPTIONS"], rows, none="No ports.")


async def _ports(client: Client, network: str | None) -> list[Port]:
    import asyncio

    names = [network] if network else [each.name for each in await client.networks()]
    return [port for ports in await asyncio.gather(*map(client.ports, names)) for port in ports]
