"""What a network driver promises, and in which order it is called.

The interface is the one that Ian Wells proposed to OpenStack in 2012/13 ("VIF plugging"): the
hypervisor side says what it can take (`Offer`), the network side picks one of those kinds and puts
it in place (`Endpoint`), and neither knows the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from linkmgr.drivers.options import Option, check_options, defaults
from linkmgr.errors import NoCommonEndpoint
from linkmgr.host import Host
from linkmgr.model import Endpoint, EndpointKind, Network, Offer, Options, Port


class Attachment(ABC):
    """One NIC's claim on a port, made by `NetworkDriver.init_attachment`.

    :param id: eight hexadecimal digits, unique on this host.
    """

    def __init__(self, ident: str, offer: Offer, port: Port, kind: EndpointKind) -> None:
        self.id = ident
        self.offer = offer
        self.port = port
        self.kind = kind

    @abstractmethod
    async def realise(self) -> Endpoint:
        """Make the endpoint exist on this host.

        Called once, after `init_attachment` and before the NIC is brought there. Whatever it made
        before it failed is freed by `NetworkDriver.terminate_attachment`.

        :raise HostError: when the host has not got what the network needs.
        :raise MtuTooLarge: when the network carries more than the NIC can take.
        """

    async def activate(self) -> None:  # noqa: B027 - most drivers have no second phase
        """Say that the NIC is on the endpoint now: the second phase of a binding.

        Called after the switch and also after a failed switch went back to this attachment.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.offer.nic} on {self.port}>"


class NetworkDriver(ABC):
    """Makes endpoints of one technology. One instance serves all networks of its kind."""

    #: The name by which networks choose the driver.
    name: ClassVar[str]
    #: The endpoint kinds that it can supply.
    kinds: ClassVar[tuple[EndpointKind, ...]]
    #: What `Network.options` and `Port.options` may contain.
    network_options: ClassVar[Mapping[str, Option]]
    port_options: ClassVar[Mapping[str, Option]]

    def __init__(self, host: Host) -> None:
        self.host = host

    def check_network(self, network: Network) -> Options:
        """Return the network's options in their proper types. Called when one is created.

        A port's options may be given to its network too: they are then the default of its ports.

        :raise BadOption: names the option and what it may be. Nothing on the host is looked at:
            a network may be described before its bridge exists.
        """
        known = {**self.port_options, **self.network_options}
        return check_options(f"network {network}", known, network.options)

    def check_port(self, port: Port) -> Options:
        """Return the port's options in their proper types. Called when one is created.

        :raise BadOption: names the option and what it may be.
        """
        return check_options(f"port {port}", self.port_options, port.options)

    def settings(self, port: Port) -> dict[str, Any]:
        """What holds for the port: its own options over its network's over the defaults."""
        known = {**self.port_options, **self.network_options}
        return {**defaults(known), **port.network.options, **port.options}

    async def missing(self, network: Network) -> str | None:  # noqa: ARG002 - most need nothing
        """What a plug into the network would fail for as the host is now; ``None`` for nothing.

        A network may be described before its device exists, and its device may go. Only looks.
        """
        return None

    async def forget_network(self, network: Network) -> None:  # noqa: B027 - most keep nothing
        """Free what the driver keeps for the network beside its attachments.

        Called when it is deleted, after its last attachment was terminated, and after a restart of
        linkmgr when every attachment that outlived it has been claimed again.
        """

    def may_make(self, network: Network) -> frozenset[str]:  # noqa: ARG002 - most make nothing
        """Names of the devices that `Attachment.realise` may make for the network."""
        return frozenset()

    def negotiate(self, offer: Offer, port: Port) -> EndpointKind:
        """Pick the first kind of the offer that this driver supplies.

        :raise NoCommonEndpoint: says what was wanted and what could be had.
        """
        for kind in offer.kinds:
            if kind in self.kinds:
                return kind
        wanted = ", ".join(offer.kinds) or "nothing"
        raise NoCommonEndpoint(
            f"network {port.network} (driver {self.name}) supplies {', '.join(self.kinds)}, "
            f"but the NIC's wiring takes {wanted}",
            hint="plug into a network of another driver, or boot the NIC with another wiring",
        )

    @abstractmethod
    async def init_attachment(
        self, offer: Offer, port: Port, *, ident: str | None = None
    ) -> Attachment:
        """Claim the port for the NIC of the offer. Touches nothing on the host.

        :param ident: of an attachment that outlived a restart of linkmgr: claim it again under its
            id. The NIC may be on its endpoint already, and then `realise` is not called.
        :raise NoCommonEndpoint: when the negotiation fails.
        """

    @abstractmethod
    async def terminate_attachment(self, attachment: Attachment) -> None:
        """End the claim and free everything that it held.

        Called after the NIC has left the endpoint, also when `realise` failed or never ran, and
        possibly twice: what is already gone is no error.
        """
