"""A guest that has dialled is added by itself, unless somebody waits for that very call."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import cast

import pytest

from linkmgr.libvirt.domains.controller import DomainController
from linkmgr.libvirt.monitor.peer_identity import ConnectedQemu
from linkmgr.model import VmInfo, VmState
from linkmgr.service.main import _discovered
from tests.unit.samples import NOW

UUID = "e4575ab2-7cba-58df-aac2-669e6faac4ef"
WEB1 = ConnectedQemu("web1", UUID, 4711)


async def added(*vms: VmInfo) -> list[ConnectedQemu]:
    """What the controller is told of when web1 dials and these are there."""
    told: list[ConnectedQemu] = []

    async def on_unclaimed(guest: ConnectedQemu) -> None:
        told.append(guest)

    controller = SimpleNamespace(
        manager=SimpleNamespace(snapshot=lambda: (list(vms), [])), on_unclaimed=on_unclaimed
    )
    ready: asyncio.Future[DomainController] = asyncio.get_running_loop().create_future()
    adding = asyncio.create_task(_discovered(ready, WEB1))
    await asyncio.sleep(0)
    assert not told, "what is known from before is not recovered yet"
    ready.set_result(cast("DomainController", controller))
    await adding
    return told


async def test_a_new_guest_is_added(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert await added() == [WEB1]
    assert f"VM web1 dialled (uuid {UUID}, pid 4711) and was added" in caplog.text


@pytest.mark.parametrize("state", [VmState.ANSWERS, VmState.UNKNOWN])
async def test_one_that_is_there_takes_its_call_itself(state: VmState) -> None:
    assert await added(VmInfo("web1", f"inbound:{UUID}", state, NOW)) == []


async def test_one_that_has_ended_is_replaced() -> None:
    gone = VmInfo("web1", f"inbound:{UUID}", VmState.GONE, NOW)
    assert await added(gone) == [WEB1]


async def test_another_guest_of_that_name_is_for_the_verb_to_judge() -> None:
    other = VmInfo("web1", "/run/web1.qmp", VmState.ANSWERS, NOW)
    assert await added(other) == [WEB1]
