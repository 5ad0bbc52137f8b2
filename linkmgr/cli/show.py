"""``show``: one VM, NIC, network, port or domain, with all that is known of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from linkmgr.cli.framework import CommandGroup
from linkmgr.cli.output import age, aligned, natural, pairs, printable, printed_as_json, where
from linkmgr.cli.params import DomainType, NetworkType, NicType, PortType, VmType
from linkmgr.cli.runner import run_with_client

if TYPE_CHECKING:
    from linkmgr.client import Client
    from linkmgr.model import Connection, DomainInfo, Finding, NetworkInfo, Nic, Port, VmInfo

CHECK_TIMEOUT_S = 3.0  #: for which the check may hold up what is known already

Fact = tuple[str, str | None]


@click.group(cls=CommandGroup)
def show() -> None:
    """Show one object, with all that is known of it."""


@show.command(name="vm", examples=["linkmgr show vm web1"])
@click.argument("name", type=VmType(), metavar="VM")
def show_vm(name: str) -> None:
    """Show a guest, its monitor and its NICs."""
    vm, nics, findings = run_with_client(lambda client: _vm(client, name), f"looking at {name}")
    if printed_as_json({"vm": vm, "nics": nics, "findings": findings}):
        return
    now = datetime.now(UTC)
    runs = {True: "yes", False: "no", None: "not known"}[vm.running]
    facts: list[Fact] = [
        ("VM", vm.name), ("State", f"{vm.state} for {age(vm.since, now)}"), ("Runs", runs),
        ("Reached by", vm.transport), ("Monitor", vm.qmp),
    ]  # fmt: skip
    facts += [("NIC", f"{each.ref}  {each.mac}  {each.describe()}") for each in nics]
    _print([*facts, *_found(findings)])


async def _vm(client: Client, name: str) -> tuple[VmInfo, list[Nic], list[Finding] | None]:
    import asyncio

    from linkmgr.errors import UnknownVm
    from linkmgr.text.suggest import hint_for_unknown

    vms, nics, findings = await asyncio.gather(client.vms(), client.nics(), _findings(client))
    vm = next((each for each in vms if each.name == name), None)
    if vm is None:
        there = [each.name for each in vms]
        hint = hint_for_unknown(name, there, "the VMs are", "add it first")
        raise UnknownVm(f"there is no VM {name}", hint=hint)
    mine = [each for each in nics if each.ref.vm == name]
    about = {name, *(str(each.ref) for each in mine)}
    mine.sort(key=lambda each: natural(each.ref.alias))
    return vm, mine, findings and [each for each in findings if each.subject in about]


@show.command(
    name="nic", examples=["linkmgr show nic web1/net0", "linkmgr show nic 52:54:00:12:34:56"]
)
@click.argument("name", type=NicType(), metavar="NIC")
def show_nic(name: str) -> None:
    """Show a NIC, its cable, and what its domain asks for."""
    nic, wanted, findings = run_with_client(lambda client: _nic(client, name), f"looking at {name}")
    if printed_as_json({"nic": nic, "wanted": wanted, "findings": findings}):
        return
    now, here = datetime.now(UTC), nic.connection
    facts: list[Fact] = [
        ("NIC", str(nic.ref)), ("State", f"{nic.state} for {age(nic.since, now)}"),
        ("Plugged into", where(nic) if here else None),
        ("Device", here.device if here else None),
        ("Options", pairs({**here.port.network.options, **here.port.options}) if here else None),
        ("Link", f"{nic.link or 'not known'}, wanted {nic.wanted_link}"),
        ("Address", nic.mac), ("Model", nic.model), ("MTU", f"{nic.mtu} bytes"),
        ("Wiring", nic.wiring or "fixed: its cable cannot change"), ("Its domain asks for", wanted),
    ]  # fmt: skip
    _print([*facts, *_found(findings)])


async def _nic(client: Client, name: str) -> tuple[Nic, str | None, list[Finding] | None]:
    import asyncio

    from linkmgr.errors import LinkmgrError

    nic, findings = await asyncio.gather(client.nic(name), _findings(client))
    wanted = None
    with contextlib.suppress(LinkmgrError):  # libvirt is away, or not in use
        wanted = next(
            (
                each.wanted
                for domain in await client.domains() if domain.name == nic.ref.vm
                for each in domain.nics if each.alias == nic.ref.alias
            ),
            None,
        )  # fmt: skip
    return nic, wanted, findings and [each for each in findings if each.subject == str(nic.ref)]


@show.command(name="network", examples=["linkmgr show network blue"])
@click.argument("name", type=NetworkType(), metavar="NETWORK")
def show_network(name: str) -> None:
    """Show a network, its ports, the NICs on it, and what it lacks."""
    info: NetworkInfo = run_with_client(lambda client: client.network(name), f"looking at {name}")
    if printed_as_json(info):
        return
    made = info.network
    facts: list[Fact] = [
        ("Network", made.name), ("Driver", made.driver), ("Options", pairs(made.options)),
        ("Drift", made.drift), ("Missing", info.missing),
    ]  # fmt: skip
    facts += [("Port", f"{each}  {pairs(each.options)}".rstrip()) for each in info.ports]
    _print([*facts, *(("NIC", str(each)) for each in info.nics)])


@show.command(name="port", examples=["linkmgr show port blue:p7"])
@click.argument("name", type=PortType(), metavar="NETWORK:PORT")
def show_port(name: str) -> None:
    """Show a port and the NIC on it."""
    port, connection = run_with_client(lambda client: _port(client, name), f"looking at {name}")
    if printed_as_json({"port": port, "connection": connection}):
        return
    _print([
        ("Port", str(port)), ("Options", pairs(port.options)),
        ("Network", f"{port.network}, {port.network.driver} {pairs(port.network.options)}"),
        ("NIC", str(connection.nic) if connection else "none"),
        ("Endpoint", str(connection.endpoint) if connection else None),
        ("Device", connection.device if connection else None),
    ])  # fmt: skip


async def _port(client: Client, name: str) -> tuple[Port, Connection | None]:
    import asyncio

    from linkmgr.errors import UnknownPort
    from linkmgr.text.suggest import hint_for_unknown

    network, _, alone = name.partition(":")
    ports, connections = await asyncio.gather(client.ports(network), client.connections())
    port = next((each for each in ports if each.name == alone), None)
    if port is None:
        hint = hint_for_unknown(
            alone, [each.name for each in ports], "its ports are", "create it first"
        )
        raise UnknownPort(f"network {network} has no port {alone}", hint=hint)
    return port, next((each for each in connections if str(each.port) == name), None)


@show.command(name="domain", examples=["linkmgr show domain web1"])
@click.argument("name", type=DomainType(), metavar="DOMAIN")
def show_domain(name: str) -> None:
    """Show a guest of libvirt, and what would prepare it."""
    domain = run_with_client(lambda client: _domain(client, name), f"looking at {name}")
    if printed_as_json(domain):
        return
    facts: list[Fact] = [
        ("Domain", domain.name), ("UUID", domain.uuid), ("State", domain.state),
        ("Reached by", domain.transport or "nothing: linkmgr has no connection to its QEMU"),
        ("Prepared", "yes" if domain.prepared else "no"), ("To do", domain.command),
    ]  # fmt: skip
    for each in domain.nics:
        where_to = each.network or (f"wants: {each.wanted}" if each.wanted else "no cable")
        words = (f"{domain.name}/{each.alias or each.mac}", each.mac, each.model, where_to)
        facts.append(("NIC", "  ".join(words)))
    _print(facts)


async def _domain(client: Client, name: str) -> DomainInfo:
    from linkmgr.errors import NotFound
    from linkmgr.text.suggest import hint_for_unknown

    domains = await client.domains()
    for domain in domains:
        if name in (domain.name, domain.uuid):
            return domain
    there = [each.name for each in domains]
    hint = hint_for_unknown(name, there, "the domains are")
    raise NotFound(f"libvirt has no domain {printable(name)}", hint=hint)


async def _findings(client: Client) -> list[Finding] | None:
    import asyncio

    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await client.check()
    except TimeoutError:
        return None


def _found(findings: Sequence[Finding] | None) -> list[Fact]:
    if findings is None:
        return [("Findings", "not known: the check takes long")]
    found = [("Finding", f"{each.subject}: {each.what}. To do: {each.hint}") for each in findings]
    return [*found] or [("Findings", "none")]


def _print(facts: Sequence[Fact]) -> None:
    """Print what is known, one fact a line; what there is not is left out."""
    rows = [(f"{name}:", printable(text)) for name, text in facts if text]
    for line in aligned(rows):
        click.echo(line)
