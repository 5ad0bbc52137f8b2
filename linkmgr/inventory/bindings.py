"""Port bindings for guests that are on their way here: the first phase of a migration.

Two phases, as in Neutron's bindings of a port to two hosts: here the network side is made before
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
from linkmgr.inventory.networks import Networks
from linkmgr.model import DEFAULT_MTU, NicRef, Offer, Port
from linkmgr.wirings import HubWiring

log = logging.getLogger(__name__)

#: Seconds until the bindings of a guest of which nothing is seen are released.
BINDING_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class _Binding:
    port: Port
    driver: NetworkDriver
    attachment: Attachment


class PortBindings:
    """The port bindings of NICs that are not here yet. In memory only: a restart loses them.

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
        self._bindings: dict[NicRef, _Binding] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __contains__(self, nic: NicRef) -> bool:
        return nic in self._bindings

    async def bind(
        self, nic: str | NicRef, target: str, *, mac: str, mtu: int = DEFAULT_MTU
    ) -> None:
        """Bind a NIC that is not here yet to a port: have its network side ready, and hold it.

        A `plug` of the NIC releases the binding, and so does the end of its VM. It expires if the
        VM is not seen here within `BINDING_TIMEOUT_S`. An earlier binding of the NIC is released.

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
            await asyncio.shield(self._start(self._bind(ref, port, mac.lower(), mtu)))
        except LinkmgrError as error:
            raise error.about(str(ref), "not on this host") from None

    async def _bind(self, ref: NicRef, port: Port, mac: str, mtu: int) -> None:
        await self.release(ref)
        self._networks.refuse_same_address(port, ref, mac, self._mac_of)
        self._networks.claim(port, ref)
        driver = self._networks.driver(port.network.driver)
        try:
            offer = Offer(ref, HubWiring.kinds, mac=mac, mtu=mtu)
            attachment = await driver.init_attachment(offer, port)
        except BaseException:
            self._networks.free(port, ref)
            raise
        binding = self._bindings[ref] = _Binding(port, driver, attachment)
        try:
            await attachment.realise()
        except BaseException:
            if self._bindings.get(ref) is binding:
                await self.release(ref)
            else:
                await self._terminate(ref, binding)
            raise
        if self._bindings.get(ref) is binding:
            self._expire_later(ref.vm)
        else:  # it was given up meanwhile, too early for what was made since
            await self._terminate(ref, binding)

    async def release(self, nic: NicRef, *, keeps: Port | None = None) -> None:
        """Release a NIC's binding; nothing happens if it has none.

        :param keeps: the port that the NIC is plugged into by now.
        """
        if (ending := self._drop(nic, keeps)) is not None:
            await asyncio.wait({ending})

    def _drop(self, nic: NicRef, keeps: Port | None = None) -> asyncio.Task[None] | None:
        """Forget a NIC's binding, and free the network side in a task of its own."""
        binding = self._bindings.pop(nic, None)
        if binding is None:
            return None
        if binding.port != keeps:
            self._networks.free(binding.port, nic)
        return self._start(self._terminate(nic, binding))

    async def _terminate(self, nic: NicRef, binding: _Binding) -> None:
        try:
            await binding.driver.terminate_attachment(binding.attachment)
        except Exception as error:  # noqa: BLE001 - a driver may raise anything
            log.warning("%s: its binding to %s is not freed: %s", nic, binding.port, error)

    async def release_all(self, vm: str | None = None) -> None:
        """Release the bindings of all NICs of a VM, or of all VMs."""
        for name in [vm] if vm is not None else list(self._timers):
            if timer := self._timers.pop(name, None):
                timer.cancel()
        nics = [nic for nic in self._bindings if vm in (None, nic.vm)]
        if endings := {ending for nic in nics if (ending := self._drop(nic))}:
            await asyncio.wait(endings)

    def _expire_later(self, vm: str) -> None:
        if timer := self._timers.pop(vm, None):
            timer.cancel()
        self._timers[vm] = asyncio.get_running_loop().call_later(
            BINDING_TIMEOUT_S, self._expire, vm
        )

    def _expire(self, vm: str) -> None:
        self._timers.pop(vm, None)
        if not self._is_here(vm) and any(nic.vm == vm for nic in self._bindings):
            log.warning("VM %s has not come: its port bindings are released", vm)
            self._start(self.release_all(vm))
