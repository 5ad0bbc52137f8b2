"""A state directory that is full, read-only or damaged: clear errors, and guests untouched."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
import pytest_asyncio

from bench.served import ServiceProcess
from linkmgr import Client, LinkManager, LinkmgrError, NicState
from linkmgr.cli.exit_codes import Exit
from linkmgr.errors import StateError, UnknownVm
from linkmgr.swap.steps import Step
from linkmgr.testing import Guest
from linkmgr.testing.process import execute, until
from tests.integration.failures_lab import NIC, no_frame_lost, nothing_left, traces
from tests.integration.lab import Lab, make_lab

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Disk:
    """A lab whose state directory is a file system of its own."""

    lab: Lab
    state: Path

    @property
    def guest(self) -> Guest:
        return self.lab.guests["web1"]

    @asynccontextmanager
    async def links(self) -> AsyncIterator[LinkManager]:
        """A linkmgr with that state."""
        async with LinkManager(state=self.state) as links:
            self.lab.links = links
            yield links

    @asynccontextmanager
    async def on_blue(self) -> AsyncIterator[LinkManager]:
        """One whose NIC is on blue."""
        async with self.links() as links:
            await links.plug(NIC, "blue", notify="silent")
            await self.guest.wait_carrier("eth0", True)
            yield links

    async def network(self) -> str | None:
        """Where a linkmgr that starts again finds the NIC."""
        async with self.links() as links:
            nic = await links.nic(NIC)
            assert nic.state in (NicState.PLUGGED, NicState.UNPLUGGED)
            assert await links.check() == []
            return nic.connection.network if nic.connection else None

    async def sh(self, command: str) -> None:
        await self.lab.sh(command)

    async def fill(self) -> None:
        await execute(["sh", "-c", f"cat /dev/zero > {self.state}/filler"], check=False)

    async def empty(self) -> None:
        (self.state / "filler").unlink(missing_ok=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def disk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Disk]:
    folder = tmp_path_factory.mktemp("disk")
    state = folder / "state"
    state.mkdir()
    async with make_lab(folder) as lab:
        await lab.sh(f"mount -t tmpfs -o size=64k,mode=0700 state {state}")
        try:
            async with LinkManager(state=state) as links:
                lab.links = links
                for network in ("blue", "red"):
                    await lab.network(network)
                await lab.guest(cmdline="lm.ip.eth0=10.1.0.2/24")
            yield Disk(lab, state)
        finally:
            await lab.sh(f"umount -l {state}")


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def unplugged(disk: Disk) -> AsyncIterator[None]:
    """In the end the NIC is unplugged."""
    yield
    async with disk.links() as links:
        await links.unplug(NIC)


async def refused(links: LinkManager, disk: Disk) -> None:
    """Every change but to pull a cable is refused with a clear error, and nothing is left."""
    before = await traces(disk.lab)
    for change in (
        links.plug(NIC, "red"),
        links.create_network("grey", "bridge", bridge="br-grey"),
        links.delete_network("red"),
        links.create_port("red", "one"),
    ):
        with pytest.raises(StateError) as caught:
            await change
        assert "the state cannot be written to" in caught.value.what
        assert caught.value.hint
    nic = await links.nic(NIC)
    assert nic.connection is not None
    assert nic.connection.network == "blue"
    assert [network.name for network in await links.networks()] == ["blue", "red"]
    assert await links.ports("red") == []
    await nothing_left(disk.lab, before)


@asynccontextmanager
async def unwritable(disk: Disk, how: str) -> AsyncIterator[None]:
    """A state directory that is full, or mounted read-only."""
    if how == "full":
        await disk.fill()
    else:
        await disk.sh(f"mount -o remount,ro {disk.state}")
    try:
        yield
    finally:
        if how == "full":
            await disk.empty()
        else:
            await disk.sh(f"mount -o remount,rw {disk.state}")


async def codes(links: LinkManager) -> list[str]:
    return [found.code for found in await links.check()]


@pytest.mark.parametrize("how", ["full", "read-only"])
async def test_without_a_disk_a_cable_is_pulled_and_that_is_written_down_later(
    disk: Disk, how: str
) -> None:
    async with disk.on_blue() as links:
        async with unwritable(disk, how):
            down = await links.set_link(NIC, "down")
            await disk.guest.wait_carrier("eth0", False)
            (note,) = down.notes
            assert "it is done and not written down: the state cannot be written to" in note
            assert await codes(links) == ["not-written"]
            pulled = await links.unplug(NIC)
            assert (pulled.changed, pulled.nic.connection) == (True, None)
            assert pulled.notes == down.notes
            assert await codes(links) == ["not-written"]
            with pytest.raises(StateError):
                await links.plug(NIC, "red")
            assert (await links.nic(NIC)).state is NicState.UNPLUGGED
            assert await codes(links) == ["not-written"]

        async def written() -> bool:
            return await codes(links) == []

        await until(written, timeout=20, what="it is written down by itself")
        known = json.loads((disk.state / "vms" / "web1.json").read_text())["nics"]["net0"]
        assert (known["cable"], known["intent"], known["wanted"]) == (None, None, "down")
        await links.set_link(NIC, "up")
    assert await disk.network() is None


async def test_a_cable_that_was_pulled_without_a_disk_stays_pulled_after_a_restart(
    disk: Disk,
) -> None:
    async with disk.on_blue() as links:
        await disk.fill()
        await links.unplug(NIC)
    # As after a kill: what is on disk still says that it is plugged.
    document = json.loads((disk.state / "vms" / "web1.json").read_text())
    assert document["nics"]["net0"]["cable"] is not None
    await disk.empty()
    assert await disk.network() is None
    await disk.guest.wait_carrier("eth0", False)


async def test_a_full_disk_changes_nothing(disk: Disk) -> None:
    async with disk.on_blue() as links, no_frame_lost(disk.guest, disk.lab.peers["blue"]):
        await disk.fill()
        try:
            await refused(links, disk)
        finally:
            await disk.empty()
        await links.create_port("red", "one")
        assert await links.delete_port("red", "one")
    assert await disk.network() == "blue"


async def test_a_read_only_disk_changes_nothing(disk: Disk) -> None:
    async with disk.on_blue() as links, no_frame_lost(disk.guest, disk.lab.peers["blue"]):
        await disk.sh(f"mount -o remount,ro {disk.state}")
        try:
            await refused(links, disk)
        finally:
            await disk.sh(f"mount -o remount,rw {disk.state}")
    await disk.sh(f"mount -o remount,ro {disk.state}")
    try:
        assert await disk.network() == "blue", "it starts, and knows everything"
    finally:
        await disk.sh(f"mount -o remount,rw {disk.state}")


async def test_a_disk_that_gets_full_in_the_middle_of_a_swap(disk: Disk) -> None:
    """The outcome cannot be written; the intent says enough, and it is written later."""

    async def fill(step: Step) -> None:
        if step is Step.STAGE:
            await disk.fill()

    async with disk.on_blue():
        pass
    async with LinkManager(state=disk.state, probe=fill) as links:
        disk.lab.links = links
        try:
            outcome = await links.plug(NIC, "red")
            assert [found.code for found in await links.check()] == ["not-written"]
            assert "not written down" in outcome.notes[0]
            assert outcome.nic.connection is not None
            assert outcome.nic.connection.network == "red"
            document = (disk.state / "vms" / "web1.json").read_text()
            assert json.loads(document)["nics"]["net0"]["intent"] is not None
        finally:
            await disk.empty()
    assert await disk.network() == "red"
    document = (disk.state / "vms" / "web1.json").read_text()
    assert json.loads(document)["nics"]["net0"]["intent"] is None


async def test_a_damaged_document_leaves_its_cables_alone(disk: Disk) -> None:
    """The rest works on; `gc` does not take the cable of a guest that runs."""
    async with disk.on_blue():
        pass
    path = disk.state / "vms" / "web1.json"
    whole = path.read_text()
    async with no_frame_lost(disk.guest, disk.lab.peers["blue"]):
        path.write_text(whole[: len(whole) // 2])
        async with disk.links() as links:
            assert await links.nics() == []
            with pytest.raises(UnknownVm):
                await links.plug(NIC, "red")
            assert [found.code for found in await links.check()] == ["state-damaged"]
            (orphan,) = await links.gc(older_than=0)
            assert not orphan.removed
            assert "in use by qemu" in (orphan.error or "")
            assert await links.create_network("grey", "bridge", bridge="br-grey")
            assert await links.delete_network("grey")
    aside = path.with_name("web1.json.damaged")
    assert aside.read_text() == whole[: len(whole) // 2]
    aside.unlink()
    path.write_text(whole)
    assert await disk.network() == "blue"


async def test_the_clock_may_go_back(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    async with disk.on_blue() as links:
        before = (await links.nic(NIC)).since

    class Past(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return before - timedelta(days=400)

    for module in (
        "swap.steps",
        "inventory.machine",
        "reconcile.reconnect",
        "reconcile.supervisor",
        "events",
    ):
        monkeypatch.setattr(f"linkmgr.{module}.datetime", Past)
    async with disk.links() as links:
        assert (await links.nic(NIC)).since == before
        await links.plug(NIC, "red")
        assert (await links.nic(NIC)).since < before
    assert await disk.network() == "red"


async def test_gc_removes_what_nobody_has_and_only_that(disk: Disk) -> None:
    async with disk.on_blue() as links:
        await disk.sh("ip link add lm0000aaaa type bridge")
        await disk.sh("ip link set lm0000aaaa alias linkmgr:web9/net0:0000aaaa")
        try:
            (young,) = await links.gc()
            assert (young.device, young.removed) == ("lm0000aaaa", False)
            assert "60 s are asked for" in (young.error or "")
            (dry,) = await links.gc(older_than=0, dry_run=True)
            assert (dry.removed, dry.error) == (False, None)
            (gone,) = await links.gc(older_than=0)
            assert gone.removed
            assert await links.gc(older_than=0) == []
        finally:
            await execute(["ip", "link", "del", "lm0000aaaa"], check=False)
        assert await links.check() == []


async def test_a_file_in_place_of_the_directory_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(LinkmgrError, match="cannot be used"):
        async with LinkManager(state=tmp_path / "state"):
            pass


async def test_a_second_service_on_the_same_state_directory_is_refused_before_it_looks_at_it(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with ServiceProcess(tmp_path / "one") as first, Client(first.socket) as client:
        await client.create_network("blue", "bridge", bridge="br0")
        second = ["--socket", f"{tmp_path}/two/lm.sock", "serve", "--state-dir", str(first.state)]
        refused = await execute(
            [str(Path(sys.executable).with_name("linkmgr")), *second], timeout=30, check=False
        )
        assert refused.status == Exit.CONFLICT
        assert f"another linkmgr uses the state directory {first.state}" in refused.output
        assert [network.name for network in await client.networks()] == ["blue"]
