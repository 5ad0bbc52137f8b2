"""Whether a NIC and a network agree about the size of frames."""

from __future__ import annotations

from linkmgr.errors import HostError, MtuTooLarge
from linkmgr.model import Offer, Port
from linkmgr.untrusted import ip_device


def check_mtu(offer: Offer, port: Port, *, promised: int | None, device: str, carried: int) -> None:
    """Refuse a network that carries larger frames than the NIC takes, or than its device does.

    A NIC that takes more than the network carries is fine: that is for the guest to set.

    :param promised: bytes, the network's own option ``mtu``; it counts over the device's.
    :param carried: bytes, the MTU of the device.
    :raise MtuTooLarge: the NIC would drop frames that everybody else on the network may send.
    :raise HostError: the device carries less than the network promises.
    """
    mtu = promised or carried
    if mtu > offer.mtu:
        raise MtuTooLarge(
            f"network {port.network} carries {mtu} bytes, but the NIC is known to take "
            f"only {offer.mtu}",
            hint=f"give the network mtu={offer.mtu}",
            mtu=mtu,
        )
    if carried < mtu:
        raise HostError(
            f"network {port.network} promises {mtu} bytes, but {device} carries only {carried}",
            hint=f"run 'ip link set {ip_device(device)} mtu {mtu}', or give the network a "
            "smaller mtu",
        )
