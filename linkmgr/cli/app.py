"""All commands in one place."""

from __future__ import annotations

from importlib.util import find_spec

import click

from linkmgr.cli.args import args
from linkmgr.cli.check import check, gc, metrics
from linkmgr.cli.completion import completion
from linkmgr.cli.framework import LazyCommand, RootGroup
from linkmgr.cli.help import help_, version
from linkmgr.cli.list import connections, nics
from linkmgr.cli.networks import network, port
from linkmgr.cli.plug import link, plug, unplug
from linkmgr.cli.serve import serve
from linkmgr.cli.show import show
from linkmgr.cli.status import status
from linkmgr.cli.vms import vm
from linkmgr.cli.watch import watch


@click.group(
    cls=RootGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="linkmgr", message="%(prog)s %(version)s")
def cli() -> None:
    """Plug, unplug and exchange the network cable of running QEMU guests.

    A NIC is written VM/NIC (web1/net0), or is its MAC address, its device on the host, or its VM if
    that has one NIC; a port is written NETWORK:PORT. Exit codes are in linkmgr(1).
    """


for _command in (
    status,
    vm,
    network,
    port,
    plug,
    unplug,
    link,
    nics,
    connections,
    show,
    check,
    gc,
    watch,
):
    cli.add_command(_command)
if find_spec("linkmgr.cli.doctor") is not None:
    cli.add_command(
        LazyCommand(
            "doctor", "linkmgr.cli.doctor:doctor", "Say what works on this host, and what not."
        )
    )
cli.add_command(
    LazyCommand(
        "prepare",
        "linkmgr.cli.prepare:prepare",
        "Make a libvirt domain boot with NICs whose cables can change.",
    )
)
for _command in (args, metrics, completion, serve, help_, version):
    cli.add_command(_command)
