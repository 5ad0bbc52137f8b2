"""Whether a NIC and a network agree about the size of frames."""

from __future__ import annotations

from linkmgr.errors import HostError, MtuTooLarge
from linkmgr.model import Offer, Port
from linkmgr.text.untrusted import ip_device


def check_mtu(
    offer: Offer, port: Port, *, network_mtu: int | None, device: str, device_mtu: int
) -> None:
    """Refuse a network that carries larger frames than the NIC takes, or than its device does.

    A NIC that takes more than the network carries is fine: that is for the guest to set.

    :param network_mtu: bytes, the network's own option ``mtu``; it counts over the device's.
    :param device_mtu: bytes, the MTU of the device.
    :raise MtuTooLarge: the NIC would drop frames that everybody else on the network may send.
    :raise HostError: the device carries less than the network promises.
    """
    mtu = network_mtu or device_mtu
    if mtu > offer.mtu:
        raise MtuTooLarge(
            f"network {port.network} carries {mtu} bytes, but the NIC is known to take "
            f"only {offer.mtu}",
            hint=f"give the network mtu={offer.mtu}",
            mtu=mtu,
        )
    if device_mtu < mtu:
        raise HostError(
            f"network {port.network} promises {mtu} bytes, but {device} carries only {device_mtu}",
            hint=f"run 'ip link set {ip_device(device)} mtu {mtu}', or give the network a "
            "smaller mtu",
        )
