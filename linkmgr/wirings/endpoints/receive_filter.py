"""A macvtap that follows the guest's receive filter.

A macvtap delivers only frames for its own address. QEMU tells what the guest's driver set
(``NIC_RX_FILTER_CHANGED``, then ``query-rx-filter``, which also arms the event again).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from linkmgr.errors import CommandFailed, HostError, LinkMissing, MonitorError
from linkmgr.host import Host
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.model import DirectEndpoint, DirectMode, Endpoint, NicRef
from linkmgr.text.untrusted import printable
from linkmgr.wirings.base import Cable
from linkmgr.wirings.endpoints.device import find_cable_device

_ALL_FRAMES = "the guest asks for all frames"
_MORE_ADDRESSES = "the guest uses more addresses"
MAX_SHOWN_ADDRESSES = 4  #: of those, in a sentence: a guest may have as many as its driver takes
_NOT_FOLLOWED = "the guest's receive filter cannot be followed"
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True)
class RxFilter:
    """The receive filter that the guest's driver has set."""

    main_mac: str
    promiscuous: bool
    more: tuple[str, ...] = ()  #: other addresses, of a macvlan or a VRRP in the guest, say


async def query_rx_filter(qemu: QemuProcess, nic: NicRef) -> RxFilter | None:
    """Query the guest's filter; ``None`` for a NIC model that cannot tell (e1000e, vmxnet3).

    :raise MonitorError: when QEMU does not answer, or with something else.
    """
    try:
        answer = await qemu.execute("query-rx-filter", {"name": nic.alias})
    except CommandFailed:
        return None
    try:
        (said,) = answer
        mac, promiscuous = said["main-mac"].lower(), bool(said["promiscuous"])
        if said.get("unicast") == "all":  # more than its table has room for
            promiscuous = True
        more = {str(each).lower() for each in said.get("unicast-table", ())} - {mac}
        if all(_MAC.fullmatch(each) for each in (mac, *more)):
            return RxFilter(mac, promiscuous, tuple(sorted(more)))
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise MonitorError(
        f"QEMU says of the receive filter of {nic}: {printable(answer, 100)}",
        hint="see which program answers on its monitor",
    )


async def apply_rx_filter(
    host: Host, cable: Cable, endpoint: DirectEndpoint, asked: RxFilter
) -> list[str]:
    """Give the guest what the port allows it, and nothing that an earlier port allowed it.

    ``trust_guest`` governs address and promiscuity. Multicast needs nothing, because the device
    takes all of it from the start.

    :return: sentences, of what the filter asks for and the guest does not get.
    """
    trusted, passthru = endpoint.trust_guest, endpoint.mode is DirectMode.PASSTHRU
    mac = asked.main_mac if trusted else cable.mac
    promiscuous = (asked.promiscuous or bool(asked.more)) and trusted and passthru
    refused = []
    if mac != asked.main_mac:
        refused.append(
            f"the guest uses the address {asked.main_mac}, but its port does not trust it: "
            f"only frames for {mac} are delivered"
        )
    if asked.promiscuous and not promiscuous:
        refused.append(
            f"{_ALL_FRAMES}; only a trusted port in passthru mode gives them, and "
            f"this one is {'trusted' if trusted else 'not trusted'} in {endpoint.mode} mode"
        )
    elif asked.more and not promiscuous:
        shown = ", ".join(asked.more[:MAX_SHOWN_ADDRESSES])
        others = len(asked.more) - MAX_SHOWN_ADDRESSES
        refused.append(
            f"{_MORE_ADDRESSES} ({shown}{f' and {others} more' if others > 0 else ''}), for which "
            "nothing is delivered; only a trusted port in passthru mode gives them, and this one "
            f"is {'trusted' if trusted else 'not trusted'} in {endpoint.mode} mode"
        )
    cable.allowed_mac, cable.allowed_promisc = mac, promiscuous
    try:
        device = await find_cable_device(host, cable)  # it may have been renamed
        if device is None:
            raise LinkMissing(
                f"its device {cable.device} is gone", hint="see why: 'linkmgr check' tells more"
            )
        if device.mac != mac:
            await host.set_mac(device.index, mac)
        if device.promisc != promiscuous and passthru:
            await host.set_promiscuity(device.index, promiscuous)
    except HostError as error:
        refused.append(f"{_NOT_FOLLOWED}: {error}")
    return refused


def hint_for(refused: str, endpoint: Endpoint | None) -> str:
    """The hint for a sentence of `apply_rx_filter`.

    :param endpoint: what the NIC is plugged into.
    """
    if refused.startswith(_NOT_FOLLOWED):
        return "mend that, then unplug the NIC and plug it again"
    by_mode = refused.startswith((_ALL_FRAMES, _MORE_ADDRESSES))
    if not by_mode or not isinstance(endpoint, DirectEndpoint):
        return "give its port trust_guest if the guest may do that"
    missing = [] if endpoint.trust_guest else ["trust_guest"]
    missing += [] if endpoint.mode is DirectMode.PASSTHRU else ["passthru mode"]
    return f"plug it into a network with {' and '.join(missing)} if the guest may have them"
