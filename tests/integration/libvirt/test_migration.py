"""A guest migrates between two hosts with ``virsh migrate``, and keeps its cable on either.

Two hosts on one machine: each has a libvirtd, a service of linkmgr, a name, a network of its own
and an uplink to the other. What they call `blue` is one layer-2 domain, but not the same bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from linkmgr import Client, EventKind
from linkmgr.errors import NetworkInUse
from linkmgr.libvirt.xml.desired_cables import CABLES_NAMESPACE
from linkmgr.model import LinkState, NicState
from linkmgr.testing import NetnsPeer
from linkmgr.testing.process import Child, Result, execute, until
from tests.hook_copy import write_hook
from tests.integration.libvirtd import DomainGuest, Libvirtd, private_libvirtd, tiny_domain

MAC = "52:54:00:00:00:01"
NIC = f"<interface type='user'><mac address='{MAC}'/><model type='virtio'/></interface>"
CABLE = "<cables><cable nic='ua-net0' network='blue' link='up'/></cables>"
PROGRAMS = Path(sys.executable).parent
#: What the guest does all the time: one connection, numbered lines. busybox has no better client.
TALK = "i=0; while :; do echo $i; i=$((i+1)); usleep 10000; done | nc 10.1.0.1 7000"


@dataclass
class Host:
    """One host: its libvirtd, its service, its side of the network."""

    name: str
    address: str  #: for the guest's memory
    bridge: str
    libvirtd: Libvirtd
    log: Path

    @property
    def socket(self) -> Path:
        return self.libvirtd.run / "linkmgr/linkmgr.sock"

    @property
    def state(self) -> Path:
        return self.libvirtd.root / "state"

    def client(self) -> Client:
        return Client(self.socket, patience=20)

    async def sh(self, command: str) -> str:
        """A shell command in the host's network."""
        return (await execute(["ip", "netns", "exec", self.name, "sh", "-c", command])).output

    def start_service(self) -> Child:
        root = self.libvirtd.root
        config = root / "linkmgr.toml"
        config.write_text(
            f'[libvirt]\nuri = "{self.libvirtd.uri}"\nrun_dir = "{root}/run/libvirt/qemu"\n'
            f'config_dir = "{root}/etc/qemu"\n'
        )
        line = f"exec linkmgr serve --config {config} --state-dir {self.state}"
        environment = [
            "env",
            f"PATH={PROGRAMS}:{os.environ['PATH']}",
            f"LINKMGR_SOCKET={self.socket}",
        ]
        with self.log.open("ab") as log:
            return Child(
                ["ip", "netns", "exec", self.name, *environment, "sh", "-c", line], output=log
            )

    async def devices(self) -> list[str]:
        """The host's devices that are not part of the host."""
        links = json.loads(await self.sh("ip -j link"))
        return sorted(each["ifname"] for each in links if each["ifname"] not in self.own)

    @property
    def own(self) -> set[str]:
        return {"lo", "memory", "trunk", "v-blue", self.bridge}


@asynccontextmanager
async def make_host(name: str, number: int, folder: Path) -> AsyncIterator[Host]:
    """Make a host: its namespace, its bridge, libvirtd with a name and a network of its own."""
    async with contextlib.AsyncExitStack() as undo:
        await execute(["ip", "netns", "add", name])
        undo.push_async_callback(execute, ["ip", "netns", "del", name], check=False)
        wrapper = folder / f"libvirtd-{name}"
        # Another host name than the other's, or libvirt sees that both are one host.
        wrapper.write_text(
            f"#!/bin/sh\nexec unshare --uts nsenter --net=/run/netns/{name} sh -c "
            f'\'hostname {name}; exec libvirtd "$@"\' sh "$@"\n'
        )
        wrapper.chmod(0o755)
        libvirtd = await undo.enter_async_context(private_libvirtd(libvirtd=str(wrapper)))
        host = Host(
            name, f"10.99.0.{number}", f"br-{name}", libvirtd, folder / f"service-{name}.log"
        )
        await host.sh(
            f"ip link set lo up && ip link add {host.bridge} type bridge &&"
            f" ip link set {host.bridge} up"
        )
        write_hook(libvirtd.root / "etc/hooks/qemu")
        await libvirtd.restart()  # it looks for hooks when it starts
        service = host.start_service()
        undo.push_async_callback(service.end, 10)
        try:
            async with host.client() as links:
                await links.create_network("blue", "bridge", bridge=host.bridge)
            yield host
        except BaseException as error:
            error.add_note(f"{name}'s service said: {host.log.read_text()[-4000:]}")
            raise


@dataclass
class Pair:
    """Two hosts, and a peer on their network, to whom the guest talks over one TCP connection."""

    left: Host
    right: Host
    peer: NetnsPeer
    folder: Path
    said: Callable[[], Awaitable[list[int]]]

    async def migrate(self, here: Host, there: Host, *words: str) -> Result:
        """``virsh migrate --live`` with these options too."""
        return await here.libvirtd.try_virsh(
            "migrate", "--live", "--persistent", "--undefinesource", "--migrateuri",
            f"tcp://{there.address}", *words, "web1", there.libvirtd.uri,
            timeout=60,
        )  # fmt: skip

    async def talks(self) -> None:
        """Assert that the connection carries more, and has lost nothing so far."""
        before = len(await self.said())

        async def more() -> bool:
            return len(await self.said()) > before + 5

        await until(more, timeout=10, what="the guest's connection goes on")
        heard = await self.said()
        assert heard == list(range(len(heard)))


@asynccontextmanager
async def guest_on(host: Host) -> AsyncIterator[DomainGuest]:
    async with DomainGuest(host.libvirtd, "web1") as guest:
        await guest.connect()
        yield guest


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Two hosts; the guest runs on the left one, on its cable, and talks."""
    async with (
        make_host("left", 1, tmp_path) as left,
        make_host("right", 2, tmp_path) as right,
        NetnsPeer("station", "v-blue", addresses=["10.1.0.1/24"]) as peer,
    ):
        for kind in ("memory", "trunk"):
            await execute(
                f"ip link add {kind} netns left type veth peer name {kind} netns right".split()
            )
        await execute(["ip", "link", "set", "v-blue", "netns", "left"])
        await left.sh(f"ip link set v-blue master {left.bridge} up")
        for host in (left, right):
            await host.sh(
                f"ip addr add {host.address}/24 dev memory; ip link set memory up;"
                f" ip link set trunk master {host.bridge} up"
            )
        xml = tiny_domain(left.libvirtd, "web1", [NIC], cmdline="lm.ip.eth0=10.1.0.2/24")
        prepared = await asyncio.to_thread(
            subprocess.run, [str(PROGRAMS / "linkmgr"), "prepare", "--xml", "-"],
            input=xml, capture_output=True, text=True, check=True,
        )  # fmt: skip
        await left.libvirtd.define(prepared.stdout)
        await left.libvirtd.virsh(
            "metadata", "web1", CABLES_NAMESPACE, "lm", "--config", "--set", CABLE
        )
        await left.libvirtd.virsh("start", "web1")
        heard = tmp_path / "heard"
        heard.touch()
        # It also sends back what it hears.
        await peer.spawn(f"{peer.busybox} nc -l -p 7000 -e {peer.busybox} tee {heard}")

        async def said() -> list[int]:
            # The last line may not be all there.
            return [int(line) for line in heard.read_text().split("\n")[:-1]]

        async with guest_on(left) as guest:
            assert (await peer.ping("10.1.0.2")).received
            await guest.spawn(TALK)
        yield Pair(left, right, peer, tmp_path, said)


def gap(told: list[tuple[EventKind, datetime]]) -> float:
    """Milliseconds from when the guest ran on the new host to when it was on its cable there."""
    at = dict(told)
    return (at[EventKind.PLUGGED] - at[EventKind.VM_RESUMED]).total_seconds() * 1000


async def test_a_guest_keeps_its_connection_over_a_migration_and_back_and_over_one_that_fails(
    pair: Pair,
) -> None:
    left, right = pair.left, pair.right
    await pair.talks()
    async with left.client() as here, right.client() as there, guest_on(left) as guest:
        changes = await guest.carrier_changes("eth0")
        device = (await here.nic("web1/ua-net0")).connection
        assert device is not None

        # Refused before anything is moved: the network is not described there.
        await there.delete_network("blue")
        refused = await pair.migrate(left, right)
        assert refused.status == 1
        assert "web1/ua-net0: there is no network blue" in refused.output
        # Refused: it is, but cannot be realised.
        await there.create_network("blue", "bridge", bridge="br-nowhere")
        refused = await pair.migrate(left, right)
        assert refused.status == 1
        assert "there is no device br-nowhere" in refused.output
        assert (await here.nic("web1/ua-net0")).connection == device
        await there.delete_network("blue")
        await there.create_network("blue", "bridge", bridge=right.bridge)

        # Cancelled in the middle. Meanwhile its place there is held.
        going = asyncio.create_task(pair.migrate(left, right, "--bandwidth", "1"))
        await until(lambda: _nic_is_there(there), timeout=20, what="a QEMU there")
        with pytest.raises(NetworkInUse, match="web1/ua-net0"):
            await there.delete_network("blue")
        await until(lambda: _moves(left), timeout=20, what="memory is sent")
        await left.libvirtd.virsh("domjobabort", "web1")
        assert (await going).status == 1
        await until(lambda: _nothing_of_it(right), timeout=10, what="nothing is left there")
        assert (await here.nic("web1/ua-net0")).connection == device
        assert await there.delete_network("blue")
        await there.create_network("blue", "bridge", bridge=right.bridge)
        await pair.talks()
        assert await guest.carrier_changes("eth0") == changes

    figures = {}
    for source, target in ((left, right), (right, left)):
        async with target.client() as links:
            heard: list[tuple[EventKind, datetime]] = []
            listening = asyncio.create_task(_listen(links, heard))
            moved = await pair.migrate(source, target)
            assert moved.status == 0, moved.output + source.log.read_text()
            await until(partial(_plugged, target), timeout=10, what="plugged there")
            await pair.talks()
            async with guest_on(target) as guest:
                assert await guest.carrier("eth0")
                assert await guest.carrier_changes("eth0") == changes
                assert (await pair.peer.ping("10.1.0.2")).received
            await until(partial(_nothing_of_it, source), timeout=10, what="nothing is left")
            assert (await links.check()) == []
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            figures[target.name] = gap(heard)
    print("milliseconds without a cable:", figures)  # noqa: T201 - pytest -s
    assert max(figures.values()) < 1000, figures
    await left.libvirtd.virsh("destroy", "web1")
    await until(lambda: _nothing_of_it(left), timeout=10, what="nothing is left")


async def _listen(links: Client, heard: list[tuple[EventKind, datetime]]) -> None:
    async for event in links.events():
        heard.append((event.kind, event.at))


async def _nic_is_there(links: Client) -> bool:
    return any(nic.ref.vm == "web1" for nic in await links.nics())


async def _plugged(host: Host) -> bool:
    async with host.client() as links:
        nics = await links.nics()
    return [(nic.state, nic.link) for nic in nics] == [(NicState.PLUGGED, LinkState.UP)]


async def _moves(host: Host) -> bool:
    info = await host.libvirtd.try_virsh("domjobinfo", "web1")
    return "Memory processed" in info.output


async def _nothing_of_it(host: Host) -> bool:
    """Whether a host has forgotten the guest: no device, no VM, no claim, no document."""
    async with host.client() as links:
        vms = await links.vms()
        with contextlib.suppress(NetworkInUse):
            if vms or await host.devices():
                return False
            # Nothing holds a place on it.
            await links.delete_network("blue")
            await links.create_network("blue", "bridge", bridge=host.bridge)
            return not list((host.state / "vms").glob("*"))
    return False
