"""One guest and a linkmgr that is killed and started again, and how all agree afterwards."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from linkmgr import LinkManager, LinkState, Nic, NicState
from linkmgr.swap.steps import Step
from linkmgr.testing.process import until
from tests.integration.failures_lab import NIC, no_frame_lost
from tests.integration.forks import Forks
from tests.integration.lab import Lab, make_lab

NAME = "lmtap0"  #: of the NIC's tap, whatever bridge it is on
#: Seconds that a flap of this process may take: nothing but two answers of QEMU, as `bed` sets
#: `MIN_DOWN_S` to 0, on a machine that is busy. One of another process takes `MIN_DOWN_S` besides.
FLAP = 0.05


@dataclass
class Bed:
    """A lab with blue, red (bridges) and green (macvtap), one guest, and a state directory."""

    lab: Lab
    state: Path
    crash: Forks

    @asynccontextmanager
    async def links(self) -> AsyncIterator[LinkManager]:
        """A linkmgr with that state, in this process."""
        async with LinkManager(state=self.state, timeout=5) as links:
            self.lab.links = links
            yield links

    @asynccontextmanager
    async def restarted(
        self, works_on: str | None, *, but: int = 0, killed_at: Sequence[Step] = ()
    ) -> AsyncIterator[LinkManager]:
        """A linkmgr after the kill of another; its start costs a guest that is on a cable nothing.

        :param works_on: the network that the guest reaches although linkmgr is dead.
        :param but: so many frames may be lost all the same; see `no_frame_lost`.
        :param killed_at: steps of the recovery at which others are killed before.
        """
        async with AsyncExitStack() as stack:
            async with AsyncExitStack() as measured:
                if works_on:
                    guest, peer = self.lab.guests["web1"], self.lab.peers[works_on]
                    await measured.enter_async_context(no_frame_lost(guest, peer, but=but))
                for step in killed_at:
                    await self.killed(step, "none")
                links = await stack.enter_async_context(self.links())
            yield links

    async def killed(self, where: str, *words: str) -> None:
        """Let a linkmgr of its own do a verb, and kill itself there."""
        assert await self.run(where, *words) == -signal.SIGKILL, self.crash.said()
        at = self.state.with_name("killed-at").read_text()
        assert at.split()[0] == where, f"it was killed at {at}"

    async def run(self, where: str, *words: str) -> int:
        """Let a linkmgr of its own do a verb, and kill itself if it gets there."""
        monitor = self.lab.guests["web1"].qmp_path
        await self.crash.start(str(self.state), where, "web1", str(monitor), *words)
        return await self.crash.ended()

    async def start_from(self, target: str | None) -> None:
        async with self.links() as links:
            if target:
                await links.plug(NIC, target, notify="silent")
            else:
                await links.unplug(NIC)

    async def recovered(self, *, heard: bool = False) -> Nic:
        """The NIC after a restart, when journal, QEMU, kernel and guest agree about it.

        :param heard: whether frames have just been seen to come and go.
        """
        assert await self.lab.links.check() == []
        nic = await self.lab.links.nic(NIC)
        assert nic.state in (NicState.PLUGGED, NicState.UNPLUGGED)
        assert len(await self.cables()) == (1 if nic.connection else 0)
        assert nic.link is (LinkState.UP if nic.connection else LinkState.DOWN)
        document = json.loads((self.state / "vms" / "web1.json").read_text())["nics"]["net0"]
        assert document["intent"] is None
        assert (document["cable"] is not None) == (nic.connection is not None)
        if nic.connection:
            assert document["cable"]["device"] == nic.connection.device
            if nic.connection.network != "green":  # only taps are named
                assert nic.connection.device == NAME
        if not heard:
            await self.reaches(nic)
        return nic

    async def cables(self) -> list[str]:
        """The backends on the NIC's hub, as QEMU tells."""
        found = await self.lab.guests["web1"].qmp(
            "human-monitor-command", **{"command-line": "info network"}
        )
        return [line for line in found.splitlines() if line.startswith(" \\ lmp-")]

    async def reaches(self, nic: Nic) -> None:
        """The guest and the network that it is on hear each other, and at once.

        Linux looks at its carriers once a second, so that is how long the guest may take.
        """
        guest = self.lab.guests["web1"]
        await guest.wait_carrier("eth0", nic.connection is not None, timeout=2)
        if nic.connection:
            # The peers share an address; a flap that nobody has to see leaves the old neighbour.
            await guest.run("ip neigh flush dev eth0", check=True)

            async def answered() -> bool:
                return (await guest.ping("fe80::1%eth0", count=1)).received == 1

            await until(answered, timeout=2, what="the peer answers")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    folder = tmp_path_factory.mktemp("bed")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MIN_DOWN_S", "LINKWATCH_INTERVAL_S", "LINKWATCH_MARGIN_S"):
            patch.setattr(f"linkmgr.swap.carrier.{name}", 0.0)
        forks = Forks("tests.integration.crash", log=folder / "crash.log")
        async with make_lab(folder) as lab, forks as crash:
            bed = Bed(lab, folder / "state", crash)
            async with bed.links() as links:
                for network in ("blue", "red", "green"):
                    await lab.network(network)
                for network in ("blue", "green"):
                    for port in ("one", "two"):
                        await links.create_port(network, port)
                await lab.guest()
                await links.set_device_name(NIC, NAME)
            yield bed
            async with bed.links() as links:
                assert await links.remove_vm("web1")
            assert list((bed.state / "vms").iterdir()) == []


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def unplugged(bed: Bed) -> AsyncIterator[None]:
    """In the end the NIC is unplugged."""
    yield
    await bed.start_from(None)
