"""Places on networks for guests that are on their way here: the first phase of a migration.

Two phases, as in Neutron's bindings of a port on two hosts: here the network side is made before
the guest leaves the other host, so that what can fail fails while it still runs there; the second
phase is an ordinary plug, when its processors run here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from linkmgr.drivers import Attachment, NetworkDriver
from linkmgr.errors import AlreadyExists, LinkmgrError
from linkmgr.model import DEFAULT_MTU, NicRef, Offer, Port
from linkmgr.networks import Networks
from linkmgr.wirings import HubWiring

log = logging.getLogger(__name__)

#: Seconds for which a place is held for a guest of which nothing is seen.
EXPIRES = 60.0


@dataclass(frozen=True)
class _Place:
    port: Port
    driver: NetworkDriver
    attachment: Attachment


class Reservations:
    """Which NICs have a place, and where. In memory only: a restart gives all of them up.

    :param mac_of: the address of a NIC that is here.
    :param is_here: whether a VM's guest, or what was one when linkmgr last ran, is here.
    :param start: runs a coroutine as a task that is waited for in the end.
    """

    def __init__(
        self,
        networks: Networks,
        *,
        mac_of: Callable[[NicRef], str | None],
        is_here: Callable[[str], bool],
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._networks = networks
        self._mac_of = mac_of
        self._is_here = is_here
        self._start = start
        self._places: dict[NicRef, _Place] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __contains__(self, nic: NicRef) -> bool:
        return nic in self._places

    async def make(
        self, nic: str | NicRef, target: str, *, mac: str, mtu: int = DEFAULT_MTU
    ) -> None:
        """Have a network or port ready for a NIC that is not here yet, and hold it.

        A `plug` of the NIC ends it, and so does the end of its VM. It expires if the VM is not seen
        here within `EXPIRES` seconds. A NIC that has another place gives that up.

        :param target: ``NETWORK`` or ``NETWORK:PORT``.
        :param mac: the NIC's configured address.
        :param mtu: bytes, the NIC's ``host_mtu``.
        :raise LinkmgrError: it could not be plugged there; nothing is held.
        """
        ref = NicRef.parse(nic)
        try:
            if self._is_here(ref.vm):
                raise AlreadyExists(
                    f"a VM {ref.vm} is on this host already", hint="remove it first"
                )
            port = self._networks.port(target, ref)
            await asyncio.shield(self._start(self._make(ref, port, mac.lower(), mtu)))
        except LinkmgrError as error:
            raise error.about(str(ref), "not on this host") from None

    async def _make(self, ref: NicRef, port: Port, mac: str, mtu: int) -> None:
        await self.end(ref)
        self._networks.refuse_same_address(port, ref, mac, self._mac_of)
        self._networks.claim(port, ref)
        driver = self._networks.driver(port.network.driver)
        try:
            offer = Offer(ref, HubWiring.kinds, mac=mac, mtu=mtu)
            attachment = await driver.init_attachment(offer, port)
        except BaseException:
            self._networks.free(port, ref)
            raise
        place = self._places[ref] = _Place(port, driver, attachment)
        try:
            await attachment.realise()
        except BaseException:
            if self._places.get(ref) is place:
                await self.end(ref)
            else:
                await self._terminate(ref, place)
            raise
        if self._places.get(ref) is place:
            self._expire_later(ref.vm)
        else:  # it was given up meanwhile, too early for what was made since
            await self._terminate(ref, place)

    async def end(self, nic: NicRef, *, keeps: Port | None = None) -> None:
        """Give a NIC's place up; nothing happens if it has none.

        :param keeps: the port that the NIC is plugged into by now.
        """
        if (ending := self._drop(nic, keeps)) is not None:
            await asyncio.wait({ending})

    def _drop(self, nic: NicRef, keeps: Port | None = None) -> asyncio.Task[None] | None:
        """Forget a NIC's place; who goes away before the network has freed it stops nothing."""
        place = self._places.pop(nic, None)
        if place is None:
            return None
        if place.port != keeps:
            self._networks.free(place.port, nic)
        return self._start(self._terminate(nic, place))

    async def _terminate(self, nic: NicRef, place: _Place) -> None:
        try:
            await place.driver.terminate_attachment(place.attachment)
        except Exception as error:  # noqa: BLE001 - a driver may raise anything
            log.warning("%s: what was held for it on %s stays: %s", nic, place.port, error)

    async def end_all(self, vm: str | None = None) -> None:
        """Give up the places of all NICs of a VM, or of all VMs."""
        for name in [vm] if vm is not None else list(self._timers):
            if timer := self._timers.pop(name, None):
                timer.cancel()
        nics = [nic for nic in self._places if vm in (None, nic.vm)]
        if endings := {ending for nic in nics if (ending := self._drop(nic))}:
            await asyncio.wait(endings)

    def _expire_later(self, vm: str) -> None:
        if timer := self._timers.pop(vm, None):
            timer.cancel()
        self._timers[vm] = asyncio.get_running_loop().call_later(EXPIRES, self._expire, vm)

    def _expire(self, vm: str) -> None:
        self._timers.pop(vm, None)
        if not self._is_here(vm) and any(nic.vm == vm for nic in self._places):
            log.warning("VM %s has not come: the places that were held for it are given up", vm)
            self._start(self.end_all(vm))
