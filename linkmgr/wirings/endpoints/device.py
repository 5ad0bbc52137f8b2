"""The host's device of a cable: which one it is, what it is called, and its end.

It is made under a name of its own (`device_name`), and may be called something else later, or by
another process. So a name does not say whose a device is: its tag does.

Only a tap takes a name that is asked for. A macvtap does not go with QEMU: while linkmgr is away it
would keep the name, and libvirt would not start the guest again ("interface already exists"). And
what it receives is what the guest receives, where libvirt expects a tap, whose sides are swapped.
"""

from __future__ import annotations

from linkmgr.host import Host, NetDevice, device_name
from linkmgr.host.names import CABLE_PREFIX
from linkmgr.model import BridgeEndpoint, OwnerTag
from linkmgr.wirings.base import Cable

PREFIX = CABLE_PREFIX


def tag_of(cable: Cable) -> OwnerTag:
    """The interface alias of a cable's device."""
    return OwnerTag(str(cable.nic), cable.id)


async def find_cable_device(host: Host, cable: Cable) -> NetDevice | None:
    """The cable's device, whatever it is called now; ``None`` when it is gone, or not ours."""
    tag, own = tag_of(cable), device_name(PREFIX, cable.id)
    device = None if cable.device is None else await host.find_device(cable.device)
    if device is None or not (device.owner_tag == tag or device.name == own):
        if cable.ifindex is not None:
            device = await host.find_device(cable.ifindex)
            return device if device is not None and device.owner_tag == tag else None
        device = next(
            (device for device in await host.list_devices() if device.owner_tag == tag), None
        )
    cable.ifindex = device.index if device else None
    return device


async def initial_name(host: Host, cable: Cable) -> str:
    """The initial name of a cable's device: the preferred one if that is free, else one of our own.

    Before Linux 6.2 no device that is up can be renamed: this is the only chance.
    """
    name = cable.preferred_ifname
    free = name is not None and await host.find_device(name) is None
    if name is not None and free and isinstance(cable.endpoint, BridgeEndpoint):
        return name
    return device_name(PREFIX, cable.id)


async def name_device(host: Host, cable: Cable, name: str | None) -> None:
    """See `Wiring.name_device`."""
    if cable.device is None or not isinstance(cable.endpoint, BridgeEndpoint):
        return
    device = await find_cable_device(host, cable)
    if device is None:
        return
    wanted = device_name(PREFIX, cable.id) if name is None else name
    if device.name != wanted:
        await host.rename(device, wanted)
    cable.device = wanted


async def delete_cable_device(host: Host, cable: Cable) -> None:
    """Remove the cable's device, and never another one that has its name by now. Repeats freely.

    A guest that starts again may have a tap of libvirt under the same name before ours is gone.

    :raise HostError: when the kernel refuses.
    """
    if cable.device is None:
        return
    if (device := await find_cable_device(host, cable)) is not None:
        await host.delete_device(device.index)
    cable.device = None


async def set_device_down(host: Host, cable: Cable) -> None:
    """Take the cable's device down: to delete it would have a QEMU that holds it spin.

    :raise HostError: when the kernel refuses.
    """
    if cable.device is not None and (device := await find_cable_device(host, cable)) is not None:
        await host.set_down(device.index)
