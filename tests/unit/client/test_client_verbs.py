"""The client asks for what LinkManager does, and gives back the same types and errors."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr import Client, errors
from linkmgr.api import LibvirtLinkApi
from linkmgr.client.errors import error_from
from linkmgr.errors import (
    BadName,
    BadOption,
    CommandFailed,
    LibvirtRefused,
    LinkmgrError,
    MonitorGone,
    NotFound,
    NotOnHub,
    UnknownVm,
)
from linkmgr.model import (
    Drift,
    Finding,
    LinkState,
    Network,
    NicRef,
    NotifyMode,
    OrphanDevice,
    Outcome,
    Port,
)
from linkmgr.paths import DEFAULT_SOCKET, socket_path
from linkmgr.state.codec import DecodeError, JsonReader, read_nic, to_json
from tests.unit import samples
from tests.unit.http_peer import Exchange, FakeService, serving


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        yield made


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[Client]:
    async with Client(service.path, patience=0) as made:
        yield made


def sent(service: FakeService) -> tuple[str, Any]:
    (request,) = service.seen
    return str(request), request.body


def test_the_client_has_every_verb_with_the_parameters_of_the_protocol() -> None:
    for name, verb in inspect.getmembers(LibvirtLinkApi, inspect.isfunction):
        if not name.startswith("_"):
            of_client = inspect.signature(getattr(Client, name))
            assert of_client.parameters == inspect.signature(verb).parameters, name


async def test_plug_sends_target_and_notification_and_gives_the_outcome(
    client: Client, service: FakeService
) -> None:
    service.answers(samples.outcome())
    result = await client.plug("web1/net0", "blue:p1", notify=NotifyMode.FLAP)
    assert sent(service) == (
        "PUT /v1/connections/web1/net0",
        {"target": "blue:p1", "notify": "flap"},
    )
    assert result == Outcome(samples.nic(), changed=True, timings={"switch": 1.5})


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (samples.BLUE, "blue"),
        (Port(samples.BLUE, "p1"), "blue:p1"),
        (Port(samples.BLUE, "web1/net0", implied=True), "blue"),
    ],
)
async def test_plug_takes_what_the_create_verbs_returned(
    client: Client, service: FakeService, target: Network | Port, text: str
) -> None:
    service.answers(samples.outcome())
    await client.plug(NicRef("web1", "net0"), target)
    assert sent(service)[1]["target"] == text


async def test_every_other_change_asks_for_its_resource(
    client: Client, service: FakeService
) -> None:
    nic, outcome = to_json(samples.nic()), samples.outcome()
    port = Port(samples.BLUE, "p1", {"isolated": True})
    orphan = OrphanDevice("lm1", "a/b", "01234567", 7.5, False)
    for call, answer, request, body, result in [
        (client.unplug("a/b"), outcome, "DELETE /v1/connections/a/b", None, None),
        (client.set_link("a/b", "up"), outcome, "PUT /v1/nics/a/b/link", {"state": "up"}, None),
        (
            client.set_link("a/b", LinkState.DOWN), outcome,
            "PUT /v1/nics/a/b/link", {"state": "down"}, None,
        ),
        (
            client.add_vm("web1", "/run/q"), {"nics": [nic]},
            "POST /v1/vms", {"name": "web1", "qmp": "/run/q"}, [samples.nic()],
        ),
        (client.remove_vm("web1"), {"changed": False}, "DELETE /v1/vms/web1", None, False),
        (
            client.create_network("blue", "bridge", drift=Drift.REPORT, bridge="br0", create=True),
            to_json(samples.BLUE), "POST /v1/networks",
            {
                "name": "blue", "driver": "bridge", "drift": "report",
                "options": {"bridge": "br0", "create": True},
            },
            samples.BLUE,
        ),
        (client.delete_network("blue"), {"changed": True}, "DELETE /v1/networks/blue", None, True),
        (
            client.create_port("blue", "p1", isolated=True), to_json(port), "POST /v1/ports",
            {"network": "blue", "name": "p1", "options": {"isolated": True}}, port,
        ),
        (
            client.delete_port("blue", "p1"), {"changed": True},
            "DELETE /v1/ports/blue/p1", None, True,
        ),
        (
            client.gc(older_than=5, dry_run=True),
            {"orphans": [to_json(orphan)]}, "POST /v1/gc",
            {"older_than": 5, "dry_run": True}, [orphan],
        ),
    ]:  # fmt: skip
        service.seen.clear()
        service.answers(answer)
        given = await call
        assert sent(service) == (request, body)
        if result is not None:
            assert given == result


async def test_what_there_is_is_asked_for_and_read(client: Client, service: FakeService) -> None:
    nic = samples.nic()
    finding = Finding("moved", "web1/net0", "device lm1 is not on br0 any more", "plug it again")
    for call, answer, request, result in [
        (client.nics(), {"nics": [nic]}, "/v1/nics", [nic]),
        (client.nic("web1/net0"), nic, "/v1/nics/web1/net0", nic),
        (client.vms(), {"vms": [samples.vm()]}, "/v1/vms", [samples.vm()]),
        (client.networks(), {"networks": [samples.BLUE]}, "/v1/networks", [samples.BLUE]),
        (client.ports("blue"), {"ports": []}, "/v1/ports?network=blue", []),
        (
            client.connections(), {"connections": [nic.connection]},
            "/v1/connections", [nic.connection],
        ),
        (client.check(), {"findings": [finding]}, "/v1/check", [finding]),
    ]:  # fmt: skip
        service.seen.clear()
        service.answers(to_json(answer))
        assert await call == result
        assert sent(service) == (f"GET {request}", None)


async def test_a_relative_monitor_path_means_the_callers_directory(
    client: Client, service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    service.answers({"nics": []})
    await client.add_vm("web1", "web1.qmp")
    assert sent(service)[1]["qmp"] == str(tmp_path / "web1.qmp")


async def test_a_domain_of_libvirt_is_no_path(client: Client, service: FakeService) -> None:
    service.answers({"nics": []})
    await client.add_vm("web1", "libvirt:web1")
    assert sent(service)[1]["qmp"] == "libvirt:web1"


async def test_an_older_service_says_nothing_of_transport_and_running(
    client: Client, service: FakeService
) -> None:
    old = {k: v for k, v in to_json(samples.vm()).items() if k not in ("transport", "running")}
    service.answers({"vms": [old]})
    assert await client.vms() == [samples.vm()]


async def test_a_name_that_cannot_be_one_is_not_even_sent(
    client: Client, service: FakeService
) -> None:
    for call in (
        client.plug("web1/", "blue"),
        client.unplug("../../etc/net0"),
        client.remove_vm("../x"),
        client.delete_network("a/b"),
        client.delete_port("blue", "x?y"),
        client.ports("blue&network=red"),
    ):
        with pytest.raises(BadName):
            await call
    assert not service.seen


async def test_an_option_that_is_no_json_is_not_even_sent(
    client: Client, service: FakeService
) -> None:
    with pytest.raises(BadOption, match="object"):
        await client.create_network("blue", "bridge", bridge=object())
    assert not service.seen


async def test_an_error_of_the_service_is_raised_as_the_same_class_with_all_its_words(
    client: Client, service: FakeService
) -> None:
    original = NotOnHub("its backend is fixed", hint="boot it on a hub").about(
        "web1/net0", "wired so that its cable cannot change"
    )
    service.script = lambda exchange: exchange.refuse(
        422,
        code=original.code,
        what=original.what,
        hint=original.hint,
        nic=original.nic,
        state=original.state,
        detail=str(original),
    )
    with pytest.raises(NotOnHub) as caught:
        await client.plug("web1/net0", "blue")
    assert str(caught.value) == str(original)
    assert caught.value.hint == "boot it on a hub"


async def test_an_error_that_named_no_nic_names_none_here(
    client: Client, service: FakeService
) -> None:
    service.script = lambda exchange: exchange.refuse(
        404, code="unknown-vm", what="there is no VM web1", hint=None, nic=None, state=None
    )
    with pytest.raises(UnknownVm) as caught:
        await client.plug("web1/net0", "blue")
    assert str(caught.value) == "there is no VM web1"


def test_every_error_class_is_made_again_from_its_code() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, LinkmgrError)
    ]
    assert len(kinds) > 30
    for kind in kinds:
        body = f'{{"code": "{kind.code}", "what": "it happened"}}'.encode()
        made = error_from(500, body)
        # To a client a service that stops is one that does not answer: it asks the next one.
        assert type(made) is (errors.ServiceUnreachable if kind is errors.Stopping else kind)
        assert made.what == "it happened"


def test_what_only_some_errors_have_is_kept() -> None:
    gone = error_from(503, b'{"code": "monitor-gone", "what": "x", "sent": false}')
    assert isinstance(gone, MonitorGone)
    assert gone.sent is False
    failed = error_from(500, b'{"code": "command-failed", "what": "x", "command": "netdev_add"}')
    assert isinstance(failed, CommandFailed)
    assert failed.command == "netdev_add"
    refused = error_from(424, b'{"code": "libvirt-refused", "what": "x", "number": 42}')
    assert isinstance(refused, LibvirtRefused)
    assert refused.no_domain


def test_a_code_that_only_a_newer_service_knows_is_an_error_of_the_same_family() -> None:
    made = error_from(404, b'{"code": "unknown-cable", "what": "there is no cable 7"}')
    assert type(made) is NotFound
    assert str(made) == "there is no cable 7"
    assert made.code == "unknown-cable"
    assert NotFound.code != made.code
    busy = error_from(429, b'{"code": "too-many", "what": "there are too many operations"}')
    assert (type(busy), busy.code) == (LinkmgrError, "too-many")


async def test_an_answer_of_another_program_is_shown(client: Client, service: FakeService) -> None:
    service.script = lambda exchange: exchange.answer("<html>no", 502, "text/html")
    with pytest.raises(LinkmgrError, match=r"502.*<html>no"):
        await client.nics()


async def test_an_answer_of_the_wrong_form_says_where(client: Client, service: FakeService) -> None:
    nic = to_json(samples.nic())
    service.answers(nic | {"mtu": "big"})
    with pytest.raises(LinkmgrError, match=r"mtu: should be a number, not a text"):
        await client.nic("web1/net0")
    service.answers({"nics": {"mtu": "big"}})
    with pytest.raises(LinkmgrError, match=r"nics: should be a list, not an object"):
        await client.nics()
    service.answers("not json")
    with pytest.raises(LinkmgrError, match="it is not JSON"):
        await client.nics()


async def test_members_that_an_older_client_does_not_know_are_left_alone(
    client: Client, service: FakeService
) -> None:
    service.answers({"nics": [to_json(samples.nic()) | {"colour": "red"}], "next": None})
    assert await client.nics() == [samples.nic()]


async def test_a_hundred_verbs_can_be_under_way_at_once(
    client: Client, service: FakeService
) -> None:
    together = asyncio.Barrier(100)

    async def script(exchange: Exchange) -> None:
        await together.wait()
        exchange.answer(samples.outcome())

    service.script = script
    async with asyncio.timeout(10):
        await asyncio.gather(*(client.unplug(f"vm{n}/net0") for n in range(100)))


def test_the_socket_is_what_was_said_else_the_environments_else_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LINKMGR_SOCKET", raising=False)
    assert socket_path() == DEFAULT_SOCKET == Path("/run/linkmgr/linkmgr.sock")
    monkeypatch.setenv("LINKMGR_SOCKET", "/run/other.sock")
    assert socket_path() == Path("/run/other.sock")
    assert socket_path("/run/mine.sock") == Path("/run/mine.sock")
    monkeypatch.setenv("LINKMGR_SOCKET", "")
    assert socket_path() == DEFAULT_SOCKET


async def test_a_state_and_a_kind_that_only_a_newer_service_knows_are_shown_as_they_are(
    client: Client, service: FakeService
) -> None:
    nic, vm = to_json(samples.nic()), to_json(samples.vm())
    newer = copy.deepcopy(nic)
    newer |= {"ref": "web1/net7", "state": "parked", "link": "half", "wanted_link": "auto"}
    newer["connection"]["endpoint"] = {"kind": "ovs", "bridge": "br-int"}
    newer["connection"]["port"]["network"]["drift"] = "adopt"
    service.answers({"nics": [nic, newer]})
    first, second = await client.nics()
    assert first == samples.nic()
    assert (second.state, second.link, second.wanted_link) == ("parked", "half", "auto")
    assert second.describe() == "parked"
    assert second.connection
    assert str(second.connection.endpoint) == "ovs, of a newer linkmgr"
    assert to_json(second)["state"] == "parked"
    service.answers({"vms": [vm, {**vm, "state": "asleep", "transport": "vsock"}]})
    assert [str(each.state) for each in await client.vms()] == [vm["state"], "asleep"]
    service.answers({"connections": [nic["connection"], newer["connection"]]})
    assert len(await client.connections()) == 2


@pytest.mark.parametrize(
    "bad", [None, {}, {"ref": "web1/" + "a" * 64}, {"ref": 7}, {"mtu": "many"}, {"state": []}]
)
async def test_one_bad_entry_does_not_fail_a_list(
    client: Client, service: FakeService, bad: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nic = to_json(samples.nic())
    service.answers({"nics": [{**nic, **bad} if bad else bad, nic]})
    assert await client.nics() == [samples.nic()]
    assert "left out" in caplog.text


async def test_a_vm_with_a_nic_that_cannot_be_named_is_listed(
    client: Client, service: FakeService
) -> None:
    vm = to_json(samples.vm())
    service.answers({"vms": [{**vm, "nics": [*vm["nics"], "web1/" + "a" * 64, 5]}]})
    assert await client.vms() == [samples.vm()]


def test_what_is_on_disk_is_read_strictly() -> None:
    newer = to_json(samples.nic()) | {"state": "parked"}
    with pytest.raises(DecodeError, match="state"):
        read_nic(JsonReader(newer))
