"""Compares what a NIC's cable should be with what QEMU and the kernel say."""

from __future__ import annotations

from collections.abc import Mapping

from linkmgr.errors import CannotAttach, MonitorError, NameTaken
from linkmgr.host import Link, PortState
from linkmgr.model import (
    BridgeEndpoint,
    DirectEndpoint,
    Drift,
    FdEndpoint,
    Finding,
    Mark,
    Nic,
    NicState,
)
from linkmgr.swap import Slot
from linkmgr.wirings.receive_filter import advice


async def check_nic(nic: Nic, slot: Slot, links: Mapping[str, Link]) -> list[Finding]:
    """Compare one NIC. The caller holds its lock.

    :param links: the devices of this host as they are now, by name.
    """
    subject = str(nic.ref)
    if nic.state is NicState.UNKNOWN:
        return [Finding("unknown", subject, nic.describe(), "see whether the guest is stopped")]
    if nic.state in (NicState.GONE, NicState.UNMANAGED):
        return []
    again = "unplug it and plug it again"
    found: list[tuple[str, str, str]] = []
    try:
        in_qemu = [cable.port for cable in await slot.wiring.inspect(slot.ref)]
    except (MonitorError, CannotAttach) as error:
        return [Finding(error.code, subject, error.what, error.hint or again)]
    expected = [slot.plugged.cable.port] if slot.plugged else []
    strangers = [port for port in in_qemu if port not in expected]
    if in_qemu != expected and not slot.foreign:
        found.append(
            (
                "wrong-cable",
                f"QEMU has {', '.join(in_qemu) or 'nothing'} plugged into it, "
                f"not {', '.join(expected) or 'nothing'}",
                f"take these out with netdev_del: {', '.join(strangers)}" if strangers else again,
            )
        )
    found += [("leftover", "a clean-up is still to be done", "see the log")] * bool(slot.leftovers)
    if slot.trouble:
        found.append(("not-recovered", slot.trouble, again))
    if slot.plugged:
        endpoint = slot.plugged.cable.endpoint
        found += [("refused", what, advice(what, endpoint)) for what in slot.refused]
        found += device_faults(slot, links)
    if slot.plugged and slot.name and isinstance(slot.unnamed, NameTaken):
        what = f"its device is called {slot.plugged.cable.device}, not {slot.name}"
        found.append(("name-taken", f"{what}: {slot.unnamed.what}", slot.unnamed.hint or again))
    return [Finding(code, subject, what, hint) for code, what, hint in found]


def device_faults(slot: Slot, links: Mapping[str, Link]) -> list[tuple[str, str, str]]:
    """What is wrong with the host's side of a plugged NIC's cable: code, what, hint."""
    assert slot.plugged is not None
    cable = slot.plugged.cable
    again = "unplug it and plug it again"
    if isinstance(cable.endpoint, FdEndpoint):
        return []  # its device is its owner's, and may be in another network namespace
    link = links.get(cable.device or "")
    match cable.endpoint:
        case BridgeEndpoint(bridge=name) | DirectEndpoint(parent=name):
            pass
        case None:
            name = ""
    if name and name not in links:
        # A plug into the port that it is on does nothing, so it is unplugged first.
        by_itself = slot.plugged.attachment.port.network.drift is Drift.REPAIR
        again = f"make {name} again, then unplug the NIC and plug it again" + (
            "; where linkmgr watches it is repaired by itself then" if by_itself else ""
        )
    if link is None:
        return [("device-gone", f"its device {cable.device} does not exist any more", again)]
    found: list[tuple[str, str, str]] = []
    if link.mark != Mark(str(slot.ref), cable.id):
        found.append(("not-ours", f"device {link.name} does not carry its mark", again))
    if not link.up:
        found.append(("device-down", f"device {link.name} is down",
                      f"run 'ip link set {link.name} up'"))  # fmt: skip
    if not name:
        return found
    where = link.master if isinstance(cable.endpoint, BridgeEndpoint) else link.parent
    target = links.get(name)
    if target is None:
        found.append(("endpoint-gone", f"{name} does not exist any more", again))
    elif where != target.index:
        found.append(("moved", f"device {link.name} is not on {name} any more", again))
    elif not target.up:
        found.append(("endpoint-down", f"{name} is down", f"run 'ip link set {name} up'"))
    elif link.up and link.port_state is PortState.DISABLED:
        found.append(("port-shut", f"device {link.name} is a port of {name} that is shut",
                      f"run 'bridge link set dev {link.name} state 3'"))  # fmt: skip
    return found
