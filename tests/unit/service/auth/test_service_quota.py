"""No user takes the last places: not one who may do something, nor strangers with many uids."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.service.auth.peer import Peer
from linkmgr.service.auth.quota import Quota, Rank
from linkmgr.service.config.schema import AccessSection, Config, Limits, Rule
from linkmgr.service.http import server
from tests.unit.service_lab import Lab, request, running

MEMBER = 4242
WHERE = "/v1/connections/web1/net0"
ASYNC = {"Prefer": "respond-async"}


def peer(uid: int) -> Peer:
    return Peer(uid, uid, 1, frozenset({uid}))


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    access = AccessSection(
        rules=[Rule(user=MEMBER + each, nics=["*"], networks=["*"]) for each in range(8)]
    )
    limits = Limits(running=20, streams=20, connections=50)
    async with running(tmp_path, Config(access=access, limits=limits)) as made:
        await made.api.add_vm("web1", "/nowhere")
        await made.api.create_network("blue", "bridge", bridge="br0")
        yield made


async def plugs(lab: Lab, times: int) -> list[int]:
    """The statuses of plugs that nobody waits for."""
    plug = {"target": "blue"}
    return [(await lab.ask("PUT", WHERE, plug, headers=ASYNC)).status for _ in range(times)]


async def streams(lab: Lab, times: int) -> list[bytes]:
    """The statuses of event streams that are kept."""
    found = []
    for _ in range(times):
        reader, writer = await lab.connect()
        writer.write(request("GET", "/v1/events"))
        found.append((await reader.readline()).split()[1])
        await asyncio.sleep(0)
    return found


async def test_a_user_with_one_slow_guest_leaves_operations_to_others_and_to_root(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.api.gate.clear()
    with monkeypatch.context() as patch:
        patch.setattr(server, "peer_of", lambda _: peer(MEMBER))
        assert await plugs(lab, 7) == [202] * 5 + [429] * 2
        patch.setattr(server, "peer_of", lambda _: peer(MEMBER + 1))
        assert await plugs(lab, 1) == [202]
        for number in range(2, 8):
            patch.setattr(server, "peer_of", lambda _, uid=MEMBER + number: peer(uid))
            await plugs(lab, 3)
        assert await plugs(lab, 1) == [429]
    assert await plugs(lab, 2) == [202, 202], "the last tenth is root's"


async def test_strangers_leave_event_streams_to_those_who_work_with_the_service(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for number in range(4):  # each with another uid
            patch.setattr(server, "peer_of", lambda _, uid=9000 + number: peer(uid))
            said = await streams(lab, 4)
        assert said == [b"429"] * 4
        patch.setattr(server, "peer_of", lambda _: peer(MEMBER))
        assert await streams(lab, 5) == [b"200"] * 5
    assert await streams(lab, 2) == [b"200"] * 2


async def test_strangers_with_many_uids_leave_connections_to_others(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (60, 60))
    with monkeypatch.context() as patch:
        for number in range(20):
            patch.setattr(server, "peer_of", lambda _, uid=9000 + number: peer(uid))
            await lab.connect()
        await asyncio.sleep(0.1)
        assert (await lab.ask("GET", "/healthz")).status == 429
        patch.setattr(server, "peer_of", lambda _: peer(MEMBER))
        assert (await lab.ask("GET", "/healthz")).status == 200
    assert (await lab.ask("GET", "/healthz")).status == 200


def test_a_place_is_given_back_once_and_with_the_rank_that_took_it() -> None:
    ranks = {1000: Rank.MEMBER}
    quota = Quota(lambda: 10, lambda peer: ranks.get(peer.uid, Rank.STRANGER))
    leave = quota.enter(peer(1000))
    ranks.clear()  # the configuration was read again
    assert quota.total == 1
    leave()
    leave()
    assert quota.total == 0
    assert [quota.refusal(peer(each)) for each in (1000, 1001)] == [None, None]
