"""``plug``, ``unplug`` and ``link``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import click

from linkmgr.cli.framework import Command
from linkmgr.cli.output import note, printable, printed_as_json, where
from linkmgr.cli.params import Choice, NicType, TargetType
from linkmgr.cli.runner import run_with_client

if TYPE_CHECKING:
    from linkmgr.model import Outcome

NIC = click.argument("nic", type=NicType(), metavar="NIC")

_Command = TypeVar("_Command", bound=Callable[..., object])


def _affecting(command: _Command) -> _Command:
    """Give a command virsh's options for what of a guest of libvirt it is about."""
    for name, text in (
        ("--persistent", "Both; of a libvirt guest that does not run, its next start."),
        ("--config", "What a libvirt guest has from its next start on."),
        ("--live", "The guest as it runs. This is so without any of the three."),
    ):
        command = click.option(name, is_flag=True, help=text)(command)
    return command


def _affects(*, live: bool, config: bool, persistent: bool) -> str:
    if persistent or (live and config):
        return "persistent"
    return "config" if config else "live"


@click.command(
    cls=Command,
    examples=[
        "linkmgr plug web1/net0 blue",
        "linkmgr plug web1 blue:p7 --notify announce",
        "linkmgr plug 52:54:00:12:34:56 blue --persistent",
    ],
)
@NIC
@click.argument("target", type=TargetType(), metavar="NETWORK[:PORT]")
@click.option(
    "--notify",
    type=Choice(["auto", "flap", "announce", "silent"]),
    default="auto",
    show_default=True,
    help="How guest and network hear of it: the carrier drops (flap), the guest's address is "
    "announced, nothing, or what fits (auto).",
)
@_affecting
def plug(nic: str, target: str, notify: str, **flags: bool) -> None:
    """Plug a NIC into a network or port, from wherever it is."""
    affects = _affects(**flags)
    doing = f"plugging {nic}"
    made = run_with_client(
        lambda client: client.plug(nic, target, notify=notify, affects=affects), doing
    )
    _tell(made, affects)


@click.command(
    cls=Command,
    examples=["linkmgr unplug web1/net0", "linkmgr unplug web1 --config"],
)
@NIC
@_affecting
def unplug(nic: str, **flags: bool) -> None:
    """Take a NIC off its cable."""
    affects = _affects(**flags)
    _tell(
        run_with_client(lambda client: client.unplug(nic, affects=affects), f"unplugging {nic}"),
        affects,
    )


@click.command(
    cls=Command,
    examples=["linkmgr link web1/net0 down", "linkmgr link vnet0 up"],
)
@NIC
@click.argument("state", type=Choice(["up", "down"]))
@_affecting
def link(nic: str, state: str, **flags: bool) -> None:
    """Set the carrier that the guest sees while the NIC is plugged."""
    affects = _affects(**flags)
    doing = f"setting the link of {nic} {state}"
    _tell(
        run_with_client(lambda client: client.set_link(nic, state, affects=affects), doing), affects
    )


def _tell(outcome: Outcome, affects: str) -> None:
    if printed_as_json(outcome):
        return
    nic, unchanged = outcome.nic, "" if outcome.changed else " (it was so already)"
    if affects == "config" or (affects == "persistent" and nic.state == "gone"):
        first, *rest = outcome.notes or ("nothing is known of its next start",)
        click.echo(f"{nic.ref}  {printable(first)}{unchanged}")
        _note(rest)
        return
    _note(outcome.notes)
    if nic.connection:
        text = f"plugged into {where(nic)}, link {nic.link or 'unknown'}"
    else:
        text = nic.describe()
        if nic.wanted_link == "down":
            text += ", link stays down when it is plugged"
    click.echo(f"{nic.ref}  {text}{unchanged}")


def _note(notes: Iterable[str]) -> None:
    for each in notes:
        note(each)
