"""The lab of a soak, and the rounds of it: every NIC through every kind of swap and home again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.served import ServiceProcess
from bench.soak.census import Census, take
from linkmgr import Client, hub_args
from linkmgr.testing import Guest, NetnsPeer
from linkmgr.testing.guest import MEMORY_MIB
from linkmgr.testing.process import execute

__all__ = ["SWAPS_PER_CYCLE", "Soak", "make_soak"]

SWAPS_PER_CYCLE = 4  # swaps
#: Every so many cycles of a NIC the guest and the network hear of its swaps, which takes seconds;
#: and it is unplugged, and its link goes down and up.
_THOROUGH_EVERY = 16


@dataclass
class Soak:
    """Guests, a service, and how far they are.

    ``blue`` and ``red`` are bridges, ``green`` is a macvtap parent. A NIC's home is a port of its
    own on ``blue``, where it has another one.

    :param events: that a client has heard, by kind.
    """

    service: ServiceProcess
    guests: list[Guest]
    nics: list[str]
    events: Counter[str] = field(default_factory=Counter)
    swaps: int = 0
    _cycles: Counter[str] = field(default_factory=Counter)

    async def round(self, cycles: int, tick: Callable[[], None], *, until: float) -> Census:
        """Run cycles of `SWAPS_PER_CYCLE` swaps on each NIC, all NICs at once, and count.

        :param until: the time of the loop's clock when no cycle is begun any more.
        :raise LinkmgrError: when a swap fails.
        :raise RuntimeError: when a check finds something in the end.
        """
        clock = asyncio.get_running_loop().time

        async def cycle_on(nic: str) -> None:
            async with self.service.client() as client:
                for _ in range(cycles):
                    if clock() < until:
                        await self._cycle(client, nic)
                        self.swaps += SWAPS_PER_CYCLE
                        tick()

        async with asyncio.TaskGroup() as group:
            for nic in self.nics:
                group.create_task(cycle_on(nic))
        async with self.service.client() as client:
            if findings := await client.check():
                raise RuntimeError(f"after {self.swaps} swaps: {findings}")
        return await take(self.swaps, self.service, self.guests)

    async def _cycle(self, client: Client, nic: str) -> None:
        number = self._cycles[nic]
        self._cycles[nic] += 1
        home, other = _ports(nic)
        # Different NICs at different times, so that there are always some who wait for a guest.
        thorough = (number + self.nics.index(nic)) % _THOROUGH_EVERY == 0
        for target in (other, "red", "green", home):
            await client.plug(nic, target, notify="auto" if thorough else "silent")
        if thorough:
            await client.unplug(nic)
            await client.plug(nic, home, notify="silent")
            await client.set_link(nic, "down")
            await client.set_link(nic, "up")
            await client.vms()


@asynccontextmanager
async def make_soak(
    workdir: Path, *, guests: int, nics: int, config: str = ""
) -> AsyncIterator[Soak]:
    """Build the networks, boot the guests, start the service, bring all NICs home."""
    async with contextlib.AsyncExitStack() as stack:
        for network in ("blue", "red"):
            await _ip(f"link add br-{network} type bridge mcast_snooping 0")
            stack.push_async_callback(_ip, f"link del br-{network}")
            await _ip(f"link set br-{network} up")
        await stack.enter_async_context(NetnsPeer("green", "v-green"))
        service = await stack.enter_async_context(ServiceProcess(workdir, config=config))
        made = [
            await stack.enter_async_context(_guest(f"web{number}", number, nics, workdir))
            for number in range(guests)
        ]
        soak = Soak(service, made, [f"{vm.name}/net{nic}" for vm in made for nic in range(nics)])
        async with service.client() as client:
            for network in ("blue", "red"):
                await client.create_network(network, "bridge", bridge=f"br-{network}")
            await client.create_network("green", "direct", parent="v-green")
            for guest in made:
                await client.add_vm(guest.name, guest.qmp_path)
                await guest.cont()
            for nic in soak.nics:
                for port in _ports(nic):
                    await client.create_port(*port.split(":"))
                await client.plug(nic, _ports(nic)[0])
        for guest in made:
            await guest.wait_boot()
        async with _listening(soak):
            yield soak


@asynccontextmanager
async def _listening(soak: Soak) -> AsyncIterator[None]:
    """Hear every event, as a program does that runs for ever."""

    async def listen(client: Client) -> None:
        async for event in client.events():
            soak.events[event.kind.value] += 1

    async with soak.service.client() as client:
        task = asyncio.create_task(listen(client))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _ports(nic: str) -> tuple[str, str]:
    name = nic.replace("/", "-")
    return f"blue:{name}-a", f"blue:{name}-b"


def _guest(name: str, number: int, nics: int, workdir: Path) -> Guest:
    args = [
        arg
        for nic in range(nics)
        for arg in hub_args(f"net{nic}", mac=f"52:54:00:50:{number:02x}:{nic:02x}")
    ]
    # In shared memory the guest's RAM can be told from QEMU's own: that one only must not grow.
    ram = f"memory-backend-memfd,id=ram,share=on,size={MEMORY_MIB}M"
    extra = ["-object", ram, "-machine", "memory-backend=ram"]
    return Guest(name, nic_args=args, workdir=workdir, memory_mib=MEMORY_MIB, extra_args=extra)


async def _ip(command: str) -> None:
    await execute(["ip", *command.split()])
