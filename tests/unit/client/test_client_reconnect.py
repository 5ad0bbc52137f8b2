"""The client outlives the service, and never does twice what may have been done."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr import Client
from linkmgr.errors import ServiceGone, ServiceUnreachable
from tests.own_time import own_time
from tests.unit import samples
from tests.unit.hook_lab import full
from tests.unit.http_peer import Exchange, FakeService, serving


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


async def hang_up(exchange: Exchange) -> None:
    """End the connection without an answer."""


async def test_a_change_waits_for_a_service_that_is_just_starting(service: FakeService) -> None:
    service.answers(samples.outcome())
    await service.stop()
    async with Client(service.path) as client, asyncio.TaskGroup() as group:
        plugging = group.create_task(client.plug("web1/net0", "blue"))
        await asyncio.sleep(0.2)
        assert not plugging.done()
        await service.start()
    assert plugging.result().changed
    assert len(service.seen) == 1


async def test_a_dead_services_socket_is_waited_for_too(service: FakeService) -> None:
    service.answers({"nics": []})
    await service.stop(leave_socket=True)
    async with Client(service.path) as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.nics())
        await asyncio.sleep(0.1)
        await service.start()
    assert asking.result() == []


async def test_a_client_works_on_after_a_restart_of_the_service(service: FakeService) -> None:
    service.answers(samples.outcome())
    async with Client(service.path, patience=0) as client:
        for _ in range(3):
            await client.plug("web1/net0", "blue")
            await service.stop()
            await service.start()
    assert len(service.seen) == 3


async def test_no_service_is_an_error_within_the_bound_that_says_what_to_do(
    tmp_path: Path,
) -> None:
    began, own = time.monotonic(), own_time()
    async with Client(tmp_path / "none.sock", patience=0.3) as client:
        with pytest.raises(ServiceUnreachable) as caught:
            await client.plug("web1/net0", "blue")
    assert time.monotonic() - began > 0.25
    assert own_time() - own < 1.5
    text = str(caught.value)
    assert "web1/net0: the service at " in text
    assert "none.sock cannot be reached: there is no such socket" in text
    assert "systemctl start linkmgr" in text
    assert "--socket" in text


async def test_a_socket_that_nobody_listens_on_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with Client(path, patience=0) as client:
        with pytest.raises(ServiceUnreachable, match="nobody listens there"):
            await client.nics()


async def test_a_path_that_is_too_long_for_a_socket_is_an_error_of_linkmgr() -> None:
    async with Client("/run/" + "x" * 200, patience=0) as client:
        with pytest.raises(ServiceUnreachable, match="path too long"):
            await client.nics()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_a_socket_that_may_not_be_opened_is_not_waited_for(service: FakeService) -> None:
    for folder in (*service.path.parents[:3], service.path.parent):
        folder.chmod(folder.stat().st_mode | 0o055)
    service.path.chmod(0o600)
    began = time.monotonic()
    os.seteuid(65534)
    try:
        async with Client(service.path, patience=5) as client:
            with pytest.raises(ServiceUnreachable, match="permission denied"):
                await client.nics()
    finally:
        os.seteuid(0)
    assert time.monotonic() - began < 2


async def test_a_change_that_may_have_been_received_is_sent_only_once(service: FakeService) -> None:
    service.script = hang_up
    async with Client(service.path) as client:
        with pytest.raises(ServiceGone, match="may or may not have done") as caught:
            await client.plug("web1/net0", "blue")
        for change in (
            client.unplug("web1/net0"),
            client.create_network("blue", "bridge"),
            client.delete_network("blue"),
            client.gc(),
        ):
            with pytest.raises(ServiceGone):
                await change
    assert caught.value.nic == "web1/net0"
    assert [request.method for request in service.seen] == [
        "PUT",
        "DELETE",
        "POST",
        "DELETE",
        "POST",
    ]


async def test_a_change_whose_answer_is_cut_in_half_is_sent_only_once(service: FakeService) -> None:
    async def half(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")

    service.script = half
    async with Client(service.path) as client:
        with pytest.raises(ServiceGone):
            await client.unplug("web1/net0")
    assert len(service.seen) == 1


async def test_a_service_that_is_stopping_is_asked_again_when_it_is_back(
    service: FakeService,
) -> None:
    def script(exchange: Exchange) -> None:
        if len(service.seen) < 3:
            exchange.refuse(503, code="stopping", what="the service is stopping", hint="wait")
        else:
            exchange.answer(samples.outcome())

    service.script = script
    async with Client(service.path) as client:
        assert (await client.plug("web1/net0", "blue")).changed
    assert len(service.seen) == 3


async def test_a_question_is_asked_again_when_the_service_goes_away(service: FakeService) -> None:
    def script(exchange: Exchange) -> None:
        if len(service.seen) > 2:
            exchange.answer({"nics": []})

    service.script = script
    async with Client(service.path) as client:
        assert await client.nics() == []
    assert len(service.seen) == 3


async def test_a_question_is_not_asked_for_ever(service: FakeService) -> None:
    service.script = hang_up
    async with Client(service.path, patience=0.2) as client:
        with pytest.raises(ServiceGone):
            await client.nics()
    assert len(service.seen) > 1


async def test_a_verb_may_take_longer_than_a_connection(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.client.http.CONNECT_TIMEOUT_S", 0.1)

    async def slowly(exchange: Exchange) -> None:
        await asyncio.sleep(0.5)
        exchange.answer(samples.outcome())

    service.script = slowly
    async with Client(service.path) as client:
        assert (await client.plug("web1/net0", "blue")).changed


async def test_who_stops_waiting_for_a_verb_leaves_nothing_behind(service: FakeService) -> None:
    left = asyncio.Event()

    async def never(exchange: Exchange) -> None:
        await exchange.client_left()
        left.set()

    service.script = never
    async with Client(service.path) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.plug("web1/net0", "blue")
        async with asyncio.timeout(5):
            await left.wait()
    assert len(service.seen) == 1


async def test_a_client_that_was_closed_says_so(service: FakeService) -> None:
    async with Client(service.path) as client:
        pass
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.nics()


async def test_strangers_who_fill_the_queue_of_the_socket_for_all_keep_nothing_from_root(
    tmp_path: Path,
) -> None:
    admins = FakeService(tmp_path / "admin.sock")
    admins.answers({"nics": []})
    await admins.start()
    with full(tmp_path / "lm.sock"):
        async with Client(tmp_path / "lm.sock", patience=0) as client:
            assert await client.nics() == []
    await admins.stop()
    assert len(admins.seen) == 1


async def test_a_socket_for_administrators_that_nobody_listens_on_is_passed_over(
    service: FakeService,
) -> None:
    service.answers({"nics": []})
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(service.path.with_name("admin.sock")))
    async with Client(service.path, patience=0) as client:
        assert await client.nics() == []


async def test_a_user_who_may_not_connect_to_the_administrators_socket_takes_the_other(
    service: FakeService,
) -> None:
    service.answers({"nics": []})
    service.path.chmod(0o666)
    for folder in (service.path.parent, *service.path.parent.parents[:2]):
        folder.chmod(0o755)
    admins = FakeService(service.path.with_name("admin.sock"))
    await admins.start()
    admins.path.chmod(0o600)
    os.seteuid(65534)
    try:
        async with Client(service.path, patience=0) as client:
            assert await client.nics() == []
    finally:
        os.seteuid(0)
        await admins.stop()
    assert (len(service.seen), admins.seen) == (1, [])
