"""A monitor that ends or stands still in the middle of each command; QEMU lives all the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from linkmgr import LinkState, NicState
from linkmgr.errors import MonitorError, MonitorGone, MonitorTimeout, MonitorUnreachable
from linkmgr.hypervisors.qemu.process import QemuProcess
from linkmgr.hypervisors.qemu.qmp import Monitor
from linkmgr.hypervisors.qemu.qmp.connector import SocketConnector
from linkmgr.testing.process import until
from tests.integration.failures_lab import (
    NIC,
    Scene,
    is_told,
    make_scene,
    no_frame_lost,
    nothing_left,
    traces,
)
from tests.integration.monitor_proxy import Cut, MonitorProxy

pytestmark = pytest.mark.asyncio(loop_scope="module")
# What may differ on a newer QEMU is what a command does whose answer is lost, and what stays of it
# when the monitor goes: each verb and each kind of cable once. What linkmgr makes of an error does
# not depend on it.
NEXT = pytest.mark.next_qemu


@dataclass
class Wired:
    """A scene behind a proxy."""

    scene: Scene
    proxy: MonitorProxy

    async def verb(self, target: str | None) -> None:
        """Plug the NIC into `target`, or unplug it."""
        if target:
            await self.scene.lab.links.plug(NIC, target)
        else:
            await self.scene.lab.links.unplug(NIC)

    async def start_from(self, network: str | None) -> None:
        """Bring the NIC there, by verbs that must work."""
        if network:
            await self.scene.lab.links.plug(NIC, network, notify="silent")
        else:
            await self.scene.lab.links.unplug(NIC)

    async def commands(self, start: str | None, target: str | None) -> list[str]:
        """The commands of a verb to which nothing happens."""
        await self.start_from(start)
        self.proxy.watch()
        await self.verb(target)
        return list(self.proxy.commands)

    async def settled(self) -> bool:
        """Whether QEMU answers and nothing is left to be done."""
        return await self.scene.lab.links.check() == []

    async def shows(self, link: LinkState) -> bool:
        """Whether that is what the guest sees of the NIC, as far as is known."""
        return (await self.scene.lab.links.nic(NIC)).link is link

    @staticmethod
    def described(target: str | None) -> str:
        """What `Scene.state` says there."""
        return f"plugged {target.partition(':')[0]}" if target else "unplugged"

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[None]:
        """Let QEMU take so long for one command, and no longer."""
        before = self.scene.lab.links.timeout
        await self._add_again(seconds)
        try:
            yield
        finally:
            await self._add_again(before)

    async def _add_again(self, timeout: float) -> None:
        links = self.scene.lab.links
        await links.remove_vm("web1")
        links.timeout = timeout
        await links.add_vm("web1", self.proxy.path)

    async def cables(self) -> list[str]:
        """The backends on the NIC's hub, as QEMU tells."""
        found = await self.scene.guest.qmp(
            "human-monitor-command", **{"command-line": "info network"}
        )
        return [
            line.split()[2].rstrip(":")
            for line in found.splitlines()
            if line.startswith(" \\ lmp-")
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wired(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Wired]:
    folder = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch:
        # What makes a guest see a flap, and a busy host live, would make these tests slow.
        for name in ("MIN_DOWN_S", "LINKWATCH_INTERVAL_S", "LINKWATCH_MARGIN_S"):
            patch.setattr(f"linkmgr.swap.carrier.{name}", 0.0)
        patch.setattr("linkmgr.hypervisors.qemu.process.RECONNECT_INTERVAL_S", 0.02)
        async with _wired(folder) as made:
            yield made


@asynccontextmanager
async def _wired(folder: Path) -> AsyncIterator[Wired]:
    async with (
        make_scene(folder, add=False) as scene,
        MonitorProxy(folder / "proxy.qmp", scene.guest.qmp_path) as proxy,
    ):
        await scene.lab.links.add_vm("web1", proxy.path)
        for network in ("blue", "green"):
            for port in ("one", "two"):
                await scene.lab.links.create_port(network, port)
        yield Wired(scene, proxy)
        await scene.lab.links.remove_vm("web1")


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def unplugged(wired: Wired) -> AsyncIterator[None]:
    """In the end the NIC is unplugged, and nothing is left of the test."""
    before = await traces(wired.scene.lab)
    yield
    wired.proxy.watch()
    await wired.start_from(None)
    await nothing_left(wired.scene.lab, before)


@NEXT
async def test_a_replug_has_all_its_commands_on_this_monitor(wired: Wired) -> None:
    """So that the tests below cut at what they seem to."""
    commands = await wired.commands("blue:one", "red")
    for command in ("getfd", "netdev_add", "netdev_del", "set_link"):
        assert command in commands
    assert commands.index("getfd") < commands.index("netdev_del")
    assert "announce-self" in await wired.commands("blue:one", "blue:two")
    assert "set_link" in await wired.commands("blue:one", None)


@pytest.mark.parametrize("where", Cut)
@pytest.mark.parametrize("target", ["red", pytest.param("green", marks=NEXT), "blue:two"])
async def test_cut_before_the_switch_of_a_replug_the_guest_stays_where_it_is(
    wired: Wired, subtests: pytest.Subtests, target: str, where: Cut
) -> None:
    scene = wired.scene
    commands = await wired.commands("blue:one", target)
    switch = commands.index("netdev_del") - 1  # one goes ahead of it, written with it
    await wired.start_from("blue:one")
    await scene.guest.wait_carrier("eth0", True)
    async with no_frame_lost(scene.guest, scene.lab.peers["blue"]):
        before = await traces(scene.lab)
        for number, command in enumerate(commands[:switch]):
            with subtests.test(msg=f"{where} command {number}, {command}"):
                wired.proxy.cut(number, where)
                with pytest.raises(MonitorGone) as caught:
                    await wired.verb(target)
                assert not wired.proxy.armed
                is_told(caught.value, state="in an unknown state since .*Z?")
                await nothing_left(scene.lab, before)
                assert await scene.state() == "plugged blue"
    await wired.verb(target)
    assert await scene.state() == wired.described(target)


async def at_every_command(
    wired: Wired,
    subtests: pytest.Subtests,
    start: str | None,
    target: str | None,
    fault: Callable[[int], None],
    error: type[MonitorError],
) -> None:
    """Bring the NIC from `start` to `target` once for each command, with a fault there.

    Whatever comes of it, the NIC is on one whole cable, nothing is left, and the next verb works.
    """
    links = wired.scene.lab.links
    ends = {None if end is None else end.partition(":")[0] for end in (start, target)}
    commands = await wired.commands(start, target)
    await wired.start_from(None)
    nothing = await traces(wired.scene.lab)
    for number, command in enumerate(commands):
        with subtests.test(msg=f"command {number}, {command}"):
            await wired.start_from(start)
            fault(number)
            try:
                await wired.verb(target)
            except error as caught:
                is_told(caught, state="in an unknown state since ")
            assert not wired.proxy.armed
            wired.proxy.go_on()
            await until(wired.settled, timeout=10, what="QEMU answers again")
            nic = await links.nic(NIC)
            assert (nic.connection.network if nic.connection else None) in ends
            # The state, QEMU (with `check`) and the guest's carrier agree.
            assert len(await wired.cables()) == (1 if nic.connection else 0)
            link = LinkState.UP if nic.connection else LinkState.DOWN
            # It is set anew after each reconnection, and unknown until QEMU has confirmed that.
            await until(partial(wired.shows, link), timeout=10, what=f"the link is {link} again")
            await wired.verb(target)
            assert await wired.scene.state() == wired.described(target)
            await wired.start_from(None)
            await nothing_left(wired.scene.lab, nothing)


@pytest.mark.parametrize("where", Cut)
@pytest.mark.parametrize(
    ("start", "target"),
    [
        ("blue:one", "red"),
        pytest.param("blue:one", "green", marks=NEXT),
        ("green", "blue:one"),
        ("blue:one", "blue:two"),
        pytest.param("green:one", "green:two", marks=NEXT),
        pytest.param(None, "blue:one", marks=NEXT),
        (None, "green"),
        ("blue:one", None),
        pytest.param("green", None, marks=NEXT),
    ],
)
async def test_cut_anywhere_the_nic_is_on_one_whole_cable_and_the_next_verb_works(
    wired: Wired, subtests: pytest.Subtests, start: str | None, target: str | None, where: Cut
) -> None:
    def cut(number: int) -> None:
        wired.proxy.cut(number, where)

    await at_every_command(wired, subtests, start, target, cut, MonitorGone)


@pytest.mark.parametrize("where", Cut)
@pytest.mark.parametrize(
    ("start", "target"),
    [
        pytest.param("blue:one", "red", marks=NEXT),
        ("green:one", "green:two"),
        ("green", None),
    ],
)
async def test_held_up_anywhere_the_nic_is_on_one_whole_cable_and_the_next_verb_works(
    wired: Wired, subtests: pytest.Subtests, start: str | None, target: str | None, where: Cut
) -> None:
    """The connection stands, but an answer comes too late: the command is executed all the same."""

    def hold(number: int) -> None:
        wired.proxy.hold(number, where)

    async with wired.timeout(0.25):
        await at_every_command(wired, subtests, start, target, hold, MonitorTimeout)


@NEXT
@pytest.mark.parametrize("where", Cut)
async def test_cut_while_a_vm_is_added_it_is_not_added_and_nothing_is_left(
    wired: Wired, subtests: pytest.Subtests, where: Cut
) -> None:
    links = wired.scene.lab.links
    assert await links.remove_vm("web1")
    wired.proxy.watch()
    await links.add_vm("web1", wired.proxy.path)
    commands = list(wired.proxy.commands)
    assert await links.remove_vm("web1")
    nothing = await traces(wired.scene.lab)
    for number, command in enumerate(commands):
        with subtests.test(msg=f"{where} command {number}, {command}"):
            wired.proxy.cut(number, where)
            with pytest.raises((MonitorGone, MonitorUnreachable)) as caught:
                await links.add_vm("web1", wired.proxy.path)
            assert not wired.proxy.armed
            assert "web1" in str(caught.value)
            assert "To do: " in str(caught.value)
            assert await links.nics() == []
            await nothing_left(wired.scene.lab, nothing)
    (nic,) = await links.add_vm("web1", wired.proxy.path)
    assert nic.state is NicState.UNPLUGGED


@pytest.mark.parametrize("where", Cut)
async def test_cut_while_a_link_is_set_it_is_as_it_was(
    wired: Wired, subtests: pytest.Subtests, where: Cut
) -> None:
    links = wired.scene.lab.links
    await wired.start_from("blue:one")
    await wired.scene.guest.wait_carrier("eth0", True)
    wired.proxy.watch()
    await links.set_link(NIC, "down")
    commands = list(wired.proxy.commands)
    assert "set_link" in commands
    await links.set_link(NIC, "up")
    for number, command in enumerate(commands):
        with subtests.test(msg=f"{where} command {number}, {command}"):
            wired.proxy.cut(number, where)
            with pytest.raises(MonitorGone) as caught:
                await links.set_link(NIC, "down")
            assert not wired.proxy.armed
            is_told(caught.value, state="in an unknown state since ")
            await until(wired.settled, timeout=10, what="QEMU answers again")
            nic = await links.nic(NIC)
            assert (nic.link, nic.wanted_link) == (LinkState.UP, LinkState.UP)
            await wired.scene.guest.wait_carrier("eth0", True)


async def test_a_monitor_that_is_just_gone_is_waited_for_and_not_asked_again_and_again(
    wired: Wired,
) -> None:
    """Between the end of a connection and its being noticed nothing may spin."""

    class Gone:
        asked = 0

        async def wait_responsive(self) -> None:
            self.asked += 1
            if self.asked > 100:
                raise AssertionError("it never lets go of the event loop")
            raise MonitorGone("gone")

    qemu = QemuProcess(
        SocketConnector(wired.proxy.path), name="web1", timeout=1, handler=lambda _: None
    )
    qemu._monitor = cast("Monitor", Gone())
    qemu._connected.set()
    waiting = asyncio.create_task(qemu.wait_responsive())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    qemu._monitor = None
    await qemu.close()
    await waiting
