"""A host as linkmgr at e39dc5c left it: its state directory, its devices and their old tags.

What it wrote is kept (tests/data/state-e39dc5c). The guests and devices are made again here under
the ids that are in it.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from pathlib import Path

import pytest

from linkmgr import LinkManager, LinkState
from linkmgr.state.journal import started_at
from linkmgr.state.migrations import FORMAT
from linkmgr.testing.process import execute
from tests.integration.lab import Lab

KEPT = Path(__file__).parents[2] / "data" / "state-e39dc5c"
NET = Path("/sys/class/net")
#: NIC, what it is plugged into, the id of its cable, and of the bridge that is made for it.
PLUGGED = [
    ("web1/net0", "blue", "ad64b8d4", "37627b98"),
    ("web1/net1", "green:one", "20ca93eb", None),
    ("web2/net0", "office:desk1", "811d1d19", "537a5afe"),
    ("web2/net1", "red", "f7871733", "9b0dd857"),
]
DEVICES = {"web1/net0": "lmtap0", "web1/net1": "lm20ca93eb", "web2/net0": "lm811d1d19",
           "web2/net1": "lmf7871733"}  # fmt: skip
BRIDGES = {"blue": "br-blue", "office": "br-office", "red": "br-red"}


def index(device: str) -> int:
    return int((NET / device / "ifindex").read_text())


async def as_it_was(lab: Lab, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have guests, devices and tags as they were when that state was written."""
    ids: deque[str] = deque()
    for driver in ("bridge", "direct"):
        monkeypatch.setattr(f"linkmgr.drivers.{driver}.new_id", ids.popleft)
    await lab.network("green")
    for name in ("web1", "web2"):
        await lab.guest(name, nics=2, boot=False, add=False)
    shutil.copytree(KEPT, state)
    async with LinkManager(state=state.with_name("other"), watch=False) as links:
        for network in json.loads((KEPT / "networks.json").read_text())["networks"]:
            await links.create_network(network["name"], network["driver"], **network["options"])
        await links.create_port("green", "one", trust_guest=True)
        await links.create_port("office", "desk1", isolated=True)
        for name, guest in lab.guests.items():
            await links.add_vm(name, guest.qmp_path)
            path = state / "vms" / f"{name}.json"
            document = json.loads(path.read_text())
            process = {"pid": guest.pid, "started": started_at(guest.pid)}
            path.write_text(json.dumps({**document, "qmp": str(guest.qmp_path), **process}))
        await links.set_device_name("web1/net0", "lmtap0")
        for nic, target, cable, bridge in PLUGGED:
            ids.extend([cable, bridge] if bridge else [cable])
            await links.plug(nic, target)
            network = target.partition(":")[0]
            old = [(DEVICES[nic], f"linkmgr:{nic}:{cable}")]
            old += [(BRIDGES[network], f"linkmgr:network/{network}:{bridge}")] if bridge else []
            for device, alias in old:
                await execute(["ip", "link", "set", device, "alias", alias])
        await links.set_link("web2/net1", "down")
    monkeypatch.undo()


async def test_what_an_older_linkmgr_left_is_taken_over_as_it_is(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One swap and one unplug had begun and not got anywhere: both are undone."""
    state = tmp_path / "state"
    await as_it_was(lab, state, monkeypatch)
    devices = [*DEVICES.values(), *BRIDGES.values()]
    before = {device: index(device) for device in devices}
    for _ in range(2):
        async with LinkManager(state=state, watch=False) as links:
            assert {device: index(device) for device in devices} == before
            # A guest that has not booted asks for all frames, and the port is a trusted one.
            assert {found.code for found in await links.check()} <= {"refused"}
            assert await links.gc(older_than=0) == []
            found = {str(each.nic): str(each.port) for each in await links.connections()}
            assert found == {nic: target for nic, target, _, _ in PLUGGED}
            assert (await links.nic("web2/net1")).wanted_link is LinkState.DOWN
        for name in lab.guests:
            document = json.loads((state / "vms" / f"{name}.json").read_text())
            assert document["format"] == FORMAT
            assert all(nic["intent"] is None for nic in document["nics"].values())
            assert document["owner"] == 0
    async with LinkManager(state=state, watch=False) as links:
        for name in lab.guests:
            assert await links.remove_vm(name)
        assert not [device for device in devices if (NET / device).exists()]
