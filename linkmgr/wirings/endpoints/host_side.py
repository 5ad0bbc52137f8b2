"""Host devices of a cable on a hub: made, reused, restored; and the addresses behind them."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from linkmgr.errors import HostError, LinkBusy, LinkMissing, NotForwarding
from linkmgr.host import Host, PortState
from linkmgr.model import BridgeEndpoint, DirectEndpoint, DirectMode
from linkmgr.text.untrusted import ip_device
from linkmgr.wirings.base import Cable
from linkmgr.wirings.endpoints.attributes import find_faults, foreign_settings, repair_in_place
from linkmgr.wirings.endpoints.device import find_cable_device, initial_name, tag_of

log = logging.getLogger(__name__)

#: A spanning tree with the default forward delay listens and learns for 30 s.
FORWARDING_TIMEOUT_S = 35.0


async def inspect_replaced(host: Host, cable: Cable, replacing: Cable) -> None:
    """Find the device of the replaced cable by its tag, and the settings of others on it."""
    if replacing.device is None or (device := await find_cable_device(host, replacing)) is None:
        return
    replacing.device = device.name  # it may have been renamed, and another have its name
    if replacing.endpoint is not None:
        cable.lost_settings = await foreign_settings(host, replacing, device)


async def make_tap(
    host: Host, cable: Cable, endpoint: BridgeEndpoint, replacing: Cable | None
) -> None:
    """Make a cable's tap, a port of its bridge; `Cable.prestaged` says whether it is left down.

    :raise HostError: when the kernel refuses, or the bridge does not forward to it in time.
    """
    # What no journal knows could not be told from the new one after a crash.
    if replacing is not None and replacing.device is not None and not replacing.rediscovered:
        cable.prestaged = await _forwards_on_command(host, cable, replacing)
    device = await initial_name(host, cable)
    # It comes up as a port of the bridge, so that the port's options hold from the first frame.
    tap = await host.open_tap(device, tag_of(cable), mtu=endpoint.mtu, up=False)
    cable.device, cable.ifindex, cable.fd = device, tap.device.index, tap.fd
    await attach(host, cable, endpoint)


async def attach(host: Host, cable: Cable, endpoint: BridgeEndpoint) -> None:
    """Make a cable's tap a port of its bridge, and bring it up unless prestaged. Repeats freely.

    :raise HostError: when the kernel refuses, or the bridge does not forward to it in time.
    """
    assert cable.device is not None
    await host.attach_to_bridge(
        cable.device,
        endpoint.bridge,
        isolated=endpoint.isolated,
        hairpin=endpoint.hairpin,
        learning=endpoint.learning,
        up=not cable.prestaged,
        timeout=FORWARDING_TIMEOUT_S,
    )


async def make_macvtap(host: Host, cable: Cable, endpoint: DirectEndpoint) -> None:
    """Make a cable's macvtap on its parent.

    :raise HostError: when the kernel refuses.
    """
    device = await initial_name(host, cable)
    tap = await host.open_macvtap(
        device, endpoint.parent, tag_of(cable), mode=endpoint.mode, mac=cable.mac,
        mtu=endpoint.mtu,
    )  # fmt: skip
    cable.device, cable.ifindex, cable.fd = device, tap.device.index, tap.fd


async def can_reuse(host: Host, endpoint: DirectEndpoint, replacing: Cable) -> bool:
    """Whether the NIC is on a macvtap of that parent, which can be reused.

    The kernel allows no second device with the NIC's address there, and to move the address
    from one to another takes it 20 ms in which nobody has it.

    :raise LinkBusy: when it is to be reused, but the kernel cannot change its mode.
    """
    before = replacing.endpoint
    if not isinstance(before, DirectEndpoint) or replacing.device is None:
        return False
    device, parent = (
        await find_cable_device(host, replacing),
        await host.find_device(endpoint.parent),
    )
    # By index: either may have been renamed since.
    if device is None or parent is None or device.parent != parent.index:
        return False
    if before.mode != endpoint.mode and DirectMode.PASSTHRU in (before.mode, endpoint.mode):
        raise LinkBusy(
            f"{endpoint.parent} carries this NIC in {before.mode} mode, and the kernel cannot "
            f"change that to {endpoint.mode}",
            hint="unplug the NIC first, then plug it",
        )
    return True


async def reuse_device(host: Host, new: Cable, old: Cable) -> None:
    """Give the old cable's device, fd and netdev to the new one, and configure the device."""
    assert isinstance(new.endpoint, DirectEndpoint)
    assert isinstance(old.endpoint, DirectEndpoint)
    assert old.device is not None
    new.allowed_mac, new.allowed_promisc = old.allowed_mac, old.allowed_promisc
    try:
        await reshape(host, new, old.device)
    except BaseException:
        with contextlib.suppress(HostError):
            await reshape(host, old, old.device)
        raise
    new.device, new.ifindex = old.device, old.ifindex
    new.fd, new.netdev_added = old.fd, old.netdev_added
    old.device, old.fd, old.netdev_added = None, None, False


async def switch_bridge_ports(host: Host, new: Cable, old: Cable) -> None:
    """Switch in the kernel, where both cables are plugged in and one of them is down."""
    assert isinstance(new.endpoint, BridgeEndpoint)
    assert new.device is not None
    assert old.device is not None
    await host.switch_bridge_ports(
        old.device, new.device,
        bridge=new.endpoint.bridge, learning=new.endpoint.learning, own=new.mac,
    )  # fmt: skip


async def withdraw_addresses(host: Host, new: Cable, old: Cable) -> None:
    """Forget the addresses behind the old port: the bridge floods until `claim_addresses`."""
    if not isinstance(new.endpoint, BridgeEndpoint) or old.device is None:
        return
    with contextlib.suppress(HostError):  # it saves some frames, no more
        new.withdrawn_entries = host.fdb_entries_behind(old.device, new.endpoint.bridge)
        await host.forget_fdb_entries(new.withdrawn_entries, old.device)


async def claim_addresses(host: Host, cable: Cable) -> None:
    """Claim the NIC's addresses, so that the network delivers here before the guest next speaks.

    A bridge has what `withdraw_addresses` took from the NIC's old port behind the new one.

    :raise LinkMissing: when its device is gone.
    :raise NotForwarding: when that is no port of its bridge, or one that does not forward.
    :raise LinkBusy: when it is a macvtap that is down, or whose parent is.
    """
    match cable.endpoint:
        case BridgeEndpoint(bridge=bridge, learning=learning) if cable.device:
            await host.add_fdb_entries(
                cable.withdrawn_entries,
                cable.device,
                bridge=bridge,
                learning=learning,
                own=cable.mac,
            )
            cable.withdrawn_entries = []
        case DirectEndpoint(parent=parent) if cable.device:
            # It has the NIC's address from the start, so there is nothing to tell. But nothing has
            # looked at it since it was staged, and it goes with its parent.
            await _check_reachable(host, cable.device, parent)


async def _check_reachable(host: Host, device: str, parent: str) -> None:
    if host.is_up(device) and host.is_up(parent):
        return  # most often; what follows takes about 0.5 ms
    net_device = await host.find_device(device)
    # By its index, for it may have been renamed. None: it is in another network namespace.
    lower = await host.find_device(net_device.parent) if net_device and net_device.parent else None
    if net_device is None or (net_device.parent and lower is None):
        raise LinkMissing(
            f"{device} is gone: somebody has deleted it, or its parent {parent}",
            hint=f"see that {parent} stays ('ip link show {ip_device(parent)}'), and plug the "
            "NIC again",
        )
    for each in (net_device, lower):
        if each is not None and not each.up:
            raise LinkBusy(
                f"{each.name} is down, so nothing can be reached through it",
                hint=f"see that nobody takes {each.name} down, and plug the NIC again",
            )


async def restore_addresses(host: Host, cable: Cable, left: Cable | None = None) -> None:
    """As `claim_addresses`, for a cable whose port may be disabled and whose network may be gone.

    :param left: the cable that the NIC should have got, and has left.
    """
    with contextlib.suppress(LinkMissing, NotForwarding, LinkBusy):
        if left is not None:
            withdrawn, left.withdrawn_entries = left.withdrawn_entries, []
            await withdraw_addresses(host, cable, left)
            cable.withdrawn_entries = [*withdrawn, *cable.withdrawn_entries]
        await _enable_port(host, cable)
        await claim_addresses(host, cable)


async def restore_device(host: Host, cable: Cable) -> None:
    """Configure the device of a cable of an earlier run as its endpoint asks for."""
    if cable.device is None:
        return
    # It may have been renamed and not written down: its tag says which it is.
    if (device := await find_cable_device(host, cable)) is not None:
        cable.device = device.name
    try:
        tag = tag_of(cable)
        if device is not None and device.owner_tag == tag and device.alias != str(tag):
            # The alias has the form that an older linkmgr gave it.
            await host.set_alias(device.index, tag)
        match cable.endpoint:
            case DirectEndpoint():
                # A replug that kept the macvtap may have been cut off in the middle.
                await reshape(host, cable, cable.device)
            case BridgeEndpoint():
                await _enable_port(host, cable)
                await claim_addresses(host, cable)
    except HostError as error:  # `check` says what is wrong with it
        log.warning("%s: the cable that was there is not what it was: %s", cable.nic, error)


async def reshape(host: Host, cable: Cable, device: str) -> None:
    """Give a macvtap all that a cable asks for, whatever it has now.

    :raise HostError: when the kernel refuses.
    """
    assert isinstance(cable.endpoint, DirectEndpoint)
    for _ in range(2):  # what can be seen of a device is more when it has its tag again
        devices = {device: await host.device(device)}
        if (parent := await host.find_device(cable.endpoint.parent)) is not None:
            devices[cable.endpoint.parent] = parent
        found = find_faults(replace(cable, device=device), devices)
        # Not of the parent: that is checked when the endpoint is made, and seen in the switch.
        faults = [fault for fault in found if fault.code != "endpoint-down"]
        if not faults or not await repair_in_place(host, faults):
            return
        if any(fault.code == "endpoint-mtu" for fault in faults):
            await host.set_mtu(device, cable.endpoint.mtu)  # refused, with the kernel's reason


async def _enable_port(host: Host, cable: Cable) -> None:
    """Enable the cable's bridge port, if `switch_bridge_ports` has shut it."""
    if not isinstance(cable.endpoint, BridgeEndpoint) or cable.device is None:
        return
    device = await host.device(cable.device)
    if device.up and device.port_state is PortState.DISABLED:
        await host.enable_port(cable.device)


async def _forwards_on_command(host: Host, *cables: Cable) -> bool:
    """Whether all bridges forward when a port is enabled, not when a spanning tree decides."""
    for cable in cables:
        if not isinstance(cable.endpoint, BridgeEndpoint):
            return False
        bridge = await host.find_device(cable.endpoint.bridge)
        if bridge is None or bridge.spanning_tree:
            return False
    return True


async def address_is_elsewhere(host: Host, cable: Cable, *, moved: bool) -> bool:
    """Whether a bridge has the NIC's address behind another NIC now: it is not announced then.

    Two NICs may share one (a bond): it belongs to the one that spoke last.

    :param moved: whether the NIC comes from another network. It may have been in this one
        elsewhere (on another host, say): then only another NIC of this host is believed.
    """
    if not isinstance(cable.endpoint, BridgeEndpoint):
        return False
    own = tag_of(cable)
    for device in await host.ports_with_mac(cable.mac, cable.endpoint.bridge):
        other = device.owner_tag
        if other != own and (not moved or (other and other.owner != own.owner)):
            log.info("%s: %s is not announced, for it is at %s", cable.nic, cable.mac, device.name)
            return True
    return False
