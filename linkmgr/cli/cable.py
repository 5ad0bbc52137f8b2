"""``plug``, ``unplug`` and ``link``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from linkmgr.cli.ask import ask
from linkmgr.cli.base import Verb
from linkmgr.cli.show import printed_as_json, where
from linkmgr.cli.words import NicType, TargetType

if TYPE_CHECKING:
    from linkmgr.model import NicRef, Outcome

NIC = click.argument("nic", type=NicType(), metavar="VM/NIC")


@click.command(cls=Verb)
@NIC
@click.argument("target", type=TargetType(), metavar="NETWORK[:PORT]")
@click.option(
    "--notify",
    type=click.Choice(["auto", "flap", "announce", "silent"]),
    default="auto",
    show_default=True,
    help="How guest and network hear of it: the carrier drops (flap), the guest's address is "
    "announced, nothing, or what fits (auto).",
)
def plug(nic: NicRef, target: str, notify: str) -> None:
    """Plug a NIC into a network or port, from wherever it is."""
    _tell(ask(lambda links: links.plug(nic, target, notify=notify), f"plugging {nic}"))


@click.command(cls=Verb)
@NIC
def unplug(nic: NicRef) -> None:
    """Take a NIC off its cable."""
    _tell(ask(lambda links: links.unplug(nic), f"unplugging {nic}"))


@click.command(cls=Verb)
@NIC
@click.argument("state", type=click.Choice(["up", "down"]))
def link(nic: NicRef, state: str) -> None:
    """Set the carrier that the guest sees while the NIC is plugged."""
    _tell(ask(lambda links: links.set_link(nic, state), f"setting the link of {nic} {state}"))


def _tell(outcome: Outcome) -> None:
    if printed_as_json(outcome):
        return
    nic = outcome.nic
    if nic.connection:
        text = f"plugged into {where(nic)}, link {nic.link or 'unknown'}"
    else:
        text = nic.describe()
        if nic.wanted_link == "down":
            text += ", link stays down when it is plugged"
    click.echo(f"{nic.ref}  {text}{'' if outcome.changed else ' (it was so already)'}")
