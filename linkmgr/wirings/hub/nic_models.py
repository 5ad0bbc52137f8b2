"""NIC models of QEMU that do not show their guest that its carrier changes.

Read in QEMU's source (a model without ``link_status_changed`` hears nothing of ``set_link``) and
seen in guests; docs/operations.md has the table.
"""

from __future__ import annotations

import re

#: Never, in any QEMU: hw/net/ne2000-isa.c, ne2000-pci.c, tulip.c, eepro100.c, hw/usb/dev-network.c.
NEVER_SHOW_CARRIER = frozenset(
    {
        *("ne2k_isa", "ne2k_pci", "tulip", "usb-net"),
        *("i82550", "i82551", "i82557a", "i82557b", "i82557c", "i82558a", "i82558b"),
        *("i82559a", "i82559b", "i82559c", "i82559er", "i82562", "i82801"),
    }
)

#: Model -> major version of the first QEMU that was seen to show it. Before, Linux got no interrupt
#: from it and saw a carrier come, because it polls while there is none, but never go.
SHOW_CARRIER_SINCE = {"e1000e": 10}


def shows_carrier(model: str, build: str) -> bool:
    """Whether the guest can see the carrier of a NIC of this model change.

    :param build: version of QEMU, such as ``7.2.22 (Debian ...) x86_64``.
    """
    since = SHOW_CARRIER_SINCE.get(model, 0)
    major = re.match(r"\d+", build)
    return model not in NEVER_SHOW_CARRIER and (major is None or int(major[0]) >= since)


def unseen_carrier(model: str) -> str:
    """What an outcome says when a carrier changed that the guest does not see."""
    return (
        f"the guest does not see that its carrier changed: QEMU's {model} does not show it. Frames "
        "stop and pass all the same. To do: if the network is another one, renew the address in "
        "the guest; a NIC of model virtio-net-pci shows it"
    )
