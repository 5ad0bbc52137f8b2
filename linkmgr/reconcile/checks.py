"""Compares what a NIC's cable should be with what QEMU and the kernel say."""

from __future__ import annotations

from collections.abc import Mapping

from linkmgr.errors import CannotAttach, MonitorError, NameTaken
from linkmgr.host import NetDevice
from linkmgr.model import BridgeEndpoint, Drift, Finding, Nic, NicState
from linkmgr.swap.steps import ManagedNic
from linkmgr.text.untrusted import ip_device, shell_word
from linkmgr.wirings.endpoints.attributes import find_faults
from linkmgr.wirings.endpoints.receive_filter import hint_for


async def check_nic(
    nic: Nic, managed: ManagedNic, devices: Mapping[str, NetDevice]
) -> list[Finding]:
    """Compare one NIC. If a verb has it meanwhile, what is found may be of the verb's middle.

    :param devices: the devices of this host as they are now, by name.
    """
    subject = str(nic.ref)
    if nic.state in (NicState.UNKNOWN, NicState.GONE, NicState.UNMANAGED):
        return noted(nic, managed)
    again = "unplug it and plug it again"
    found: list[tuple[str, str, str]] = []
    try:
        in_qemu = [cable.hubport_id for cable in await managed.wiring.inspect(managed.ref)]
    except (MonitorError, CannotAttach) as error:
        return [Finding(error.code, subject, error.what, error.hint or again)]
    expected = [managed.connection.cable.hubport_id] if managed.connection else []
    unexpected = [port for port in in_qemu if port not in expected]
    if in_qemu != expected and not managed.foreign:
        found.append(
            (
                "wrong-cable",
                f"QEMU has {', '.join(in_qemu) or 'nothing'} plugged into it, "
                f"not {', '.join(expected) or 'nothing'}",
                f"take these out with netdev_del: {', '.join(unexpected)}" if unexpected else again,
            )
        )
    if managed.connection:
        endpoint = managed.connection.cable.endpoint
        found += [("refused", what, hint_for(what, endpoint)) for what in managed.filter_refusals]
        found += device_faults(managed, devices)
        found += name_faults(managed)
    return [
        *(Finding(code, subject, what, hint) for code, what, hint in found),
        *noted(nic, managed),
    ]


def noted(nic: Nic, managed: ManagedNic) -> list[Finding]:
    """What is known to be wrong with a NIC without asking anybody, also while a verb has it."""
    subject = str(nic.ref)
    if nic.state is NicState.UNKNOWN:
        return [Finding("unknown", subject, nic.describe(), "see whether the guest is stopped")]
    if (why := managed.id_error) is not None and nic.state is NicState.UNMANAGED:
        return [Finding(why.code, subject, why.what, why.hint or "")]
    if nic.state in (NicState.GONE, NicState.UNMANAGED):
        return []
    found = []
    if (unwritten := managed.journal_error) is not None:
        what = f"what was done last is not written down: {unwritten.what}"
        found.append(Finding("not-written", subject, what, unwritten.hint or "see the log"))
    if any(step != managed.save for step in managed.deferred):
        found.append(Finding("leftover", subject, "a clean-up is still to be done", "see the log"))
    if managed.recovery_error:
        hint = "unplug it and plug it again"
        found.append(Finding("not-recovered", subject, managed.recovery_error, hint))
    return found


def name_faults(nic: ManagedNic) -> list[tuple[str, str, str]]:
    """What is wrong with the name of a plugged NIC's device: code, what, hint."""
    assert nic.connection is not None
    device, endpoint = nic.connection.cable.device, nic.connection.cable.endpoint
    what = f"its device is called {device}, not {nic.wanted_ifname}"
    if nic.wanted_ifname and isinstance(nic.rename_error, NameTaken):
        return [("name-taken", f"{what}: {nic.rename_error.what}", nic.rename_error.hint or "")]
    only_taps = isinstance(endpoint, BridgeEndpoint)
    if (
        only_taps
        and nic.wanted_ifname
        and nic.rename_error is None
        and device not in (None, nic.wanted_ifname)
    ):
        hint = (
            f"run 'ip link set {ip_device(device)} name {shell_word(nic.wanted_ifname)}'; if "
            "another device has that name by now, rename or remove it first"
        )
        return [("device-renamed", what, hint)]
    return []


def device_faults(nic: ManagedNic, devices: Mapping[str, NetDevice]) -> list[tuple[str, str, str]]:
    """What is wrong with the host's side of a plugged NIC's cable: code, what, hint.

    :param devices: the devices of this host as they are now, by name.
    """
    assert nic.connection is not None
    by_itself = nic.connection.attachment.port.network.drift is Drift.REPAIR
    watched = "; where linkmgr watches it is repaired by itself then" if by_itself else ""
    return [
        (fault.code, fault.what, fault.hint + watched * fault.hint.startswith("make "))
        for fault in find_faults(nic.connection.cable, devices)
    ]
