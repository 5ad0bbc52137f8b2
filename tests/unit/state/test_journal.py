"""The state on disk: written whole or not at all, and what cannot be read is kept."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from linkmgr import LinkManager
from linkmgr.errors import Conflict, StateError
from linkmgr.model import (
    BridgeEndpoint,
    DirectEndpoint,
    DirectMode,
    Drift,
    LinkState,
    Network,
    NotifyMode,
    Port,
)
from linkmgr.state import directory as module
from linkmgr.state import migrations
from linkmgr.state.directory import SavedDocument, StateDirectory
from linkmgr.state.journal import (
    CableRecord,
    Intent,
    Journal,
    NicFacts,
    NicRecord,
    VmJournal,
    VmRecord,
    started_at,
)

BLUE = Network("blue", "bridge", {"bridge": "br0", "create": True, "mtu": 1400})
GREEN = Network("green", "direct", {"parent": "eth0"}, Drift.REPORT)
FACTS = NicFacts("virtio-net-pci", "52:54:00:00:00:01", 1500, managed=True)
SINCE = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CABLE = CableRecord(
    attachment="0123abcd",
    id="0123abcd",
    port=Port(BLUE, "web1/net0", implied=True),
    endpoint=BridgeEndpoint("br0", 1400, isolated=True),
    device="lm0123abcd",
    mac="52:54:00:00:00:01",
    since=SINCE,
)
ON_GREEN = replace(
    CABLE,
    port=Port(GREEN, "one", {"trust_guest": True}),
    endpoint=DirectEndpoint("eth0", DirectMode.VEPA),
)
RECORD = VmRecord(
    "web1",
    "/run/web1.qmp",
    {
        "net0": NicRecord(FACTS, LinkState.DOWN, CABLE, Intent("89abcdef", ON_GREEN.port)),
        "net1": NicRecord(FACTS, cable=ON_GREEN, intent=Intent(notify=NotifyMode.FLAP)),
        "net2": NicRecord(FACTS),
    },
    pid=4711,
    started=815,
    adder=1001,
    owner=1001,
    uuid="11111111-2222-3333-4444-555555555555",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def loaded(folder: Path) -> list[VmRecord]:
    vms, _, _ = await Journal(StateDirectory(folder)).load()
    return vms


def damages(journal: Journal) -> dict[str, str]:
    return {each.name: f"{each.file} {each.why}" for each in journal._documents.damages()}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_what_is_written_is_read_back(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    assert await journal.load() == ([], [], [])
    await journal.save_vm(RECORD)
    await journal.save_networks([BLUE, GREEN], [ON_GREEN.port])
    assert await Journal(StateDirectory(folder)).load() == (
        [RECORD],
        [BLUE, GREEN],
        [ON_GREEN.port],
    )
    await journal.drop_vm("web1")
    await journal.drop_vm("web1")
    assert await loaded(folder) == []


async def test_a_person_can_read_it_and_others_cannot(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(RECORD)
    path = folder / "vms" / "web1.json"
    document = json.loads(path.read_text())
    assert document["format"] == migrations.FORMAT
    assert document["nics"]["net0"]["cable"]["port"]["network"]["name"] == "blue"
    assert "\n" in path.read_text().strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert files(folder) == ["vms/web1.json"]


async def test_without_a_directory_nothing_is_kept() -> None:
    journal = Journal(StateDirectory(None))
    assert await journal.load() == ([], [], [])
    await journal.save_vm(RECORD)
    await journal.save_networks([BLUE], [])
    await journal.drop_vm("web1")


def damage(document: dict[str, Any]) -> dict[str, bytes]:
    whole = json.dumps(document).encode()
    return {
        "cut in half": whole[: len(whole) // 2],
        "empty": b"",
        "not JSON": b"\x00\xff",
        "a list": b"[]",
        "deeply nested": b"[" * 100_000,
        "of a newer linkmgr": json.dumps({**document, "format": 999}).encode(),
        "of no format": json.dumps({**document, "format": 0}).encode(),
        "without its VM": json.dumps({**document, "vm": None}).encode(),
        "of another VM": json.dumps({**document, "vm": "web2"}).encode(),
        "with a wrong NIC": json.dumps({**document, "nics": {"../x": {}}}).encode(),
        "with a wrong cable": json.dumps(
            {**document, "nics": {"net0": {**document["nics"]["net0"], "cable": {"id": 5}}}}
        ).encode(),
    }


@pytest.mark.parametrize("how", damage({"nics": {"net0": {}}}))
async def test_a_damaged_file_is_set_aside_and_never_overwritten(
    folder: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(RECORD)
    await journal.save_vm(replace(RECORD, vm="web2"))
    path = folder / "vms" / "web1.json"
    bad = damage(json.loads(path.read_text()))[how]
    for number in ("", "1"):
        path.write_bytes(bad)
        caplog.clear()
        journal = Journal(StateDirectory(folder))
        vms, _, _ = await journal.load()
        assert [record.vm for record in vms] == ["web2"]
        assert path.with_name(f"web1.json.damaged{number}").read_bytes() == bad
        assert "web1.json.damaged" in damages(journal)["vms/web1"]
        (loud,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert "web1.json cannot be read" in loud.getMessage()
        await journal.save_vm(RECORD)
        assert (folder / "vms" / "web1.json.damaged").read_bytes() == bad


async def test_what_was_set_aside_is_told_until_it_is_written_anew_or_deleted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def told() -> list[tuple[str, str]]:
        journal = Journal(StateDirectory(folder))
        await journal.load()
        return [(each.subject, each.hint) for each in journal._documents.damages()]

    assert await told() == []
    path = folder / "vms" / "web1.json"
    path.write_text("{")
    hint = (
        f"mend it and move it back to {path} while linkmgr is stopped; or add the VM again, and "
        f"delete {path}.damaged"
    )
    for _ in range(3):
        assert await told() == [("web1", hint)]
    assert hint in caplog.text
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(RECORD)  # the VM was added again
    assert damages(journal) == {}
    assert await told() == []
    await journal.drop_vm("web1")
    assert await told() == [("web1", hint)]
    path.with_name("web1.json.damaged").unlink()
    assert await told() == []


async def test_of_a_newer_document_it_is_said_that_a_newer_linkmgr_reads_it(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    (folder / "networks.json").write_text('{"format": 1000}')
    await journal.load()
    (damage,) = journal._documents.damages()
    assert damage.subject == "networks"
    assert damage.hint.startswith("install the newer linkmgr and move it back to ")
    assert "or make the networks and ports again" in damage.hint


async def test_a_vm_may_be_called_like_another_document(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    (folder / "vms" / "networks.json").write_text("{")
    await journal.load()
    await journal.save_networks([BLUE], [])
    assert list(damages(journal)) == ["vms/networks"]


async def test_a_state_directory_is_one_linkmgrs_at_a_time(folder: Path) -> None:
    first, second = StateDirectory(folder), StateDirectory(folder)
    await first.lock()
    with pytest.raises(Conflict, match="another linkmgr uses the state directory") as caught:
        await second.lock()
    assert "--state-dir" in (caught.value.hint or "")
    first.close()
    first.close()
    await second.lock()
    second.close()
    await StateDirectory(None).lock()


async def test_a_lock_that_anybody_can_have_keeps_no_linkmgr_from_its_state(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    fd = os.open(folder, os.O_RDONLY)  # as anybody may
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        documents = StateDirectory(folder)
        await documents.lock()
        documents.close()
    finally:
        os.close(fd)
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o077 == 0


async def test_a_document_that_is_not_written_is_a_finding_until_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SAVE_RETRY_INTERVAL_S", 0.02)
    async with LinkManager(state=folder, watch=False) as links:
        content = {"seen": {"web1": "up"}}
        saved = SavedDocument(links.documents, "extra", "what was seen", lambda: content)
        (folder / "extra.json").mkdir()
        await saved.save()
        await asyncio.sleep(0.1)
        (found,) = await links.check()
        assert (found.code, found.subject) == ("not-written", "extra")
        assert found.what.startswith("what was seen is not written down: ")
        assert caplog.text.count("what was seen") == 1, "it is told once"
        async with saved._saving:  # an attempt under way would still write what was seen before
            content["seen"] = {"web1": "down"}
            (folder / "extra.json").rmdir()
        async with asyncio.timeout(5):
            while await links.check():  # noqa: ASYNC110 - it knows no test
                await asyncio.sleep(0.02)
    assert json.loads((folder / "extra.json").read_text())["seen"] == {"web1": "down"}


async def test_damaged_networks_are_set_aside_too(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(RECORD)
    (folder / "networks.json").write_text('{"format": 1, "networks": [{}], "ports": []}')
    journal = Journal(StateDirectory(folder))
    assert await journal.load() == ([RECORD], [], [])
    assert "networks[0].name" in damages(journal)["networks"]
    assert (folder / "networks.json.damaged").exists()


async def test_a_damaged_file_that_cannot_be_set_aside_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    path = folder / "vms" / "web1.json"
    path.write_text("{")

    def rename(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.rename", rename)
    journal = Journal(StateDirectory(folder))
    assert await journal.load() == ([], [], [])
    with pytest.raises(StateError, match=r"web1\.json could not be read when"):
        await journal.save_vm(RECORD)
    assert path.read_text() == "{"


async def test_an_older_file_is_migrated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(RECORD)
    now = migrations.FORMAT
    monkeypatch.setattr(module, "FORMAT", now + 2)

    def one(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "monitor": document["qmp"]}

    def two(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "qmp": document["monitor"] + ".new"}

    monkeypatch.setattr(module, "MIGRATIONS", {now: one, now + 1: two})
    assert await loaded(folder) == [replace(RECORD, qmp="/run/web1.qmp.new")]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
async def test_a_write_that_fails_leaves_the_old_document(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(RECORD)
    vm = VmJournal(journal, RECORD)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(StateError, match="No space left on device") as caught:
            await vm.change("net2", intent=Intent())
        assert caught.value.hint
        with pytest.raises(StateError):
            await vm.set_vm({}, 1)
    assert files(folder) == ["vms/web1.json"]
    assert await loaded(folder) == [RECORD]
    assert vm.record == RECORD
    await vm.change("net1", intent=None)
    (now,) = await loaded(folder)
    assert now.nics["net1"].intent is None
    assert now.nics["net2"].intent is None, "what could not be written does not come later"


async def test_a_write_that_is_cancelled_is_finished_and_leaves_nothing_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the next one never meets what it was writing."""
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(RECORD)
    begun, go_on, sync = threading.Event(), threading.Event(), os.fsync

    def slow(fd: int) -> None:
        begun.set()
        assert go_on.wait(5)
        sync(fd)

    monkeypatch.setattr("os.fsync", slow)
    first = asyncio.create_task(journal.save_vm(replace(RECORD, qmp="/run/" + "x" * 5000)))
    assert await asyncio.to_thread(begun.wait, 5)
    first.cancel()
    second = asyncio.create_task(journal.save_vm(replace(RECORD, qmp="/run/y")))
    await asyncio.sleep(0.05)
    assert not first.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert files(folder) == ["vms/web1.json"]
    await second
    assert await loaded(folder) == [replace(RECORD, qmp="/run/y")]


async def test_a_new_folder_is_on_disk_before_anything_is_written_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def noted(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        sync(fd)

    monkeypatch.setattr("os.fsync", noted)
    journal = Journal(StateDirectory(tmp_path / "above" / "state"))
    await journal.load()
    wanted = [str(tmp_path), str(tmp_path / "above"), str(tmp_path / "above" / "state")]
    assert synced == wanted
    assert (tmp_path / "above" / "state" / "vms").stat().st_mode & 0o777 == 0o700
    synced.clear()
    await journal.load()
    assert synced == [], "only what is new"


async def test_what_a_crash_left_half_written_is_cleared(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(RECORD)
    for name in ("web1.json.tmp", "web1.json.x1y2z3.tmp", "web2.json.x1y2z3.tmp"):
        (folder / "vms" / name).write_text('{"format"')
    assert await loaded(folder) == [RECORD]
    assert files(folder) == ["vms/web1.json"]


async def test_changes_of_several_nics_at_once_are_all_kept(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    nics = {f"net{number}": NicRecord(FACTS) for number in range(20)}
    vm = VmJournal(journal, VmRecord("web1", "/run/web1.qmp"))
    await vm.set_vm(nics, None)
    await asyncio.gather(*(vm.change(alias, wanted=LinkState.DOWN) for alias in nics))
    (record,) = await loaded(folder)
    assert all(nic.wanted is LinkState.DOWN for nic in record.nics.values())


async def test_a_vm_that_was_dropped_does_not_come_back(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    vm = VmJournal(journal, VmRecord("web1", "/run/web1.qmp"))
    await vm.set_vm({"net0": NicRecord(FACTS)}, None)
    await vm.drop()
    await vm.change("net0", wanted=LinkState.DOWN)
    assert await loaded(folder) == []


async def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be used"):
        await Journal(StateDirectory(tmp_path / "file" / "state")).load()


async def test_a_nic_that_cannot_be_named_does_not_cost_the_others_their_cables(
    folder: Path,
) -> None:
    """An older linkmgr wrote down what QEMU said."""
    odd = replace(RECORD, nics={**RECORD.nics, "a" * 64: NicRecord(FACTS)})
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(odd)
    assert await loaded(folder) == [RECORD]


async def test_a_process_is_known_by_its_start() -> None:
    me = replace(RECORD, pid=os.getpid(), started=started_at(os.getpid()))
    assert me.process_lives()
    assert not replace(me, started=1).process_lives()
    assert not replace(me, pid=None).process_lives()
    assert not replace(me, pid=2**22 + 1).process_lives()


async def test_a_file_that_cannot_be_read_now_is_left_where_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be whole, and readable at the next start."""
    journal = Journal(StateDirectory(folder))
    await journal.load()
    await journal.save_vm(RECORD)

    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    journal = Journal(StateDirectory(folder))
    with monkeypatch.context() as patch:
        patch.setattr("aiofiles.open", broken)
        assert await journal.load() == ([], [], [])
    assert "Input/output error" in damages(journal)["vms/web1"]
    with pytest.raises(StateError, match="not overwritten"):
        await journal.save_vm(RECORD)
    assert await loaded(folder) == [RECORD]


async def test_a_vm_may_be_called_as_if_it_were_damaged(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    odd = replace(RECORD, vm="db.damaged")
    await journal.save_vm(odd)
    assert await loaded(folder) == [odd]


async def test_what_was_set_aside_of_the_networks_is_still_told_of(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    await journal.load()
    (folder / "networks.json.damaged2").write_text("{")
    journal = Journal(StateDirectory(folder))
    await journal.load()
    assert "networks" in damages(journal)
