"""A client that sends too much, too slowly or too often harms nobody else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.service.auth.peer import Peer
from linkmgr.service.config.schema import Config, Limits
from linkmgr.service.http import server
from linkmgr.service.http.body_limit import MAX_BODY_BYTES
from linkmgr.testing.process import until
from tests.unit.service_lab import Lab, read_answer, request, running


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    limits = Limits(request_seconds=0.3, connections=4)
    async with running(tmp_path, Config(limits=limits)) as made:
        yield made


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 3_000_000])
async def test_a_body_that_is_too_large_is_refused_unread(lab: Lab, size: int) -> None:
    reader, writer = await lab.connect()
    writer.write(request("POST", "/v1/networks", raw=b"x" * size))
    answer = await read_answer(reader)
    assert (answer.status, answer.json["code"]) == (413, "too-large")
    await writer.drain()
    writer.write(request("GET", "/healthz"))
    assert (await read_answer(reader)).status == 200, "the connection is of use again"


async def test_a_chunked_body_that_grows_too_large_is_refused(lab: Lab) -> None:
    reader, writer = await lab.connect()
    chunked = {"Content-Length": "", "Transfer-Encoding": "chunked"}
    writer.write(request("POST", "/v1/networks", headers=chunked))
    for _ in range(20):
        writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        await writer.drain()
    answer = await read_answer(reader)
    assert (answer.status, answer.json["code"]) == (413, "too-large")


async def test_a_body_of_the_largest_size_is_read(lab: Lab) -> None:
    raw = b'{"name": "blue", "driver": "bridge"}'.ljust(MAX_BODY_BYTES)
    assert (await lab.ask("POST", "/v1/networks", raw=raw)).status == 200
    chunked = {"Content-Length": "", "Transfer-Encoding": "chunked"}
    reader, writer = await lab.connect()
    writer.write(
        request("POST", "/v1/networks", headers=chunked | {"Content-Type": "application/json"})
    )
    writer.write(b"0\r\n\r\n")
    assert (await read_answer(reader)).status == 400


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, "7, 8"])
async def test_a_length_that_is_none_is_refused(lab: Lab, length: str) -> None:
    answer = await lab.ask("POST", "/v1/networks", headers={"Content-Length": length})
    assert answer.status in (400, 413)


async def test_a_head_that_is_too_long_is_refused(lab: Lab) -> None:
    reader, writer = await lab.connect()
    writer.write(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 100_000)
    answer = await read_answer(reader)
    assert (answer.status, answer.json["code"]) == (400, "bad-request")


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"]
)
async def test_a_head_that_does_not_arrive_is_given_up(lab: Lab, sent: bytes) -> None:
    reader, writer = await lab.connect()
    writer.write(sent)
    answer = await read_answer(reader)
    assert (answer.status, answer.json["code"]) == (408, "too-slow")
    assert await reader.read() == b""


async def test_a_second_head_that_does_not_arrive_is_given_up_too(lab: Lab) -> None:
    reader, writer = await lab.connect()
    writer.write(request("GET", "/healthz"))
    assert (await read_answer(reader)).status == 200
    writer.write(b"GET /heal")
    assert (await read_answer(reader)).status == 408


async def test_a_body_that_does_not_arrive_is_given_up(lab: Lab) -> None:
    reader, writer = await lab.connect()
    writer.write(request("POST", "/v1/networks", headers={"Content-Length": "100"}) + b"{")
    answer = await read_answer(reader)
    assert (answer.status, answer.json["code"]) == (408, "too-slow")
    assert not lab.api.the_networks


async def test_a_verb_may_take_longer_than_a_request(lab: Lab) -> None:
    await lab.api.add_vm("web1", "/nowhere")
    await lab.api.create_network("blue", "bridge")
    lab.api.gate.clear()
    asking = asyncio.create_task(lab.ask("PUT", "/v1/connections/web1/net0", {"target": "blue"}))
    await asyncio.sleep(0.6)
    lab.api.gate.set()
    assert (await asking).status == 200


async def test_one_user_has_only_so_many_connections(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    somebody = Peer(4242, 4242, 1, frozenset({4242}))
    await lab.ask("GET", "/healthz")
    with monkeypatch.context() as patch:
        patch.setattr(server, "peer_of", lambda sock: somebody)
        held = [await lab.connect() for _ in range(4)]
        refused = await lab.ask("GET", "/healthz")
        assert (refused.status, refused.json["code"]) == (429, "too-many")
    assert (await lab.ask("GET", "/healthz")).status == 200, "root is always answered"
    for _, writer in held:
        writer.close()
    with monkeypatch.context() as patch:
        patch.setattr(server, "peer_of", lambda sock: somebody)

        async def answered() -> bool:
            return (await lab.ask("GET", "/healthz")).status == 200

        await until(answered, timeout=5, what="there is room for a connection again")


async def test_whoever_cannot_be_known_is_not_answered(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(sock: object) -> Peer:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(server, "peer_of", fails)
    reader, _ = await lab.connect()
    async with asyncio.timeout(5):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)


async def asks_and_does_not_read(lab: Lab) -> socket.socket:
    """Ask for a large answer; the kernel keeps a fifth of a megabyte of it at most."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(lab.socket))
    sock.setblocking(False)
    sock.send(request("GET", "/v1/nics"))
    await asyncio.sleep(0.05)
    return sock


async def has_ended(sock: socket.socket) -> bool:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(0.5):
            while await loop.sock_recv(sock, 1 << 20):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.fixture
async def large(tmp_path: Path) -> AsyncIterator[Lab]:
    """Answers of a megabyte, and much patience."""
    async with running(tmp_path, Config(limits=Limits(request_seconds=30))) as made:
        for number in range(5000):
            await made.api.add_vm(f"web{number}", "/nowhere")
        yield made


async def test_answers_that_nobody_reads_take_only_so_much_memory_of_a_user(
    large: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_UNREAD_PER_UID", 1 << 20)
    somebody = Peer(4242, 4242, 1, frozenset({4242}))
    with monkeypatch.context() as patch:
        patch.setattr(server, "peer_of", lambda _: somebody)
        slow = [await asks_and_does_not_read(large) for _ in range(8)]
        await asyncio.sleep(3)
    streams = large.service._server.server_state.connections
    waiting = sum(each.transport.get_write_buffer_size() for each in streams)
    assert waiting < 3 << 20
    assert len((await large.ask("GET", "/v1/nics")).json["nics"]) == 5000, "root is answered"
    for sock in slow:
        sock.close()


async def test_a_client_that_leaves_a_large_answer_unread_is_given_up(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, Config(limits=Limits(request_seconds=0.3))) as lab:
        for number in range(1500):
            await lab.api.add_vm(f"web{number}", "/nowhere")
        with await asks_and_does_not_read(lab) as sock:
            await asyncio.sleep(1)
            assert await has_ended(sock)
            assert not lab.service._server.server_state.connections
