"""What is measured: one guest, a NIC of it on a hub, two on taps that never change."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from linkmgr import LinkManager, Outcome, hub_args
from linkmgr.testing import Guest, NetnsPeer
from linkmgr.testing.process import execute

__all__ = ["BRIDGE", "DIRECT", "MAC", "Lab", "make_lab"]

VM = "bench"
NIC = f"{VM}/net0"
MAC = "52:54:00:be:00:00"
BRIDGE, DIRECT, PLAIN, OFFLOAD = "bridge", "direct", "plain", "offload"
SUBNETS = {BRIDGE: 1, DIRECT: 2, PLAIN: 3, OFFLOAD: 4}


@dataclass
class Lab:
    """A booted guest and what is at the other ends of its cables.

    ``eth0`` is on a hub; it is plugged into the networks ``bridge`` and ``direct``, which have the
    ports a and b. ``eth1`` is on a tap without virtio-net header, ``eth2`` on one with, which is
    what lets the guest leave checksums and segmentation to the host. Each has a bridge of its own.
    """

    manager: LinkManager
    guest: Guest
    peers: dict[str, NetnsPeer]
    _turns: dict[str, Iterator[str]] = field(default_factory=dict)

    async def swap(self, network: str, *, notify: str = "auto") -> Outcome:
        """Plug eth0 into the network's other port."""
        turn = self._turns.setdefault(network, cycle(["a", "b"]))
        return await self.manager.plug(NIC, f"{network}:{next(turn)}", notify=notify)

    async def settle(self, network: str) -> None:
        """Bring eth0 to the network and wait until guest and peer reach each other."""
        await self.swap(network, notify="silent")
        number = SUBNETS[network]
        await self.guest.run(
            f"ip addr flush dev eth0; ip addr add 10.{number}.0.2/24 dev eth0", check=True
        )
        await self.guest.ping(self.address(network), count=5)

    def address(self, name: str) -> str:
        """The peer's address."""
        return f"10.{SUBNETS[name]}.0.1"


@asynccontextmanager
async def make_lab(workdir: Path) -> AsyncIterator[Lab]:
    """Build it, boot the guest, and take everything down at the end."""
    async with contextlib.AsyncExitStack() as stack:
        peers = {}
        for name, number in SUBNETS.items():
            peer = NetnsPeer(name, f"v-{name}", addresses=[f"10.{number}.0.1/24"])
            peers[name] = await stack.enter_async_context(peer)
            if name != DIRECT:
                await _ip(f"link add br-{name} type bridge mcast_snooping 0")
                stack.push_async_callback(_ip, f"link del br-{name}")
                await _ip(f"link set br-{name} up")
                await _ip(f"link set v-{name} master br-{name}")
        manager = await stack.enter_async_context(LinkManager())
        await manager.create_network(BRIDGE, "bridge", bridge=f"br-{BRIDGE}")
        await manager.create_network(DIRECT, "direct", parent=f"v-{DIRECT}")
        for network in (BRIDGE, DIRECT):
            for port in ("a", "b"):
                await manager.create_port(network, port)
        guest = Guest(
            VM,
            nic_args=[*hub_args("net0", mac=MAC), *_tap(PLAIN, "off"), *_tap(OFFLOAD, "on")],
            cmdline=" ".join(
                f"lm.ip.{nic}=10.{SUBNETS[name]}.0.2/24"
                for nic, name in (("eth1", PLAIN), ("eth2", OFFLOAD))
            ),
            workdir=workdir,
        )
        await stack.enter_async_context(guest)
        for name in (PLAIN, OFFLOAD):
            await _ip(f"link set tap-{name} master br-{name} up")
        await manager.add_vm(VM, guest.qmp_path)
        await guest.cont()
        await guest.wait_boot()
        lab = Lab(manager, guest, peers)
        await lab.settle(BRIDGE)
        yield lab


def _tap(name: str, vnet_hdr: str) -> list[str]:
    tap = f"tap,id={name},ifname=tap-{name},script=no,downscript=no,vnet_hdr={vnet_hdr}"
    mac = f"52:54:00:be:00:{SUBNETS[name]:02x}"
    return ["-netdev", tap, "-device", f"virtio-net-pci,id={name}0,netdev={name},mac={mac}"]


async def _ip(command: str) -> None:
    await execute(["ip", *command.split()])
