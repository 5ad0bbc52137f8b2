"""`linkmgr serve` is killed at every step of a verb that a client waits for, and starts again.

The client is told that the outcome is not known; the guest is on one whole cable and has lost no
frame since the kill; and the same verb, asked again, is done.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from linkmgr import Client, LinkManager, LinkState
from linkmgr.errors import ServiceGone
from linkmgr.hypervisors.qemu.qmp.info_network import parse_info_network
from linkmgr.model import OwnerTag
from linkmgr.swap.carrier import MIN_DOWN_S
from linkmgr.swap.steps import Step
from tests.integration.dying_service import reached
from tests.integration.failures_lab import NIC, RATE, no_frame_lost
from tests.integration.lab import Lab, make_lab
from tests.integration.nursery import Nursery
from tests.integration.steps import PLUG, REPLUG, RESTART, UNPLUG, done_before, reaches_at

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERBS = [
    (None, "blue:one", PLUG),
    ("blue:one", "red", REPLUG),
    ("blue:one", None, UNPLUG),
    (None, "green", PLUG),
    ("blue:one", "green", REPLUG),
    ("green", None, UNPLUG),
]


@dataclass
class Place:
    """Three networks, a guest, and a service that dies when it is told to.

    :param links: a client that lives as long as the tests do, through all deaths of the service.
    :param own: the host's devices without any cable.
    """

    lab: Lab
    nursery: Nursery
    links: Client
    own: frozenset[str]

    async def bring(self, target: str | None, *, notify: str = "silent") -> bool:
        """Plug the NIC there, or unplug it, as a client does; whether that changed something."""
        if target:
            return (await self.links.plug(NIC, target, notify=notify)).changed
        return (await self.links.unplug(NIC)).changed

    async def dies_at(self, step: Step, target: str | None, *, notify: str = "silent") -> None:
        """Ask for a verb, and be told that the service went away in it, at that step."""
        self._will_die_at(step)
        with pytest.raises(ServiceGone, match="it may or may not have done"):
            await self.bring(target, notify=notify)
        await self._dead_at(step)

    async def dies_again_at(self, step: Step) -> None:
        """Start the service, which does not get further than that step of its recovery."""
        self._will_die_at(step)
        await self.nursery.serve()
        await self._dead_at(step)

    def _will_die_at(self, step: Step) -> None:
        reached(self.nursery.note).unlink(missing_ok=True)
        self.nursery.note.write_text(f"die {step}")

    async def _dead_at(self, step: Step) -> None:
        assert await self.nursery.ended() == -signal.SIGKILL
        assert reached(self.nursery.note).read_text() == f"die {step}"

    async def revive(self, works_on: str | None, *, but: int = 0) -> None:
        """Start the service again; a guest that reaches a network all the same loses no frame.

        :param but: so many frames may be lost; see `no_frame_lost`.
        """
        async with AsyncExitStack() as stack:
            if works_on:
                guest, peer = self.lab.guests["web1"], self.lab.peers[works_on]
                await stack.enter_async_context(no_frame_lost(guest, peer, but=but))
            # A question may be asked at any time: it waits for the service, and is no error.
            await asyncio.gather(self.links.nic(NIC), self.nursery.serve())

    async def cleared(self) -> None:
        """After a test that failed: a service runs that will not die."""
        self.nursery.note.unlink(missing_ok=True)
        await self.nursery.serve()

    async def agrees(self, on: str | None) -> None:
        """Linkmgr, its journal, the kernel and QEMU know of this cable and of nothing else."""
        nic = await self.links.nic(NIC)
        assert await self.links.check() == []
        assert (str(nic.connection.port) if nic.connection else None) == on
        assert nic.link is (LinkState.UP if nic.connection else LinkState.DOWN)
        document = json.loads((self.nursery.state / "vms" / "web1.json").read_text())
        record = document["nics"]["net0"]
        assert record["intent"] is None
        info = parse_info_network(
            await self.lab.guests["web1"].qmp(
                "human-monitor-command", **{"command-line": "info network"}
            )
        )
        hub = info.hub_of("net0")
        assert hub is not None
        backends = info.hubs[hub[0]].backends
        assert len(info.hubs[hub[0]].free) == 1, "its sink"
        taps = [each for each in info.netdevs.values() if each.type == "tap"]
        cable = nic.connection
        assert len(backends) == len(taps) == (1 if cable else 0)
        assert (record["cable"] or {}).get("attachment") == (cable and cable.attachment)
        tags = {cable.device: str(OwnerTag(NIC, cable.attachment))} if cable else {}
        assert self._devices() == tags
        await self.lab.guests["web1"].wait_carrier("eth0", cable is not None, timeout=2)

    def _devices(self) -> dict[str, str]:
        """The devices that the host has more than without a cable, and their tags."""
        paths = [path for path in Path("/sys/class/net").iterdir() if path.name not in self.own]
        return {path.name: (path / "ifalias").read_text().strip() for path in paths}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    async with make_lab(folder) as lab, Nursery(folder) as nursery:
        async with LinkManager(state=nursery.state) as links:
            lab.links = links
            for network in ("blue", "red", "green"):
                await lab.network(network)
            await links.create_port("blue", "one")
            await lab.guest()
            await links.set_device_name(NIC, "lmtap0")  # so that a tap takes the step for that
        names = frozenset(path.name for path in Path("/sys/class/net").iterdir())
        await nursery.serve()
        async with Client(nursery.socket, patience=20) as client:
            yield Place(lab, nursery, client, names)
            assert await client.remove_vm("web1")
        assert await nursery.stop() == 0
        assert "Traceback" not in nursery.said(), nursery.said()


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def unplugged(place: Place) -> AsyncIterator[None]:
    """In the end the NIC is unplugged, and nothing is left of its cables."""
    yield
    await place.cleared()
    await place.bring(None)
    await place.agrees(None)


@pytest.mark.parametrize(("start", "target", "steps"), VERBS)
async def test_a_client_is_told_the_guest_is_on_one_cable_and_the_verb_can_be_repeated(
    place: Place,
    subtests: pytest.Subtests,
    start: str | None,
    target: str | None,
    steps: list[Step],
) -> None:
    for step in steps:
        with subtests.test(msg=f"killed before {step}"):
            await place.cleared()
            await place.bring(start)
            await place.dies_at(step, target)
            # No frame is lost, whether the verb is undone or finished: the cable that works stays
            # in, and ``silent`` is a switch of which nobody is told.
            await place.revive(reaches_at(step, start, target))
            done = done_before(step)
            await place.agrees(target if done else start)
            assert await place.bring(target) is not done
            if not done:
                await place.agrees(target)


async def test_a_guest_that_is_told_of_its_new_network_by_the_next_service_misses_one_flap(
    place: Place,
) -> None:
    await place.bring("blue:one")
    await place.dies_at(Step.NOTIFY, "red", notify="auto")
    # The carrier is down for MIN_DOWN_S; Linux sends again at once when it is back. The rest is for
    # a machine that is busy, and still much less than one look of Linux at its carriers.
    await place.revive("red", but=int(RATE * (MIN_DOWN_S + 0.2)))
    await place.agrees("red")


@pytest.mark.parametrize("again", RESTART)
async def test_killed_twice_more_while_it_recovers_it_starts_all_the_same(
    place: Place, again: Step
) -> None:
    await place.bring("blue:one")
    await place.dies_at(Step.RECORD, "red")
    for _ in range(2):
        await place.dies_again_at(again)
    await place.revive("red")
    await place.agrees("red")
