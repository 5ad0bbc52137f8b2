"""The state directory that an earlier linkmgr left is read as what it meant.

tests/data/state-e39dc5c was written by linkmgr at e39dc5c: the service with a configuration, then
two guests with two NICs each, of which one was killed in the middle of a swap and one in the middle
of an unplug. links.json and domains.json are of its tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from linkmgr.hypervisors.qemu.qmp.connector import address_of
from linkmgr.libvirt.domains.domains import KnownDomains
from linkmgr.model import BridgeEndpoint, DirectEndpoint, LinkState, Network
from linkmgr.state.codec import JsonReader
from linkmgr.state.directory import StateDirectory
from linkmgr.state.journal import Journal, NicRecord, VmRecord
from linkmgr.state.migrations import FORMAT, MIGRATIONS

KEPT = Path(__file__).parents[2] / "data" / "state-e39dc5c"
UUID = "11111111-2222-3333-4444-555555555555"
DOCUMENTS = sorted(
    str(path.relative_to(KEPT)).removesuffix(".json") for path in KEPT.rglob("*.json")
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(KEPT, tmp_path / "state")


def test_there_is_a_step_from_every_format_to_the_next() -> None:
    assert sorted(MIGRATIONS) == list(range(1, FORMAT))


async def test_what_was_plugged_and_what_was_under_way_is_known(folder: Path) -> None:
    vms, networks, ports = await Journal(StateDirectory(folder)).load()
    assert [str(network) for network in networks] == ["office", "green", "blue", "red"]
    assert [str(port) for port in ports] == ["office:desk1", "office:extra", "green:one"]
    web1, web2 = vms
    assert (web1.vm, web1.qmp, web1.pid, web1.started) == ("web1", "/run/web1.qmp", 11270, 90608)
    for vm in vms:
        assert (vm.adder, vm.owner, vm.uuid) == (None, None, None)
    assert told(web1, "net0") == ("blue", BridgeEndpoint("br-blue"), "lmtap0", "nothing")
    assert web1.nics["net0"].name == "lmtap0"
    direct = DirectEndpoint("v-green", trust_guest=True)
    assert told(web1, "net1") == ("green:one", direct, "lm20ca93eb", "unplug")
    office = BridgeEndpoint("br-office", isolated=True)
    assert told(web2, "net0") == ("office:desk1", office, "lm811d1d19", "plug into blue")
    assert web2.nics["net1"].wanted is LinkState.DOWN


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("before", "now"),
    [
        (f"dials:{UUID}", f"inbound:{UUID}"),
        ("inbound:a-file", "./inbound:a-file"),
        ("/run/web1.qmp", "/run/web1.qmp"),
    ],
)
async def test_the_address_of_a_qemu_that_connects_by_itself_is_read_as_inbound(
    folder: Path, number: int, before: str, now: str
) -> None:
    file = folder / "vms/web1.json"
    document = json.loads(file.read_text()) | {"format": number, "qmp": before}
    file.write_text(json.dumps(document))
    (web1, _), _, _ = await Journal(StateDirectory(folder)).load()
    assert web1.qmp == address_of(web1.qmp) == now


def told(vm: VmRecord, alias: str) -> tuple[str, object, str, str]:
    nic: NicRecord = vm.nics[alias]
    assert nic.cable is not None
    under_way = "nothing"
    if nic.intent is not None:
        under_way = f"plug into {nic.intent.port}" if nic.intent.port else "unplug"
    return str(nic.cable.port), nic.cable.endpoint, nic.cable.device, under_way


async def test_what_is_written_anew_has_the_format_of_now_and_says_the_same(folder: Path) -> None:
    journal = Journal(StateDirectory(folder))
    vms, networks, ports = await journal.load()
    for vm in vms:
        await journal.save_vm(vm)
    await journal.save_networks(networks, ports)
    for name in ("networks", "vms/web1", "vms/web2"):
        assert json.loads((folder / f"{name}.json").read_text())["format"] == FORMAT
    assert await Journal(StateDirectory(folder)).load() == (vms, networks, ports)


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_no_document_is_taken_for_damaged_and_nothing_in_it_is_lost(
    folder: Path, name: str
) -> None:
    documents = StateDirectory(folder)
    found: list[dict[str, Any]] = []

    def read(reader: JsonReader) -> bool:
        found.append(dict(reader._value))
        return True

    assert await documents.read(name, read)
    assert documents.damages() == []
    before = json.loads((KEPT / f"{name}.json").read_text())
    assert {key: found[0][key] for key in before} == {**before, "format": found[0]["format"]}


async def test_domains_that_have_ended_are_forgotten_and_the_rest_is_read(folder: Path) -> None:
    domains = KnownDomains(StateDirectory(folder))
    await domains.load()
    assert list(domains) == []  # its process is not there
    assert (
        Network("blue", "bridge", {"bridge": "br-blue", "create": True})
        in (await Journal(StateDirectory(folder)).load())[1]
    )
