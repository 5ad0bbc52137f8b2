"""Link state that libvirt and linkmgr share: who has changed it, who is to be told."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from linkmgr.aio.token_bucket import TimeBudget
from linkmgr.errors import HostError
from linkmgr.events import EventBus, EventKind
from linkmgr.libvirt.domains.link_sync import LinkSync, SyncAction, decide
from linkmgr.libvirt.xml.status_file import BadDomainStatus, DomainStatus, parse_status, read_status
from linkmgr.manager.manager import LinkManager
from linkmgr.model import LinkState, MonitorTransport, Nic, NicRef, NicState, VmInfo, VmState
from linkmgr.state.directory import StateDirectory
from linkmgr.testing.process import until

UP, DOWN = LinkState.UP, LinkState.DOWN
MAC = "52:54:00:00:00:01"
NOW = datetime.now(UTC)


def nic(state: NicState = NicState.PLUGGED, wanted: LinkState = UP) -> Nic:
    return Nic(NicRef("web1", "ua-net0"), "virtio", MAC, 1500, state, UP, wanted, "hub", NOW)


UNPLUGGED = nic(NicState.UNPLUGGED)


@pytest.mark.parametrize(
    ("before", "said", "now", "action"),
    [
        # Nothing is known of before, as when a domain has just started: it is no wish.
        (None, DOWN, nic(), SyncAction(report=UP)),
        (None, UP, nic(wanted=DOWN), SyncAction(report=DOWN)),
        (None, UP, UNPLUGGED, SyncAction(report=DOWN)),
        (None, UP, nic(), SyncAction()),
        # virsh has changed it.
        (UP, DOWN, nic(), SyncAction(requested=DOWN)),
        (DOWN, UP, nic(wanted=DOWN), SyncAction(requested=UP)),
        (DOWN, UP, UNPLUGGED, SyncAction(requested=UP, resync=True, report=DOWN)),
        # libvirt was told what is so: an echo.
        (UP, DOWN, nic(wanted=DOWN), SyncAction()),
        (UP, DOWN, UNPLUGGED, SyncAction()),
        (DOWN, UP, nic(), SyncAction()),
        # linkmgr has changed it.
        (UP, UP, nic(wanted=DOWN), SyncAction(report=DOWN)),
        (UP, UP, UNPLUGGED, SyncAction(report=DOWN)),
        (DOWN, DOWN, nic(), SyncAction(report=UP)),
        (DOWN, DOWN, nic(NicState.FOREIGN), SyncAction(report=UP)),
        # Nothing can be said of these, or done to them.
        (UP, DOWN, nic(NicState.UNKNOWN), SyncAction()),
        (UP, DOWN, replace(nic(NicState.FOREIGN), link=None), SyncAction()),
        (None, UP, replace(UNPLUGGED, link=None), SyncAction()),
        (UP, DOWN, nic(NicState.UNMANAGED), SyncAction()),
        (UP, DOWN, nic(NicState.GONE), SyncAction()),
    ],
)
def test_who_has_changed_a_link(
    before: LinkState | None, said: LinkState, now: Nic, action: SyncAction
) -> None:
    assert decide(before, said, now) == action


def test_a_flap_is_nobodys_wish() -> None:
    """In the middle of a swap the carrier is down for a moment."""
    assert decide(UP, UP, replace(nic(), link=DOWN)) == SyncAction()


STATUS = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE.
-->
<domstatus state='running' reason='booted' pid='{pid}'>
  <monitor path='/var/lib/libvirt/qemu/domain-1-web1/monitor.sock' type='unix'/>
  <domain type='qemu' id='1'>
    <name>web1</name><uuid>0f0e0d0c-0000-4000-8000-000000000001</uuid>
    <devices>
      <interface type='ethernet'><mac address='52:54:00:00:00:01'/><target dev='lmtap0'/>
        <link state='{link}'/><alias name='ua-net0'/></interface>
      <interface type='ethernet'><mac address='52:54:00:00:00:0A'/><alias name='net1'/></interface>
      <interface type='user'/>
    </devices>
  </domain>
</domstatus>
"""


class TestStatus:
    """libvirt's status file of a running domain."""

    def test_says_of_each_nic_what_libvirt_has_set(self) -> None:
        status = parse_status(STATUS.format(pid=42, link="down").encode())
        assert (status.name, status.pid) == ("web1", 42)
        assert status.uuid.startswith("0f0e0d0c")
        said = {alias: (each.mac, each.link, each.target) for alias, each in status.nics.items()}
        assert said == {
            "ua-net0": (MAC, DOWN, "lmtap0"),
            "net1": ("52:54:00:00:00:0a", UP, ""),
        }

    @pytest.mark.parametrize(
        "text",
        ["", "<domstatus/>", "<domain><name>web1</name></domain>", "<domstatus", "<!DOCTYPE a><a/>",
         "<domstatus><domain/></domstatus>"],
    )  # fmt: skip
    def test_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(BadDomainStatus):
            parse_status(text.encode())

    def test_is_not_read_through_a_link_or_from_a_fifo(self, tmp_path: Path) -> None:
        real = tmp_path / "real.xml"
        real.write_text(STATUS.format(pid=1, link="up"))
        (tmp_path / "web1.xml").symlink_to(real)
        os.mkfifo(tmp_path / "web2.xml")
        for name in ("web1", "web2"):
            with pytest.raises(BadDomainStatus):
                read_status(tmp_path / f"{name}.xml")
        assert read_status(tmp_path / "web3.xml") is None


async def happens(true: Callable[[], bool]) -> None:
    async def asked() -> bool:
        return true()

    await until(asked, timeout=5, what="it happens", interval=0.01)


class FakeManager:
    """A manager with one NIC, that writes down what it was asked for."""

    def __init__(self, documents: StateDirectory) -> None:
        self.documents = documents
        self.nic = UNPLUGGED
        self.asked: list[str] = []
        self.bus = EventBus()
        self.fails: Exception | None = None
        self.ended = False
        self.transport = MonitorTransport.INBOUND
        self.pid: int | None = None  # of another pid namespace
        self.bindings: set[NicRef] = set()

    def events(self) -> object:
        return self.bus.subscribe()

    def snapshot(self) -> tuple[list[VmInfo], list[Nic]]:
        if self.ended:
            return [], []
        vm = VmInfo("web1", "/q", VmState.ANSWERS, NOW, transport=self.transport)
        return [vm], [self.nic]

    def process_of(self, vm: str) -> tuple[int | None, int | None] | None:
        return (self.pid, None) if vm == "web1" and not self.ended else None

    async def set_link(self, ref: NicRef, state: LinkState) -> None:
        self.asked.append(f"link {state}")
        if self.fails is not None:
            raise self.fails
        self.nic = replace(self.nic, wanted_link=state)
        self.bus.publish(EventKind.LINK, ref)

    async def resync_link(self, ref: NicRef) -> None:
        self.asked.append("show")

    def plug(self) -> None:
        self.nic = replace(self.nic, state=NicState.PLUGGED)
        self.bus.publish(EventKind.PLUGGED, "web1/ua-net0")


class Bench:
    """A directory of libvirt's, and the sync of it."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.kept = folder / "links.json"
        self.manager = FakeManager(StateDirectory(folder))
        self.refuse = False
        self.sync = self.make()

    def make(self) -> LinkSync:
        manager = cast("LinkManager", self.manager)
        return LinkSync(self.run_dir, manager, set_link=self.tell)

    async def tell(self, uuid: str, mac: str, up: bool) -> None:
        assert (uuid[:8], mac) == ("0f0e0d0c", MAC)
        self.manager.asked.append(f"tell {'up' if up else 'down'}")
        if self.refuse:
            raise HostError("libvirt is away")
        self.virsh(UP if up else DOWN)

    def virsh(self, link: LinkState, pid: int = 1) -> None:
        """Let libvirt have another link, and write it down as it does."""
        self.run_dir.mkdir(exist_ok=True)
        new = self.run_dir / "web1.xml.new"
        new.write_text(STATUS.format(pid=pid, link=link))
        new.rename(self.run_dir / "web1.xml")

    async def look(self) -> list[str]:
        """What is asked for by one look."""
        self.manager.asked.clear()
        await self.sync.sync("web1")
        return list(self.manager.asked)

    async def asked(self, *what: str) -> None:
        """Wait until this was asked for, and nothing else afterwards."""
        await happens(lambda: self.manager.asked[-len(what) :] == list(what))
        await asyncio.sleep(0.1)
        assert self.manager.asked[-len(what) :] == list(what)
        self.manager.asked.clear()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_what_virsh_sets_is_taken_once(bench: Bench) -> None:
    bench.virsh(DOWN)
    assert await bench.look() == []
    bench.manager.plug()
    assert await bench.look() == ["tell up"]
    bench.virsh(DOWN)
    assert await bench.look() == ["link down"]
    assert await bench.look() == []
    bench.virsh(UP)
    assert await bench.look() == ["link up"]
    bench.manager.nic = replace(bench.manager.nic, wanted_link=DOWN)
    assert await bench.look() == ["tell down"]
    assert await bench.look() == []


async def test_a_vm_that_has_only_the_name_of_a_domain_takes_nothing_from_it(bench: Bench) -> None:
    """Its NIC may even have the same alias and the same address."""
    bench.manager.transport, bench.manager.pid = MonitorTransport.SOCKET, 1
    bench.manager.plug()
    bench.virsh(DOWN, pid=2)
    assert await bench.look() == []
    bench.virsh(UP, pid=2)
    bench.virsh(DOWN, pid=2)
    assert await bench.look() == []
    bench.virsh(DOWN, pid=1)  # this one is that domain
    assert await bench.look() == ["tell up"]


async def test_what_virsh_sets_is_taken_by_whoever_writes_it_down_too(bench: Bench) -> None:
    taken = []

    async def take(ref: NicRef, state: LinkState) -> None:
        taken.append((str(ref), state))

    bench.sync = LinkSync(
        bench.run_dir, cast("LinkManager", bench.manager), set_link=bench.tell, apply_link=take
    )
    bench.manager.plug()
    bench.virsh(UP)
    await bench.look()
    bench.virsh(DOWN)
    assert await bench.look() == []
    assert taken == [("web1/ua-net0", DOWN)]


async def test_a_record_of_another_process_says_nothing_of_the_one_that_runs(bench: Bench) -> None:
    """One that was left behind, say, renamed over the right one by a guest's user."""
    bench.manager.pid = 4711
    bench.manager.plug()
    bench.virsh(UP, pid=4711)
    await bench.look()
    bench.virsh(DOWN, pid=1)
    assert await bench.look() == []
    bench.virsh(DOWN, pid=4711)
    assert await bench.look() == ["tell up"]


async def test_up_for_an_unplugged_nic_is_kept_as_a_wish_and_taken_back(bench: Bench) -> None:
    bench.manager.nic = nic(NicState.UNPLUGGED, wanted=DOWN)
    bench.virsh(DOWN)
    assert await bench.look() == []
    bench.virsh(UP)
    assert await bench.look() == ["link up", "show", "tell down"]
    assert await bench.look() == []
    assert bench.manager.nic.wanted_link is UP


async def test_the_link_of_a_nic_that_is_on_its_way_here_is_left_as_it_came(bench: Bench) -> None:
    bench.manager.bindings.add(bench.manager.nic.ref)
    bench.virsh(UP)
    assert await bench.look() == []
    bench.manager.bindings.clear()
    bench.manager.plug()
    assert await bench.look() == []


async def test_a_wish_that_could_not_be_taken_is_taken_the_next_time(bench: Bench) -> None:
    bench.manager.plug()
    bench.virsh(UP)
    assert await bench.look() == []
    bench.virsh(DOWN)
    bench.manager.fails = HostError("no")
    with pytest.raises(HostError):
        await bench.look()
    bench.manager.fails = None
    assert await bench.look() == ["link down"]


async def test_what_libvirt_says_after_it_could_not_be_told_is_no_wish(bench: Bench) -> None:
    """A call that timed out may be carried out late."""
    bench.manager.plug()
    bench.virsh(UP)
    await bench.look()
    bench.manager.nic = replace(bench.manager.nic, state=NicState.UNPLUGGED)
    bench.refuse = True
    with pytest.raises(HostError):
        await bench.look()
    bench.manager.plug()
    bench.virsh(DOWN)
    bench.refuse = False
    assert await bench.look() == ["tell up"]


async def test_what_virsh_sets_while_linkmgr_is_away_is_taken_when_it_is_back(bench: Bench) -> None:
    bench.manager.plug()
    bench.virsh(UP, pid=os.getpid())
    assert await bench.look() == []
    assert json.loads(bench.kept.read_text())["domains"]["web1"]["said"] == {"ua-net0": "up"}
    bench.virsh(DOWN, pid=os.getpid())
    bench.sync = bench.make()
    await bench.sync.load()
    assert await bench.look() == ["link down"]
    # Of another QEMU of the domain it says nothing: what its XML says at the start is no wish.
    bench.manager.nic = nic()
    bench.virsh(UP, pid=os.getpid())
    await bench.look()
    bench.virsh(DOWN, pid=1)
    bench.sync = bench.make()
    await bench.sync.load()
    assert await bench.look() == ["tell up"]


_KEPT = '{"format": 1, "domains": {"web1": %s}}'


async def test_what_could_not_be_kept_is_told_and_kept_as_soon_as_it_can_be(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.state.directory.SAVE_RETRY_INTERVAL_S", 0.02)
    bench.kept.mkdir()
    bench.manager.plug()
    bench.virsh(UP)
    await bench.look()
    documents = bench.manager.documents
    assert [document.name for document, _ in documents.unwritten()] == ["links"]
    bench.kept.rmdir()
    await happens(lambda: not documents.unwritten())
    assert "web1" in bench.kept.read_text()


@pytest.mark.parametrize(
    "text", ["", "[]", _KEPT % "3", _KEPT % '{"life": "x", "said": {"net0": "sideways"}}']
)
async def test_a_damaged_memory_is_told_and_does_no_harm(
    bench: Bench, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.kept.write_text(text)
    await bench.sync.load()
    assert "cannot be read" in caplog.text
    bench.virsh(DOWN)
    assert await bench.look() == []


async def test_a_directory_that_comes_later_is_watched_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.libvirt.domains.link_sync.RETRY_INTERVAL_S", 0.05)
    task = asyncio.create_task(bench.sync.run())
    try:
        await asyncio.sleep(0.1)
        bench.virsh(DOWN)
        bench.manager.plug()
        await bench.asked("tell up")
        bench.virsh(DOWN)
        await bench.asked("link down")
        # It is away for a while, with its directory.
        (bench.run_dir / "web1.xml").unlink()
        bench.run_dir.rmdir()
        await asyncio.sleep(0.1)
        bench.virsh(UP)
        await bench.asked("link up")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_large_status_file_that_is_written_without_end_is_read_now_and_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt writes it with each edit of the metadata, which is in it."""
    read: list[str] = []

    def counted(path: str) -> DomainStatus | None:
        read.append(path)
        return read_status(path)

    monkeypatch.setattr("linkmgr.libvirt.domains.link_sync.read_status", counted)
    monkeypatch.setattr(
        "linkmgr.libvirt.domains.link_sync.TimeBudget", lambda: TimeBudget(0.0, 0.02)
    )
    large = f"<domain type='qemu' id='1'><metadata>{'<a/> ' * 9_000}</metadata>"
    monkeypatch.setattr(f"{__name__}.STATUS", STATUS.replace("<domain type='qemu' id='1'>", large))
    bench.virsh(UP)
    task = asyncio.create_task(bench.sync.run())
    try:
        end = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < end:
            bench.virsh(UP)
            await asyncio.sleep(0.005)
        assert 1 <= len(read) <= 2
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_fails_is_tried_again_and_told_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("linkmgr.libvirt.domains.link_sync.RETRY_INTERVAL_S", 0.02)
    bench.virsh(DOWN)
    bench.refuse = True
    task = asyncio.create_task(bench.sync.run())
    try:
        await asyncio.sleep(0.1)
        bench.manager.plug()
        await happens(lambda: bench.manager.asked.count("tell up") >= 3)
        bench.refuse = False
        await happens(lambda: b"state='up'" in (bench.run_dir / "web1.xml").read_bytes())
        assert caplog.text.count("do not agree yet") == 1
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_change_that_comes_as_a_look_ends_is_looked_at_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    async def look(vm: str) -> None:
        looks.append(vm)
        if len(looks) == 1:  # runs when this look's task has ended, before anybody is told of that
            asyncio.get_running_loop().call_soon(bench.sync.schedule, vm)

    monkeypatch.setattr(bench.sync, "sync", look)
    bench.sync.schedule("web1")
    await happens(lambda: len(looks) == 2)
    await happens(lambda: not bench.sync._workers)
    assert not bench.sync._requests, "a name that no VM has any more would stay for good"


async def test_a_domain_that_has_ended_leaves_nothing_behind(bench: Bench) -> None:
    bench.virsh(DOWN)
    task = asyncio.create_task(bench.sync.run())
    try:
        await happens(bench.kept.exists)
        bench.manager.ended = True
        bench.manager.bus.publish(EventKind.VM_REMOVED, "web1")  # libvirt's file may still be there
        await happens(lambda: not bench.kept.exists())
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_status_file_that_goes_before_the_end_is_heard_of_leaves_nothing_behind(
    bench: Bench,
) -> None:
    bench.virsh(DOWN)
    await bench.look()
    assert bench.kept.exists()
    (bench.run_dir / "web1.xml").unlink()
    await bench.look()
    assert not bench.kept.exists()
    bench.manager.ended = True
    await bench.look()
    assert not bench.kept.exists()
