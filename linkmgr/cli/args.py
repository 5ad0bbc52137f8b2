"""``linkmgr args``: what QEMU is started with. Needs no service."""

from __future__ import annotations

import hashlib
import re
import shlex
from typing import TYPE_CHECKING

import click

from linkmgr.cli.framework import Command
from linkmgr.cli.output import printed_as_json
from linkmgr.cli.params import NewNicType

if TYPE_CHECKING:
    from linkmgr.model import NicRef

MODEL_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@click.command(
    cls=Command,
    examples=[
        "linkmgr args web1/net0",
        "linkmgr args web1/net0 --mac 52:54:00:12:34:56 --mtu 9000",
        "qemu-system-x86_64 $(linkmgr args web1/net0) ...",
    ],
)
@click.argument("nic", type=NewNicType(), metavar="VM/NIC")
@click.option("--mac", help="The NIC's address; by default made from VM/NIC, always the same.")
@click.option("--model", default="virtio-net-pci", show_default=True, help="A NIC model of QEMU.")
@click.option(
    "--mtu", type=click.IntRange(68, 65535), metavar="BYTES", help="Told to the guest; virtio only."
)
def args(nic: NicRef, mac: str | None, model: str, mtu: int | None) -> None:
    """Print the arguments that boot a NIC whose cable can change."""
    from linkmgr.wirings.hub.qemu_args import hub_args

    if not MODEL_PATTERN.fullmatch(model):
        raise click.BadParameter(f"{model!r} is not a model of QEMU.", param_hint="--model")
    made = hub_args(nic.alias, mac=mac or mac_of(nic), model=model, host_mtu=mtu)
    if not printed_as_json(made):
        click.echo(shlex.join(made))


def mac_of(nic: NicRef) -> str:
    """An address in QEMU's range, 52:54:00, that is always the same for this NIC."""
    tail = hashlib.sha256(str(nic).encode()).digest()[:3]
    return "52:54:00:" + tail.hex(":")
