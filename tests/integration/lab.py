"""A small lab: networks with a peer each, guests on hubs, a manager; taken down in order."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linkmgr import LinkManager, hub_args
from linkmgr.swap.steps import Probe, no_probe
from linkmgr.testing import Guest, NetnsPeer
from linkmgr.testing.process import execute

SUBNETS = {"blue": 1, "green": 2, "red": 3, "grey": 4}


def mac_of(vm: int, nic: int) -> str:
    """The address of a NIC of a lab guest."""
    return f"52:54:00:00:{vm:02x}:{nic:02x}"


def peer_of(name: str) -> NetnsPeer:
    """The peer of a network, with no address but 10.N.0.1, N as in `SUBNETS`."""
    return NetnsPeer(name, f"v-{name}", addresses=[f"10.{SUBNETS[name]}.0.1/24"])


@asynccontextmanager
async def bridge_of(name: str) -> AsyncIterator[NetnsPeer]:
    """A bridge ``br-NAME`` with `peer_of` that network on it."""
    async with peer_of(name) as peer:
        await execute(["ip", "link", "add", f"br-{name}", "up", "type", "bridge"])
        try:
            await execute(["ip", "link", "set", peer.ifname_outside, "master", f"br-{name}"])
            yield peer
        finally:
            await execute(["ip", "link", "del", f"br-{name}"])


@dataclass
class Lab:
    """What a test needs to hand: ``blue`` and ``red`` are bridges, the others macvtap parents.

    The peer of a network has 10.N.0.1, fd00:N::1 and fe80::1, N as in `SUBNETS`.
    """

    links: LinkManager
    workdir: Path
    peers: dict[str, NetnsPeer] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def sh(self, command: str) -> str:
        """Run a command on the host."""
        return (await execute(["sh", "-c", command])).output

    async def network(self, name: str, driver: str = "", **options: Any) -> NetnsPeer:
        """Build a network: its device, its peer, its description."""
        number = SUBNETS[name]
        driver = driver or ("bridge" if name in ("blue", "red") else "direct")
        outside = f"v-{name}"
        peer = NetnsPeer(
            name,
            outside,
            addresses=[f"10.{number}.0.1/24", f"fd00:{number}::1/64", "fe80::1/64"],
            dhcp_range=(f"10.{number}.0.50", f"10.{number}.0.99"),
        )
        self.peers[name] = await self.stack.enter_async_context(peer)
        if driver == "bridge":
            bridge = f"br-{name}"
            await self.sh(f"ip link add {bridge} type bridge && ip link set {bridge} up")
            self.stack.push_async_callback(execute, ["ip", "link", "del", bridge], check=False)
            await self.sh(f"ip link set {outside} master {bridge}")
            await self.links.create_network(name, driver, bridge=bridge, **options)
        else:
            await self.links.create_network(name, driver, parent=outside, **options)
        return peer

    async def guest(
        self,
        name: str = "web1",
        *,
        nics: int = 1,
        model: str = "virtio-net-pci",
        nic_args: Sequence[str] | None = None,
        cmdline: str = "",
        boot: bool = True,
        add: bool = True,
    ) -> Guest:
        """Start a guest with NICs net0, net1, ... and add it; it runs and has booted."""
        number = len(self.guests) + 1
        args = nic_args or [
            arg
            for nic in range(nics)
            for arg in hub_args(f"net{nic}", mac=mac_of(number, nic), model=model)
        ]
        guest = Guest(name, nic_args=args, workdir=self.workdir, cmdline=cmdline)
        self.guests[name] = await self.stack.enter_async_context(guest)
        if add:
            await self.links.add_vm(name, guest.qmp_path)
        if boot:
            await guest.cont()
            await guest.wait_boot()
        return guest


@asynccontextmanager
async def make_lab(
    workdir: Path, *, timeout: float = 5.0, probe: Probe = no_probe, watch: bool = False
) -> AsyncIterator[Lab]:
    """Build an empty lab; take everything down at the end, the guests last but one."""
    async with contextlib.AsyncExitStack() as stack:
        links = LinkManager(timeout=timeout, probe=probe, watch=watch)
        lab = Lab(links, workdir, stack=stack)
        await stack.enter_async_context(links)
        yield lab
