"""One world: guests that wait, a service that is killed, and devices of others beside ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.soak.kills.inspection import Inspection, devices
from linkmgr import Client, hub_args
from linkmgr.errors import LinkmgrError, ServiceGone
from linkmgr.host.netlink.link import DEVICE_GROUP
from linkmgr.testing import Guest
from linkmgr.testing.process import execute
from tests.integration.nursery import Nursery

__all__ = ["Faults", "World", "make_world"]

VM = "web1"
NICS = 2
#: Networks and the bridges that linkmgr makes for them; green is reached by macvtap.
MADE = {"blue": "lmbr-blue", "red": "lmbr-red"}
NETWORKS = (*MADE, "green")
#: Seconds in which all must be well after a restart. A repair is tried again after up to 8 s.
SETTLE_TIMEOUT_S = 20.0
#: Other managers' devices, which look like ours as far as they can.
OTHERS = f"""
ip link add v-green type veth peer name v-greens
ip link set v-green addrgenmode none up
ip link set v-greens addrgenmode none up
ip link add op-br group {DEVICE_GROUP} type bridge
ip link set op-br addrgenmode none up
ip link set v-greens master op-br
ip link add lm-op-br type bridge
ip link set lm-op-br alias 'uplink of the office'
ip tuntap add op-tap mode tap
ip link set op-tap alias linkmgr
ip link add op-mv link v-green type macvtap mode bridge
ip link add lm0badcafe group {DEVICE_GROUP} type veth peer name lm1badcafe
"""


class Faults(Exception):
    """Something is not as it must be."""


@dataclass
class World:
    """The service, its guest, and how often it was killed at what.

    :param takes: seconds that each kind of work takes undisturbed, as last seen.
    """

    nursery: Nursery
    inspection: Inspection
    client: Client
    dice: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    interrupted: int = 0
    takes: dict[str, float] = field(default_factory=dict)

    async def kill_once(self) -> None:
        """Kill the service in something, now and then in its recovery too; see that all is well.

        :raise Faults: it is not.
        """
        nic = f"{VM}/net{self.dice.randrange(NICS)}"
        connection = (await self.client.nic(nic)).connection
        here = connection.network if connection else None
        if here is None:
            target = self.dice.choice(NETWORKS)
            what, allowed = "plug", {None, target}
            await self._killed_in(what, self.client.plug(nic, target, notify="silent"))
        elif self.dice.random() < 0.2 and connection:
            what, allowed = "repair", {here}
            await self._break(connection.device, here)
            await self._killed_in(what, self._repaired(nic))
        elif self.dice.random() < 0.3:
            what, allowed = "unplug", {here, None}
            await self._killed_in(what, self.client.unplug(nic))
        else:
            target = self.dice.choice([each for each in NETWORKS if each != here])
            what, allowed = "swap", {here, target}
            await self._killed_in(what, self.client.plug(nic, target, notify="silent"))
        while self.dice.random() < 0.3:
            await self.nursery.serve()
            await self._killed_in("recovery", self.client.vms())
        await self._start()
        await self.settled()
        now = (await self.client.nic(nic)).connection
        if (now.network if now else None) not in allowed:
            raise Faults(f"{what} of {nic} from {here}: it is on {now and now.network} now")

    async def settled(self) -> None:
        """Wait until all is as it must be.

        :raise Faults: it never is.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + SETTLE_TIMEOUT_S
        while faults := await self.inspection.faults(self.client):
            if clock() > end:
                raise Faults("; ".join(faults))
            await asyncio.sleep(0.1)

    async def _killed_in(self, what: str, work: Awaitable[object]) -> None:
        """Kill the service at a random time of the work."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        task = asyncio.ensure_future(work)
        await asyncio.wait([task], timeout=self.dice.uniform(0, 1.2 * self.takes.get(what, 0.2)))
        took, done = clock() - begun, task.done()
        os.kill(self.nursery.pid, signal.SIGKILL)
        await self.nursery.ended()
        self.kills[what] += 1
        if done:
            self.takes[what] = took
        else:
            self.interrupted += 1
        task.cancel()
        try:
            await task
        except (ServiceGone, asyncio.CancelledError):
            pass
        except LinkmgrError as error:
            raise Faults(f"{what}: {error}") from error

    async def _break(self, device: str, network: str) -> None:
        """Do to a cable's device what a careless operator does."""
        harms = [f"ip link set {device} down"]
        harms += [f"ip link set {device} nomaster"] if network in MADE else []
        await execute(["sh", "-c", self.dice.choice(harms)])

    async def _repaired(self, nic: str) -> None:
        while (await self.client.check()) or (await self.client.nic(nic)).connection is None:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)

    async def _start(self) -> None:
        begun = asyncio.get_running_loop().time()
        await self.nursery.serve()
        await self.client.vms()
        self.takes["recovery"] = asyncio.get_running_loop().time() - begun


@asynccontextmanager
async def make_world(folder: Path, seed: str) -> AsyncIterator[World]:
    """Build one, with all NICs unplugged, and take it down; the process is in a sandbox."""
    before = await devices()
    args = [
        arg for nic in range(NICS) for arg in hub_args(f"net{nic}", mac=f"52:54:00:51:00:{nic:02x}")
    ]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_remove_all_but, before.keys())
        await execute(["sh", "-ec", OTHERS])
        guest = await stack.enter_async_context(Guest(VM, nic_args=args, workdir=folder))
        nursery = await stack.enter_async_context(Nursery(folder))
        there = {name: device for name, device in (await devices()).items() if name not in before}
        inspection = Inspection(nursery.state, guest, MADE, there, frozenset(before))
        await nursery.serve()
        client = await stack.enter_async_context(Client(nursery.socket, patience=60))
        await client.add_vm(VM, guest.qmp_path)
        for network, bridge in MADE.items():
            await client.create_network(network, "bridge", bridge=bridge, create=True)
        await client.create_network("green", "direct", parent="v-green")
        yield World(nursery, inspection, client, random.Random(seed))


async def _remove_all_but(names: Collection[str]) -> None:
    while left := (await devices()).keys() - names:
        await execute(["ip", "link", "del", min(left)])
