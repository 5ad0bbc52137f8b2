"""The words on the command line: what they may be, and how the shell completes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from linkmgr.cli.framework import Settings
from linkmgr.errors import BadName

if TYPE_CHECKING:
    from linkmgr.client import Client
    from linkmgr.model import DomainInfo, NicRef

    _Type = click.ParamType[Any]
    _Choice = click.Choice[str]
else:
    _Type = click.ParamType  # older releases of click have no parameter here
    _Choice = click.Choice

COMPLETION_TIMEOUT_S = 1.0  #: for which the shell waits when names are completed

_LIBVIRT = "libvirt:"  # before the domain whose QEMU is reached through libvirt

Names = Callable[["Client"], Awaitable[Iterable[str]]]


class _Named(_Type):
    """A name that the service can complete."""

    names: Names

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - click passes it
        incomplete: str,
    ) -> list[CompletionItem]:
        """The names that the service knows; none when it does not answer at once."""
        return [
            CompletionItem(name)
            for name in _known(ctx.ensure_object(Settings).socket, type(self).names)
            if name.startswith(incomplete)
        ]


async def _nic_names(client: Client) -> list[str]:
    import asyncio

    nics, domains = await asyncio.gather(client.nics(), _domains(client))
    stored = (f"{each.name}/{nic.alias}" for each in domains for nic in each.nics if nic.alias)
    return sorted({*(str(nic.ref) for nic in nics), *stored})


async def _domain_names(client: Client) -> list[str]:
    return [domain.name for domain in await client.domains()]


async def _domains(client: Client) -> list[DomainInfo]:
    from linkmgr.errors import LinkmgrError

    try:
        return await client.domains()
    except LinkmgrError:  # libvirt is away, or the service is an older one
        return []


async def _vm_names(client: Client) -> list[str]:
    return sorted(vm.name for vm in await client.vms())


async def _network_names(client: Client) -> list[str]:
    return sorted(network.name for network in await client.networks())


async def _target_names(client: Client) -> list[str]:
    import asyncio

    networks = await _network_names(client)
    ports = await asyncio.gather(*(client.ports(name) for name in networks))
    return sorted(networks + [str(port) for each in ports for port in each])


async def _passthrough_names(client: Client) -> list[str]:
    """The running domains that are no VM yet, as `vm add` takes them."""
    import asyncio

    vms, domains = await asyncio.gather(client.vms(), _domains(client))
    taken = {each for vm in vms for each in (vm.name, vm.qmp)}
    return [
        f"{_LIBVIRT}{each.name}"
        for each in domains
        if each.state not in ("shut off", "crashed")
        and taken.isdisjoint((each.name, f"{_LIBVIRT}{each.uuid}"))
    ]


class Choice(_Choice):
    """One of a few words; a word that is close to one of them is told."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read it."""
        try:
            return str(super().convert(value, param, ctx))
        except click.BadParameter as error:
            from linkmgr.text.suggest import did_you_mean

            said = did_you_mean(str(value), [str(each) for each in self.choices])
            if not said:
                raise
            self.fail(f"{error.message} {said[0].upper()}{said[1:]}", param, ctx)


class NicType(_Named):
    """A NIC by any of its names, which the service resolves."""

    name = "nic"
    names = staticmethod(_nic_names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check that it can name a NIC."""
        from linkmgr.naming import NicName

        try:
            return str(NicName.parse(value))
        except BadName as error:
            raise click.BadParameter(f"{error}.", ctx, param) from error


class NewNicType(_Named):
    """``VM/ALIAS`` of a NIC that need not exist."""

    name = "nic"
    names = staticmethod(_nic_names)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> NicRef:
        """Read it."""
        from linkmgr.model import NicRef

        try:
            return NicRef.parse(value)
        except BadName as error:
            raise click.BadParameter(f"{error}.", ctx, param) from error


class DomainType(_Named):
    """A domain of libvirt, or a file with its XML."""

    name = "domain"
    names = staticmethod(_domain_names)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The domains that the service knows of, else those of virsh; files when there are none."""
        found = super().shell_complete(ctx, param, incomplete)
        if not found and "/" not in incomplete:
            found = [CompletionItem(n) for n in _of_virsh() if n.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


class DomainNicType(_Type):
    """A NIC of the domain that the command names, by its alias or its address."""

    name = "alias"

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - click passes it
        incomplete: str,
    ) -> list[CompletionItem]:
        """The NICs that libvirt, or the file, says there are."""
        # An option whose value is still to come keeps click from giving the arguments their names.
        domain = ctx.params.get("domain") or next(iter(ctx.args), None)
        if domain is None:
            return []
        return [
            CompletionItem(name)
            for name in _nics_of(domain, ctx.params.get("connect"))
            if name.lower().startswith(incomplete.lower())
        ]


class MonitorType(_Named):
    """The socket of a guest's monitor, or ``libvirt:DOMAIN``."""

    name = "path"
    names = staticmethod(_passthrough_names)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Files; and libvirt's domains where the word begins as theirs do."""
        if incomplete and _LIBVIRT.startswith(incomplete[: len(_LIBVIRT)]):
            found = super().shell_complete(ctx, param, incomplete)
            if found or incomplete.startswith(_LIBVIRT):
                return found
        return [CompletionItem(incomplete, type="file")]


class VmType(_Named):
    """Name of a VM that was added."""

    name = "vm"
    names = staticmethod(_vm_names)


class NetworkType(_Named):
    """Name of a network that was created."""

    name = "network"
    names = staticmethod(_network_names)


class TargetType(_Named):
    """``NETWORK[:PORT]``."""

    name = "target"
    names = staticmethod(_target_names)


async def _port_names(client: Client) -> list[str]:
    return [name for name in await _target_names(client) if ":" in name]


class PortType(_Named):
    """``NETWORK:PORT`` that was created."""

    name = "port"
    names = staticmethod(_port_names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read it."""
        network, colon, port = str(value).partition(":")
        if not (network and colon and port):
            self.fail(f"{value!r} is not of the form NETWORK:PORT.", param, ctx)
        return str(value)


class OptionType(_Type):
    """``KEY=VALUE`` of a network or port."""

    name = "option"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, object]:
        """Read it: true and false, whole numbers, else text; in double quotes always text."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key.isidentifier():
            self.fail(f"{value!r} is not of the form KEY=VALUE.", param, ctx)
        if key in ("name", "driver", "network", "drift"):
            self.fail(f"{key!r} is not an option of a driver; see --help.", param, ctx)
        return key, _typed(text)


def options_of(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Make one mapping of options.

    :raise click.UsageError: when one is given twice.
    """
    options: dict[str, object] = {}
    for key, value in pairs:
        if key in options:
            raise click.UsageError(f"The option {key!r} is given twice.")
        options[key] = value
    return options


def _typed(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 19 else text


def _known(socket: str | None, names: Names) -> list[str]:
    import asyncio

    from linkmgr.client import Client

    async def fetch() -> list[str]:
        async with asyncio.timeout(COMPLETION_TIMEOUT_S), Client(socket, patience=0) as client:
            return list(await names(client))

    try:
        return asyncio.run(fetch())
    except Exception:  # noqa: BLE001 - a shell that completes has no place for errors
        return []


def _of_virsh() -> list[str]:
    import subprocess

    argv = ["virsh", "--quiet", "list", "--all", "--name"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=True, timeout=COMPLETION_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [name for name in done.stdout.splitlines() if name]


def is_file(domain: str) -> bool:
    """Whether what was called a domain is a file with its XML: ``-`` is stdin."""
    return "/" in domain or domain.endswith(".xml") or domain == "-"


def _nics_of(domain: str, connect: str | None) -> list[str]:
    from linkmgr.libvirt.prepare.virsh import Virsh
    from linkmgr.libvirt.xml.document import MAX_BYTES, Document
    from linkmgr.libvirt.xml.interfaces import nics_of

    try:
        if not is_file(domain):
            xml = Virsh(connect, timeout=COMPLETION_TIMEOUT_S).xml(domain)
        else:
            path = Path(domain).expanduser()
            if not path.is_file():  # which a pipe is not: reading it would wait, and take from it
                return []
            with path.open("rb") as file:
                xml = file.read(MAX_BYTES + 1)
        nics = nics_of(Document(xml))
    except Exception:  # noqa: BLE001 - a shell that completes has no place for errors
        return []
    return [name for nic in nics for name in (nic.alias, nic.mac) if name]
