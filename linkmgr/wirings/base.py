"""What a wiring promises: the NIC's side of a cable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

from linkmgr.host import Fd, FdbEntry
from linkmgr.model import Endpoint, EndpointKind, NicRef, Offer


@dataclass(eq=False)
class Cable:
    """What lies between a NIC and an endpoint. Owned by the connection that it carries.

    It is filled in as `Wiring.stage` goes along, so that `Wiring.release` can take down any part.

    :param id: of the attachment; QEMU's ids and the host device's name are made from it.
    :param endpoint: ``None`` for a foreign cable: one that was found, and that linkmgr has not
        made. It is unplugged like any other, but what is behind it is left alone.
    :param mac: the address that the cable has to deliver to.
    :param hubport_id: QEMU's id of the hub port.
    :param netdev_id: QEMU's id of the netdev behind the hub port.
    """

    id: str
    nic: NicRef
    endpoint: Endpoint | None
    hubport_id: str
    netdev_id: str
    mac: str = ""
    #: Forwarding entries that the bridge had behind the NIC's old port, and has to have behind the
    #: new one.
    withdrawn_entries: list[FdbEntry] = field(default_factory=list)
    #: What the guest uses and its port allows; ``None`` for the address above. Of a macvtap.
    allowed_mac: str | None = None
    allowed_promisc: bool = False  #: as `allowed_mac`, in passthru mode
    device: str | None = None  #: the tap or macvtap on this host, once it exists
    #: Of that, once seen: with it a device that was renamed is found by one request.
    ifindex: int | None = field(default=None, compare=False)
    preferred_ifname: str | None = None  #: name of a new device, if no other has it
    #: Our duplicate of the fd that QEMU has. It must outlive QEMU's own: closing a tap's last fd
    #: inside QEMU stalls the guest for 20 ms.
    fd: Fd | None = field(default=None, repr=False)
    #: Settings of others on the replaced cable's device, which this one's has not: in words.
    lost_settings: list[str] = field(default_factory=list)
    netdev_added: bool = False  #: whether QEMU may have the netdev
    reused: bool = False  #: whether it takes the NIC's present device, fd and netdev
    fd_named: bool = False  #: whether QEMU may have the fd under a name (``getfd``)
    hub_number: int | None = None  #: of the NIC's hub in QEMU
    rediscovered: bool = False  #: made by an earlier run, but in no journal
    prestaged: bool = False  #: whether it is plugged in beside the old one, with its device down


class Wiring(ABC):
    """One way to hold a NIC. An instance serves the NICs of one VM.

    Every method may be called again after it failed: each looks at QEMU and the kernel first.
    """

    name: ClassVar[str]
    #: The endpoint kinds that it can take, in order of preference.
    kinds: ClassVar[tuple[EndpointKind, ...]]

    @abstractmethod
    async def offer(self, nic: NicRef) -> Offer:
        """What this NIC can take.

        :raise CannotAttach: when its cable cannot change; the hint says how to boot it.
        """

    @abstractmethod
    async def recognise(self, cable: Cable) -> None:
        """Fill in a cable that `inspect` found if an earlier run of linkmgr made it."""

    @abstractmethod
    def new_cable(self, ident: str, offer: Offer, endpoint: Endpoint) -> Cable:
        """Describe the cable for an attachment, before anything of it exists."""

    @abstractmethod
    async def adopt(self, cable: Cable) -> None:
        """Take over a cable that an earlier run of linkmgr made, plugged in or not.

        Its device gets the shape that the endpoint asks for; what is missing is left missing.

        :raise MonitorError: when QEMU does not answer.
        """

    @abstractmethod
    async def sweep(self, known: Collection[str], begun: Collection[str]) -> None:
        """Take out of QEMU what an earlier run left there.

        :param known: ids of the cables that stay.
        :param begun: ids of cables that were being made: QEMU may hold their fds under a name.
        :raise MonitorError: when QEMU does not answer.
        """

    @abstractmethod
    async def stage(self, cable: Cable, replacing: Cable | None) -> None:
        """Prepare the new cable beside the old one. Here is where failures happen.

        The guest notices nothing. After a failure `release` takes down what there is.

        :param replacing: the NIC's present cable.
        :raise HostError: when the kernel refuses.
        :raise MonitorError: when QEMU does.
        """

    @abstractmethod
    async def switch(self, nic: NicRef, new: Cable | None, old: Cable | None) -> None:
        """Take the NIC from the old cable to the new one, or to none.

        :raise SwitchFailed: when the NIC is not exactly on the new cable; then call `switch_back`.
        """

    @abstractmethod
    async def switch_back(self, nic: NicRef, new: Cable | None, old: Cable | None) -> None:
        """Undo a switch, whatever it got to. Nothing to undo is fine."""

    @abstractmethod
    async def release(self, cable: Cable) -> None:
        """Take a cable down on which no NIC is. Repeats freely.

        :raise MonitorError: when QEMU is alive but does not answer: call again when it does.
        """

    @abstractmethod
    async def name_device(self, cable: Cable, name: str | None) -> None:
        """Give the host's device of the NIC's cable a name, live. Repeats freely.

        Nothing happens to a cable whose device is its owner's, or gone, or does not go with QEMU.

        :param name: ``None`` for the one that linkmgr makes itself.
        :raise HostError: when it cannot have that name; it keeps the one that it has.
        """

    @abstractmethod
    def close(self) -> None:
        """Close our fd of every cable, when linkmgr ends.

        NICs stay plugged: QEMU has fds of its own.
        """

    @abstractmethod
    async def set_link(self, nic: NicRef, *, up: bool) -> None:
        """Set the carrier that the guest sees."""

    @abstractmethod
    async def announce(self, cable: Cable, *, moved: bool) -> None:
        """Have the NIC's address announced to its network (RARP, and GARP by the guest).

        Nothing happens when another NIC has that address there now.

        :param moved: whether the NIC comes from another network.
        """

    @abstractmethod
    async def teach_address(self, cable: Cable) -> None:
        """Have the network that the NIC has come to learn its address (RARP), and nothing else.

        The guest says nothing: what it would say of itself (GARP, NA) belongs to the network that
        it has left. Nothing happens when another NIC has that address there now.
        """

    @abstractmethod
    async def inspect(self, nic: NicRef) -> list[Cable]:
        """Read what the NIC is plugged into now: as foreign cables, known by QEMU's ids only.

        One that may be of an earlier run has its `Cable.id`, any other an empty one.

        :raise CannotAttach: when the NIC is not wired in this way.
        """

    @abstractmethod
    async def follow_rx_filter(self, cable: Cable) -> list[str]:
        """Bring the host's device in line with the guest's receive filter.

        :return: sentences, of what the filter asks for and the guest does not get.
        """
