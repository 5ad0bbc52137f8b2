"""A change runs by itself: who waits for it, or does not, is another matter."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.errors import PortInUse
from linkmgr.model import NicState
from linkmgr.service import operations
from linkmgr.service.auth.peer import Peer
from linkmgr.service.config.schema import Config, Limits, Permission
from linkmgr.service.http import schemas
from linkmgr.service.problems import ServiceProblem
from linkmgr.testing.process import until
from tests.unit.service_lab import Answer, Lab, request, running

WHERE = "/v1/connections/web1/net0"
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path, Config(limits=Limits(operations=5, running=3))) as made:
        await made.api.add_vm("web1", "/nowhere")
        await made.api.create_network("blue", "bridge", bridge="br0")
        yield made


async def ended(lab: Lab, started: Answer) -> dict[str, object]:
    async with asyncio.timeout(10):
        while True:
            answer = await lab.ask("GET", started.headers["location"])
            schemas.OperationForm.model_validate(answer.json)
            if answer.json["state"] != "running":
                return dict(answer.json)
            await asyncio.sleep(0.01)


async def test_a_client_that_prefers_so_is_answered_at_once(lab: Lab) -> None:
    lab.api.gate.clear()
    started = await lab.ask("PUT", WHERE, {"target": "blue"}, headers=ASYNC)
    assert started.status == 202
    assert started.headers["preference-applied"] == "respond-async"
    assert started.json["state"] == "running"
    assert lab.api.the_nics[next(iter(lab.api.the_nics))].state is NicState.UNPLUGGED
    listed = (await lab.ask("GET", "/v1/operations")).json
    schemas.OperationList.model_validate(listed)
    assert [each["id"] for each in listed["operations"]] == [started.json["id"]]
    lab.api.gate.set()
    operation = await ended(lab, started)
    assert operation["state"] == "done"
    assert operation["uid"] == os.getuid()
    schemas.OutcomeForm.model_validate(operation["result"])


async def test_an_operation_that_is_not_known_is_named_as_it_was_asked_for(lab: Lab) -> None:
    answer = await lab.ask("GET", "/v1/operations/nosuch")
    assert (answer.status, answer.json["what"]) == (404, "there is no operation nosuch")
    long = await lab.ask("GET", f"/v1/operations/{'x' * 100}")
    assert long.json["what"] == f"there is no operation {'x' * 40}"


async def test_a_failed_operation_has_the_problem_of_the_verb(lab: Lab) -> None:
    lab.api.fails = PortInUse("it is in use").about("web1/net0", "unplugged")
    operation = await ended(lab, await lab.ask("PUT", WHERE, {"target": "blue"}, headers=ASYNC))
    assert operation["state"] == "failed"
    directly = await lab.ask("PUT", WHERE, {"target": "blue"})
    assert operation["problem"] == directly.json


async def test_a_client_may_wait_a_little_first(lab: Lab) -> None:
    quick = await lab.ask(
        "PUT", WHERE, {"target": "blue"}, headers={"Prefer": "respond-async, wait=10"}
    )
    assert quick.status == 200
    lab.api.gate.clear()
    slow = await lab.ask(
        "PUT", WHERE, {"target": "blue"}, headers={"Prefer": "wait=1; respond-async"}
    )
    assert slow.status == 202


async def test_only_changes_can_be_operations(lab: Lab) -> None:
    assert (await lab.ask("GET", "/v1/nics", headers=ASYNC)).status == 200


async def test_a_client_that_hangs_up_stops_no_swap(lab: Lab) -> None:
    lab.api.gate.clear()
    _, writer = await lab.connect()
    writer.write(request("PUT", WHERE, {"target": "blue"}))
    await lab.api.plugging.wait()
    writer.transport.abort()
    await asyncio.sleep(0.05)
    lab.api.gate.set()

    async def plugged() -> bool:
        return bool((await lab.ask("GET", "/v1/connections")).json["connections"])

    await until(plugged, timeout=5, what="the NIC is plugged")
    (operation,) = (await lab.ask("GET", "/v1/operations")).json["operations"]
    assert operation["state"] == "done"


async def test_an_operation_that_is_not_known_is_a_problem(lab: Lab) -> None:
    for ident in ("x", "0-1", "%ff"):
        answer = await lab.ask("GET", f"/v1/operations/{ident}")
        assert (answer.status, answer.json["code"]) == (404, "not-found")


async def test_only_the_last_operations_are_kept(lab: Lab) -> None:
    for _ in range(12):
        await lab.ask("DELETE", WHERE)
    ids = [each["id"] for each in (await lab.ask("GET", "/v1/operations")).json["operations"]]
    assert [ident.rpartition("-")[2] for ident in ids] == ["8", "9", "10", "11", "12"]


async def test_finished_operations_take_only_so_many_bytes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "MAX_KEPT_BYTES", 10_000)
    peer = Peer(os.getuid(), os.getgid(), os.getpid(), frozenset())

    async def add() -> dict[str, object]:
        return {"nics": ["x" * 4000]}

    made = [
        lab.context.operations.start(Permission.ADD_VM, str(number), peer, add)
        for number in range(3)
    ]
    for each in made:
        await each.finished.wait()
    listed = (await lab.ask("GET", "/v1/operations")).json["operations"]
    assert [each["subject"] for each in listed] == ["1", "2"], "the last ones"
    assert (await lab.ask("GET", f"/v1/operations/{made[0].id}")).status == 404


async def test_only_so_many_changes_run_at_once(lab: Lab) -> None:
    lab.api.gate.clear()
    for _ in range(3):
        assert (await lab.ask("PUT", WHERE, {"target": "blue"}, headers=ASYNC)).status == 202
    refused = await lab.ask("PUT", WHERE, {"target": "blue"}, headers=ASYNC)
    assert (refused.status, refused.json["code"]) == (429, "too-many")
    assert (await lab.ask("GET", "/v1/nics")).status == 200, "others are not in the way"


async def test_a_service_that_stops_finishes_what_is_under_way(tmp_path: Path) -> None:
    async with running(tmp_path) as lab:
        await lab.api.add_vm("web1", "/nowhere")
        await lab.api.create_network("blue", "bridge", bridge="br0")
        lab.api.gate.clear()
        await lab.ask("PUT", WHERE, {"target": "blue"}, headers=ASYNC)
        waits = asyncio.create_task(lab.ask("PUT", WHERE, {"target": "blue"}))
        idle = await lab.connect()

        async def both() -> bool:
            return len(lab.api.uids) == 2

        await until(both, timeout=5, what="both are under way")
        lab.service.stop()
        late = request("PUT", WHERE, {"target": "blue"})
        idle[1].write(late)  # on a connection that was there before
        await asyncio.sleep(0.2)
        lab.api.gate.set()
        assert (await waits).status == 200
    assert [each.code for each in lab.context.operations.all()] == ["ok", "ok"]


async def test_each_change_is_one_line_of_log(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "linkmgr.service.operations")
    await lab.ask("PUT", WHERE, {"target": "blue"})
    await lab.ask("DELETE", WHERE)
    await lab.ask("DELETE", WHERE)
    lab.api.fails = PortInUse("it is in use")
    await lab.ask("PUT", WHERE, {"target": "blue\nforged"})
    who = f"uid {os.getuid()} (pid {os.getpid()})"
    lines = [record.getMessage().rpartition(" (")[0] for record in caplog.records]
    assert lines == [
        f"{who} plug web1/net0 blue: ok",
        f"{who} unplug web1/net0: ok",
        f"{who} unplug web1/net0: unchanged",
        f"{who} plug web1/net0 blue\\nforged: port-in-use: it is in use",
    ]


async def test_a_user_has_only_so_many_operations_on_one_nic_under_way(lab: Lab) -> None:
    lab.context.config = Config(limits=Limits(operations=5, running=1000))
    gate = asyncio.Event()

    async def wait() -> dict[str, object]:
        await gate.wait()
        return {}

    def start(uid: int, subject: str) -> None:
        peer = Peer(uid, uid, 1, frozenset([uid]))
        lab.context.operations.start(Permission.PLUG, subject, peer, wait)

    for number in range(operations.MAX_QUEUED_PER_NIC):
        start(1000, f"web1/net0 blue{number}")
    with pytest.raises(ServiceProblem, match="8 operations on web1/net0 under way"):
        start(1000, "web1/net0")
    for uid, subject in ((1000, "web1/net1 blue"), (1001, "web1/net0 blue"), (0, "web1/net0")):
        start(uid, subject)
    gate.set()
