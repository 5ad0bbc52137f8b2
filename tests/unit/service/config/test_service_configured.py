"""The networks of the configuration are brought about without touching any cable."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from linkmgr.errors import NetworkInUse, ReadOnly, StateError
from linkmgr.model import NicRef
from linkmgr.service.config.declared_networks import DeclaredNetworks
from linkmgr.service.config.schema import Config, NetworkSection
from linkmgr.state.directory import StateDirectory
from linkmgr.testing.process import until
from tests.unit.service_lab import FakeApi, Lab, running

NIC = NicRef("web1", "net0")


def network(bridge: str = "br0", **ports: dict[str, Any]) -> NetworkSection:
    return NetworkSection(driver="bridge", options={"bridge": bridge}, ports=ports)


def bridges(api: FakeApi) -> dict[str, object]:
    return {name: each.options["bridge"] for name, each in api.the_networks.items()}


@pytest.fixture
async def api() -> FakeApi:
    made = FakeApi()
    await made.add_vm("web1", "/nowhere")
    return made


async def test_what_is_described_is_made_and_what_is_no_longer_is_deleted(api: FakeApi) -> None:
    declared = DeclaredNetworks(api, StateDirectory(None))
    await declared.apply({"blue": network(p7={"isolated": True}), "red": network("br1")})
    assert bridges(api) == {"blue": "br0", "red": "br1"}
    assert [str(port) for port in await api.ports("blue")] == ["blue:p7"]
    await declared.apply({"blue": network(p8={})})
    assert bridges(api) == {"blue": "br0"}
    assert [str(port) for port in await api.ports("blue")] == ["blue:p8"]
    await declared.apply({})
    assert not api.the_networks


async def test_what_is_described_otherwise_is_made_anew(api: FakeApi) -> None:
    declared = DeclaredNetworks(api, StateDirectory(None))
    await declared.apply({"blue": network(p7={"isolated": True})})
    await declared.apply({"blue": network("br9", p7={"isolated": False})})
    assert bridges(api) == {"blue": "br9"}
    (port,) = await api.ports("blue")
    assert port.options == {"isolated": False}
    assert port.network.options == {"bridge": "br9"}


@pytest.mark.parametrize("target", ["blue", "blue:p7"])
async def test_what_is_in_use_stays_until_its_last_unplug(api: FakeApi, target: str) -> None:
    declared = DeclaredNetworks(api, StateDirectory(None))
    following = asyncio.create_task(declared.follow(api.events()))
    await asyncio.sleep(0)
    await declared.apply({"blue": network(p7={}), "red": network()})
    await api.plug(NIC, target)
    await declared.apply({"red": network("br5")})
    assert bridges(api) == {"blue": "br0", "red": "br5"}, "the rest is done"
    await api.plug(NIC, "red")
    api.bus.publish("replugged", NIC)  # type: ignore[arg-type]
    await declared.apply({"red": network("br6")})
    assert bridges(api)["red"] == "br5"
    await api.unplug(NIC)

    async def changed() -> bool:
        return bridges(api) == {"red": "br6"}

    await until(changed, timeout=5, what="what was in use is changed")
    api.bus.close()
    await following


async def test_ports_of_the_api_go_with_the_network_of_the_configuration_that_they_are_on(
    api: FakeApi,
) -> None:
    declared = DeclaredNetworks(api, StateDirectory(None))
    await declared.apply({"blue": network(p7={})})
    await api.create_port("blue", "p9", isolated=True)
    await api.plug(NIC, "blue:p9")
    await declared.apply({})
    assert [port.name for port in await api.ports("blue")] == ["p7", "p9"]
    for refused in (declared.check_network, lambda name: declared.check_port(name, "p9")):
        with pytest.raises(ReadOnly, match="blue is no longer in the configuration: it stays"):
            refused("blue")
    await api.unplug(NIC)
    await declared.retry()
    assert not api.the_networks
    assert not api.the_ports
    declared.check_network("blue")


async def test_ports_of_the_api_stay_when_their_network_is_described_otherwise(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = DeclaredNetworks(api, StateDirectory(None))
    await declared.apply({"blue": network(p7={})})
    await api.create_port("blue", "p9", isolated=True)
    delete = api.delete_network

    async def refuse(name: str) -> bool:
        raise NetworkInUse(f"network {name} is in use")

    monkeypatch.setattr(api, "delete_network", refuse)  # somebody was faster
    await declared.apply({"blue": network("br9", p7={})})
    assert bridges(api) == {"blue": "br0"}
    monkeypatch.setattr(api, "delete_network", delete)
    assert {port.name: dict(port.options) for port in await api.ports("blue")} == {
        "p7": {},
        "p9": {"isolated": True},
    }
    await declared.retry()
    assert bridges(api) == {"blue": "br9"}
    assert {port.name: dict(port.options) for port in await api.ports("blue")} == {
        "p7": {},
        "p9": {"isolated": True},
    }
    declared.check_port("blue", "p9")
    with pytest.raises(ReadOnly, match="described by the configuration"):
        declared.check_port("blue", "p7")


async def test_a_network_of_the_api_is_left_alone(
    api: FakeApi, caplog: pytest.LogCaptureFixture
) -> None:
    await api.create_network("blue", "bridge", bridge="mine")
    declared = DeclaredNetworks(api, StateDirectory(None))
    await declared.apply({"blue": network(), "red": network()})
    assert bridges(api) == {"blue": "mine", "red": "br0"}
    assert "network blue of the configuration" in caplog.text
    await declared.apply({})
    assert bridges(api) == {"blue": "mine"}


async def test_a_later_run_knows_which_networks_are_of_the_configuration(
    api: FakeApi, tmp_path: Path
) -> None:
    await api.create_network("own", "bridge", bridge="mine")
    (tmp_path / "state").mkdir()
    state = StateDirectory(tmp_path / "state")
    await DeclaredNetworks(api, state).apply({"blue": network(p7={}), "red": network()})
    await DeclaredNetworks(api, state).apply({"red": network("br2")})
    assert bridges(api) == {"own": "mine", "red": "br2"}
    (record,) = (tmp_path / "state").iterdir()
    assert record.name == "configuration.json"
    assert record.stat().st_mode & 0o777 == 0o600


async def test_a_network_that_was_made_just_before_a_crash_is_known_to_be_ours(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDirectory(tmp_path)
    create = api.create_network

    async def crash(name: str, driver: str, **options: Any) -> None:
        await create(name, driver, **options)
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(api, "create_network", crash)
        with pytest.raises(asyncio.CancelledError):
            await DeclaredNetworks(api, state).apply({"blue": network()})
    assert bridges(api) == {"blue": "br0"}
    await DeclaredNetworks(api, state).apply({})
    assert not api.the_networks


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"blue": 1}', '{"format": 1, "networks": {"blue": {"ports": 1}}}', "\x00"],
)
async def test_a_damaged_record_is_set_aside_deletes_nothing_and_is_told(
    api: FakeApi, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = tmp_path / "configuration.json"
    record.write_text(text)
    await api.create_network("own", "bridge", bridge="mine")
    await DeclaredNetworks(api, StateDirectory(tmp_path)).apply({"blue": network()})
    assert bridges(api) == {"own": "mine", "blue": "br0"}
    assert "delete the networks that the configuration no longer has" in caplog.text
    assert (tmp_path / "configuration.json.damaged").read_text() == text


async def test_a_record_that_cannot_be_written_is_told_and_the_networks_are_there(
    api: FakeApi, caplog: pytest.LogCaptureFixture
) -> None:
    await DeclaredNetworks(api, StateDirectory(Path("/proc/nowhere"))).apply({"blue": network()})
    assert bridges(api) == {"blue": "br0"}
    assert "cannot be written" in caplog.text


async def test_a_record_that_could_not_be_written_is_told_until_it_is_by_itself(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.state.directory.SAVE_RETRY_INTERVAL_S", 0.02)
    state = StateDirectory(tmp_path)
    declared = DeclaredNetworks(api, state)
    await declared.apply({})
    in_its_way = tmp_path / "configuration.json"
    in_its_way.mkdir()
    await declared.apply({"blue": network()})
    assert [document.name for document, _ in state.unwritten()] == ["configuration"]
    in_its_way.rmdir()

    async def is_written() -> bool:
        return not state.unwritten()

    await until(is_written, timeout=5, what="it is written")
    assert "blue" in in_its_way.read_text()


async def test_a_network_that_cannot_be_made_is_a_finding_and_tried_again(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("linkmgr.service.config.declared_networks.RETRY_INTERVAL_S", 0.02)

    async def full(*_: object, **__: object) -> bool:
        raise StateError("the disk is full")

    declared = DeclaredNetworks(api, StateDirectory(None))
    trying = asyncio.create_task(declared.retry_failures())
    with monkeypatch.context() as patch:
        patch.setattr(api, "create_network", full)
        await declared.apply({"blue": network(p7={})})
        await asyncio.sleep(0.1)
        (found,) = declared.findings()
    assert (found.code, found.subject) == ("state-error", "network:blue")
    assert caplog.text.count("the disk is full") == 1, "it is told once"

    async def is_made() -> bool:
        return not declared.findings()

    await until(is_made, timeout=5, what="it is made")
    assert [str(port) for port in await api.ports("blue")] == ["blue:p7"]
    trying.cancel()


async def test_verbs_that_cannot_write_are_tried_again(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*_: object, **__: object) -> bool:
        raise StateError("the disk is full")

    declared = DeclaredNetworks(api, StateDirectory(None))
    await declared.apply({"blue": network(p7={}), "red": network()})
    with monkeypatch.context() as patch:
        for verb in ("create_network", "create_port", "delete_network", "delete_port"):
            patch.setattr(api, verb, full)
        await declared.apply({"green": network()})
        await declared.retry()
    assert "the disk is full" in caplog.text
    await declared.retry()
    assert bridges(api) == {"green": "br0"}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    path = tmp_path / "linkmgr.toml"
    path.write_text(
        "[networks.blue]\ndriver = 'bridge'\noptions = { bridge = 'br0' }\n[networks.blue.ports]\n"
        "p7 = {}\n"
    )
    config = Config(networks={"blue": network(p7={})})
    async with running(tmp_path, config, path=path) as made:
        yield made


async def test_the_api_cannot_change_what_the_configuration_describes(lab: Lab) -> None:
    other = {"name": "blue", "driver": "bridge", "options": {"bridge": "br1"}}
    for method, where, body in (
        ("POST", "/v1/networks", other),
        ("DELETE", "/v1/networks/blue", None),
        ("POST", "/v1/ports", {"network": "blue", "name": "p7", "options": {"isolated": True}}),
        ("DELETE", "/v1/ports/blue/p7", None),
    ):
        answer = await lab.ask(method, where, body)
        assert (answer.status, answer.json["code"]) == (409, "read-only"), where
    same = await lab.ask("POST", "/v1/networks", other | {"options": {"bridge": "br0"}})
    assert same.status == 200, "what is so already is fine"
    for method in ("POST", "DELETE"):
        where = {"POST": "/v1/ports", "DELETE": "/v1/ports/blue/own"}[method]
        assert (await lab.ask(method, where, {"network": "blue", "name": "own"})).status == 200


async def test_a_network_that_leaves_the_configuration_in_use_takes_no_changes(lab: Lab) -> None:
    await lab.api.add_vm("web1", "/nowhere")
    await lab.api.plug(NIC, "blue")
    await lab.context.use(Config())
    for method, where, body in (
        ("DELETE", "/v1/networks/blue", None),
        ("POST", "/v1/ports", {"network": "blue", "name": "own"}),
    ):
        refused = await lab.ask(method, where, body)
        assert (refused.status, refused.json["code"]) == (409, "read-only")
        assert "until its last unplug" in refused.json["detail"]


async def test_sighup_reads_the_configuration_again(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "linkmgr.service")
    path = lab.service._path
    assert path is not None

    async def reload(text: str, told: str) -> None:
        path.write_text(text)
        caplog.clear()
        os.kill(os.getpid(), signal.SIGHUP)

        async def done() -> bool:
            return told in caplog.text

        await until(done, timeout=5, what=told)

    red = "[networks.red]\ndriver = 'bridge'\noptions = { bridge = 'br3' }\n[limits]\nevents = "
    await reload(f"{red}77", "is in force")
    assert "may have been cut off" in caplog.text
    await reload(f"{red}7\n", "is in force")
    assert "may have been cut off" not in caplog.text
    assert bridges(lab.api) == {"red": "br3"}
    assert lab.context.limits().events == 7
    await reload("[limits]\nevents = 9\nevnts = 1\n", "the configuration in force stays")
    assert "line 3" in caplog.text
    assert bridges(lab.api) == {"red": "br3"}
    assert lab.context.limits().events == 7
    assert (await lab.ask("GET", "/healthz")).status == 200
    await reload("", "is empty")
    assert bridges(lab.api) == {"red": "br3"}
    path.unlink()
    os.mkfifo(path)
    await reload_without_writing(caplog, "not a regular file")
    path.unlink()
    await reload_without_writing(caplog, "No such file")
    assert bridges(lab.api) == {"red": "br3"}
    assert not [each for each in caplog.records if each.exc_info]


async def reload_without_writing(caplog: pytest.LogCaptureFixture, told: str) -> None:
    caplog.clear()
    os.kill(os.getpid(), signal.SIGHUP)

    async def done() -> bool:
        return told in caplog.text

    await until(done, timeout=5, what=told)
