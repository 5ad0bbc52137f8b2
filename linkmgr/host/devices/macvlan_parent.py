"""What may sit on which parent, and why the kernel said no: it often says only EINVAL."""

from __future__ import annotations

import errno
from pathlib import Path

from linkmgr.errors import HostError, LinkBusy, Unsupported
from linkmgr.host.netlink.errors import KernelRefused, to_host_error
from linkmgr.host.netlink.link import NetDevice
from linkmgr.host.netlink.reader import NetlinkReader
from linkmgr.model import DirectMode
from linkmgr.text.untrusted import ip_device

_KINDS = {"macvtap", "macvlan"}


async def resolve_macvtap_parent(reader: NetlinkReader, name: str) -> NetDevice:
    """Return the device on which macvtaps of this parent sit, if it is free to carry them.

    :param name: also an altname. A macvtap on a macvlan sits on that one's parent, beside it.
    :raise LinkMissing: when there is none.
    :raise LinkBusy: when it is a port of something else.
    :raise Unsupported: when it is a macvlan whose parent is in another network namespace.
    """
    device = await reader.device(name, "the parent of a macvtap")
    if device.kind in _KINDS:
        lower = None if device.parent is None else await reader.find_device(device.parent)
        if lower is None:
            raise Unsupported(
                f"{name} is a {device.kind} whose parent is in another network namespace",
                hint="name an Ethernet device of this network namespace",
            )
        device, name = lower, lower.name
    if device.master is not None:
        master = await reader.name_of(device.master)
        raise LinkBusy(
            f"{name} is a port of {master}, which takes all that it receives",
            hint=f"use {master} as the network, or free {name}: 'ip link set "
            f"{ip_device(name)} nomaster'",
        )
    return device


async def check_siblings(
    reader: NetlinkReader, parent: NetDevice, mode: DirectMode, owner: str | None = None
) -> None:
    """Check that what sits on `parent` already allows one more, of this mode.

    :param owner: of tags. Its own device does not count: it can be kept for the new use.
    :raise LinkBusy: when something is in passthru mode, or would have to be alone.
    """
    siblings = [
        device
        for device in await _siblings(reader, parent.index)
        if device.owner_tag is None or device.owner_tag.owner != owner
    ]
    for device in siblings:
        if device.mode == DirectMode.PASSTHRU:
            raise LinkBusy(
                f"{parent.name} belongs to {_describe(device)} alone, which is in passthru mode",
                hint=f"unplug what uses {device.name}, or name another parent",
            )
    if siblings and mode is DirectMode.PASSTHRU:
        others = ", ".join(_describe(device) for device in siblings)
        raise LinkBusy(
            f"{parent.name} cannot be passed through: there are others on it ({others})",
            hint="unplug these first, or use another mode or parent",
        )


async def address_taken_error(reader: NetlinkReader, name: str, parent: int, mac: str) -> LinkBusy:
    """Return the error for an address that `name` cannot have; it says who has it."""
    holders = [
        device
        for device in await _siblings(reader, parent)
        if device.mac == mac.lower() and device.name != name
    ]
    where = await reader.name_of(parent)
    who = _describe(holders[0]) if holders else "the parent itself or something that cannot be seen"
    return LinkBusy(
        f"{name} cannot have the address {mac} on {where}: it belongs to {who}",
        hint=f"unplug what uses {holders[0].name if holders else mac}, or give the NIC another "
        "address",
    )


async def explain_macvtap_refusal(
    reader: NetlinkReader,
    refused: KernelRefused,
    name: str,
    parent: str,
    *,
    mode: DirectMode,
    mac: str,
    mtu: int,
) -> HostError:
    """Return the error for a macvtap that the kernel refused to make."""
    try:
        lower = await resolve_macvtap_parent(reader, parent)
        if refused.code != errno.EADDRINUSE:
            await check_siblings(reader, lower, mode)
    except HostError as error:
        return error
    if refused.code in {errno.EADDRINUSE, errno.EADDRNOTAVAIL}:
        taken = refused.code == errno.EADDRINUSE
        at = lower.index
        return (
            await address_taken_error(reader, name, at, mac)
            if taken
            else address_refused_error(lower, mac)
        )
    if refused.code == errno.EINVAL and mtu > lower.mtu:
        return HostError(
            f"{name} cannot carry {mtu} bytes: its parent {parent} carries {lower.mtu}",
            hint=f"raise that ('ip link set {ip_device(parent)} mtu {mtu}') or lower the "
            "network's MTU",
        )
    if refused.code == errno.EBUSY:
        return LinkBusy(
            f"{parent} is used by something that takes all that it receives",
            hint=f"look who: 'ip -d link show {ip_device(parent)}'",
        )
    if refused.code == errno.EINVAL:
        return Unsupported(
            f"{parent} cannot carry a macvtap of mode {mode}: {refused.text}",
            hint="name an Ethernet device; what is on it may be in another network namespace",
        )
    return to_host_error(refused, name)


def address_refused_error(lower: NetDevice, mac: str, sysfs: str = "/sys/class/net") -> LinkBusy:
    """Return the error for a parent whose driver does not take the NIC's address.

    That of a virtual function (SR-IOV) does not, once its physical function has set one.
    """
    parent, found = lower.name, _physical_function(lower.name, sysfs)
    if found is None:
        return LinkBusy(
            f"the driver of {parent} does not take the address {mac}, which passthru mode needs",
            hint="use another mode, or give the NIC the address that the device has",
        )
    function, number = found
    return LinkBusy(
        f"{parent} is virtual function {number} of {function}, which has set its address, so it "
        f"does not take {mac}, as passthru mode needs",
        hint=f"run 'ip link set {ip_device(function)} vf {number} mac {mac}', and plug the "
        "NIC again",
    )


def _physical_function(device: str, sysfs: str) -> tuple[str, int] | None:
    """The name of a virtual function's physical function, and the number that it has there."""
    own = Path(sysfs, device, "device")
    try:
        (function,) = (each.name for each in (own / "physfn/net").iterdir())
        for each in (own / "physfn").glob("virtfn*"):
            if each.resolve() == own.resolve():
                return function, int(each.name.removeprefix("virtfn"))
    except (OSError, ValueError):  # no virtual function, or it goes just now
        pass
    return None


async def _siblings(reader: NetlinkReader, parent: int) -> list[NetDevice]:
    return [
        device
        for device in await reader.list_devices()
        if device.parent == parent and device.kind in _KINDS
    ]


def _describe(device: NetDevice) -> str:
    return f"{device.name} (of {device.owner_tag.owner})" if device.owner_tag else device.name
