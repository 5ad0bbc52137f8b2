"""What a build can do, read from its schema."""

from __future__ import annotations

import asyncio
import copy
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from linkmgr.errors import MonitorError, MonitorGone
from linkmgr.hypervisors.qemu.qmp import Monitor, features
from linkmgr.hypervisors.qemu.qmp.features import Features, probe_features, read_schema
from tests.unit.qmp_peer import FakeMonitor, Received, connected, nothing_left_behind

__all__ = ["nothing_left_behind"]


def members(*names: str, **more: str) -> list[dict[str, Any]]:
    return [{"name": n, "type": "str", "default": None} for n in names] + [
        {"name": n, "type": t} for n, t in more.items()
    ]


SCHEMA: list[dict[str, Any]] = [
    {"name": "getfd", "meta-type": "command", "arg-type": "7", "ret-type": "0"},
    {"name": "closefd", "meta-type": "command", "arg-type": "7", "ret-type": "0"},
    {"name": "set_link", "meta-type": "command", "arg-type": "8", "ret-type": "0"},
    {"name": "stop", "meta-type": "command", "arg-type": "0", "ret-type": "0"},
    {"name": "announce-self", "meta-type": "command", "arg-type": "9", "ret-type": "0"},
    {"name": "netdev_add", "meta-type": "command", "arg-type": "10", "ret-type": "0"},
    {"name": "STOP", "meta-type": "event", "arg-type": "0"},
    {"name": "0", "meta-type": "object", "members": []},
    {"name": "7", "meta-type": "object", "members": members("fdname")},
    {"name": "8", "meta-type": "object", "members": members("name", "up")},
    {"name": "9", "meta-type": "object", "members": members("initial", "interfaces", "id")},
    {
        "name": "10",
        "meta-type": "object",
        "members": members("id", type="11"),
        "tag": "type",
        "variants": [
            {"case": "none", "type": "0"},
            {"case": "hubport", "type": "12"},
            {"case": "stream", "type": "13"},
            {"case": "tap", "type": "0"},
        ],
    },
    {"name": "11", "meta-type": "enum", "values": ["none", "hubport", "stream", "tap"]},
    {"name": "12", "meta-type": "object", "members": members("hubid", "netdev")},
    {"name": "13", "meta-type": "object", "members": members("addr", "reconnect-ms")},
    {"name": "str", "meta-type": "builtin", "json-type": "string"},
]
VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian 1:7.2"}


@pytest.fixture(autouse=True)
def unknown_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_cached", OrderedDict())


def script(command: Received) -> object:
    answers: dict[str, object] = {
        "query-version": VERSION,
        "query-target": {"arch": "x86_64"},
        "query-qmp-schema": SCHEMA,
    }
    return answers.get(command.name)


@pytest.fixture
async def peers() -> AsyncIterator[list[tuple[Monitor, FakeMonitor]]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected()) for _ in range(5)]


def schemas_asked(peers: list[tuple[Monitor, FakeMonitor]]) -> int:
    return sum(peer.timeline.count("query-qmp-schema") for _, peer in peers)


def test_commands_arguments_and_netdev_types_are_found() -> None:
    found = read_schema("x", SCHEMA)
    assert found.has_command("set_link")
    assert not found.has_command("STOP")
    assert found.announce_self_ids
    assert found.fd_passing
    assert found.set_link
    assert not found.query_rx_filter
    assert found.hubport
    assert found.stream_netdev
    assert found.reconnect_ms
    assert found.tap
    assert not found.missing
    assert found.netdevs["hubport"] == {"type", "id", "hubid", "netdev"}


def test_what_an_older_build_lacks_is_absent() -> None:
    older = copy.deepcopy(SCHEMA)
    older = [entity for entity in older if entity["name"] != "announce-self"]
    next(e for e in older if e["name"] == "13")["members"].pop()
    found = read_schema("x", older)
    assert not found.announce_self
    assert not found.announce_self_ids
    assert found.stream_netdev
    assert not found.reconnect_ms


@pytest.mark.parametrize(
    "schema", [None, {}, 5, [{}], [{"name": "x"}], [None], [SCHEMA[5]], SCHEMA[:12]]
)
def test_a_schema_that_is_none_is_a_monitor_error(schema: Any) -> None:
    if schema == {}:
        assert read_schema("x", schema) == Features("x", frozenset())
        return
    with pytest.raises(MonitorError, match="QEMU x answered a schema without"):
        read_schema("x", schema)


async def test_probes_of_one_executable_share_one_query(
    peers: list[tuple[Monitor, FakeMonitor]],
) -> None:
    for _, peer in peers:
        peer.serve(script)
    found = await asyncio.gather(*(probe_features(monitor) for monitor, _ in peers))
    assert all(each is found[0] for each in found)
    assert found[0].build == "7.2.22 (Debian 1:7.2) x86_64"
    assert schemas_asked(peers) == 1
    await probe_features(peers[0][0])
    assert schemas_asked(peers) == 1


async def test_another_build_is_asked_for_itself(peers: list[tuple[Monitor, FakeMonitor]]) -> None:
    targets: Iterator[str] = iter(["x86_64", "aarch64"])

    def by_target(command: Received) -> object:
        return {"arch": next(targets)} if command.name == "query-target" else script(command)

    for monitor, peer in peers[:2]:
        peer.serve(by_target)
        await probe_features(monitor)
    assert schemas_asked(peers) == 2


async def test_when_the_asked_monitor_fails_the_next_one_is_asked(
    peers: list[tuple[Monitor, FakeMonitor]],
) -> None:
    (first, first_peer), (second, second_peer) = peers[:2]

    def dies(command: Received) -> object:
        if command.name == "query-qmp-schema":
            first_peer.hang_up()
        return script(command)

    first_peer.serve(dies)
    failing = asyncio.create_task(probe_features(first))
    second_peer.serve(script)
    with pytest.raises(MonitorGone):
        await failing
    assert (await probe_features(second)).hubport


async def test_a_probe_that_is_cancelled_does_not_stop_the_others(
    peers: list[tuple[Monitor, FakeMonitor]],
) -> None:
    for _, peer in peers[1:3]:
        peer.serve(script)
    stuck = asyncio.create_task(probe_features(peers[0][0]))
    peers[0][1].answer(await peers[0][1].next("query-version"), VERSION)
    peers[0][1].answer(await peers[0][1].next("query-target"), {"arch": "x86_64"})
    await peers[0][1].next("query-qmp-schema")
    others = [asyncio.create_task(probe_features(monitor)) for monitor, _ in peers[1:3]]
    await asyncio.sleep(0.02)
    stuck.cancel()
    found = await asyncio.gather(*others)
    assert found[0] is found[1]
    assert schemas_asked(peers) == 2


async def test_a_version_that_is_none_is_a_monitor_error(
    peers: list[tuple[Monitor, FakeMonitor]],
) -> None:
    peers[0][1].serve()
    with pytest.raises(MonitorError, match="does not tell QEMU's version"):
        await probe_features(peers[0][0])


POOR = [entity for entity in SCHEMA if entity["name"] != "announce-self"]


def poor(command: Received) -> object:
    return POOR if command.name == "query-qmp-schema" else script(command)


async def test_what_one_guest_says_that_it_lacks_no_other_lacks(
    peers: list[tuple[Monitor, FakeMonitor]],
) -> None:
    (hostile, hostile_peer), (honest, honest_peer) = peers[:2]
    hostile_peer.serve(poor)
    honest_peer.serve(script)
    for _ in range(2):
        assert (await probe_features(hostile)).missing == ("announce-self with interfaces",)
    assert not (await probe_features(honest)).missing


async def test_what_holds_for_one_executable_does_not_hold_for_another(
    peers: list[tuple[Monitor, FakeMonitor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "qemu-system-x86_64"
    shutil.copy(sys.executable, other)
    child = await asyncio.create_subprocess_exec(other, "-c", "input()", stdin=-1)
    try:
        for _, peer in peers[:2]:
            peer.serve(script)
        await probe_features(peers[0][0])
        monkeypatch.setattr(peers[1][0]._session, "pid", child.pid)
        await probe_features(peers[1][0])
        assert schemas_asked(peers) == 2, "both claim the same version"
    finally:
        child.kill()
        await child.wait()


async def test_an_executable_that_cannot_be_told_is_asked_each_time(
    peers: list[tuple[Monitor, FakeMonitor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for monitor, peer in peers[:2]:
        peer.serve(script)
        monkeypatch.setattr(monitor._session, "pid", None)
        await probe_features(monitor)
    assert schemas_asked(peers) == 2


async def test_a_guest_that_does_not_answer_holds_no_other_of_its_executable_up(
    peers: list[tuple[Monitor, FakeMonitor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARED_PROBE_TIMEOUT_S", 0.05)
    peers[0][1].serve(script)
    silent = asyncio.create_task(probe_features(peers[1][0]))
    peers[1][1].answer(await peers[1][1].next("query-version"), VERSION)
    peers[1][1].answer(await peers[1][1].next("query-target"), {"arch": "x86_64"})
    await peers[1][1].next("query-qmp-schema")
    async with asyncio.timeout(1):
        assert not (await probe_features(peers[0][0])).missing
    silent.cancel()
    await asyncio.gather(silent, return_exceptions=True)


async def test_no_more_executables_are_kept_than_a_host_has(
    peers: list[tuple[Monitor, FakeMonitor]],
) -> None:
    packages = iter(range(features.MAX_CACHED_EXECUTABLES * 2))

    def claims(command: Received) -> object:
        if command.name == "query-version":
            return {**VERSION, "package": f"build {next(packages)}"}
        return script(command)

    peers[0][1].serve(claims)
    for _ in range(features.MAX_CACHED_EXECUTABLES * 2):
        await probe_features(peers[0][0])
    assert len(features._cached) == features.MAX_CACHED_EXECUTABLES


def test_a_schema_of_many_types_and_members_costs_no_time_and_no_memory() -> None:
    schema = copy.deepcopy(SCHEMA)
    union = next(each for each in schema if each["name"] == "10")
    union["members"] += members(*(f"m{number}" for number in range(10_000)))
    union["variants"] = [{"case": f"v{n}", "type": "0"} for n in range(10_000)]
    began = time.process_time()
    with pytest.raises(MonitorError, match="no more than 200"):
        read_schema("x", schema)
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize(
    "version",
    [
        {"qemu": {"major": "x" * 9000, "minor": 2, "micro": 2}, "package": ""},
        {"qemu": {"major": 7, "minor": [], "micro": 2}, "package": ""},
        {"qemu": {"major": 7, "minor": 2, "micro": 2}, "package": "\x1b[2J\n" * 5000},
        {"qemu": [7], "package": ""},
    ],
)
async def test_a_version_is_refused_or_one_short_line(
    peers: list[tuple[Monitor, FakeMonitor]], version: object
) -> None:
    peers[0][1].serve(lambda c: version if c.name == "query-version" else script(c))
    try:
        said = (await probe_features(peers[0][0])).build
    except MonitorError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 400
