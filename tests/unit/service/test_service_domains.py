"""libvirt's guests in the API: what a change affects, who may make it, the list, the findings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from linkmgr import Client
from linkmgr.errors import Forbidden, LibvirtRefused
from linkmgr.model import Affects, Finding, MonitorTransport
from linkmgr.service.config.schema import AccessSection, Config, Rule
from tests.unit.samples import domain
from tests.unit.service_lab import FakeDomainController, Lab, request, running

NOTE = "from its next start on it is plugged into blue, link up"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path) as made:
        await made.api.add_vm("web1", "/run/q")
        await made.api.create_network("blue", "bridge", bridge="br0")
        yield made


@pytest.fixture
def guests(lab: Lab) -> FakeDomainController:
    lab.guests.notes = (NOTE,)
    lab.guests.listed = [domain(), replace(domain("web1"), transport=MonitorTransport.INBOUND)]
    lab.guests.findings = [
        Finding("unknown-network", "web1/net0", "there is no network blue", "create it")
    ]
    return lab.guests


async def test_a_client_says_what_a_change_affects_and_hears_the_notes(
    lab: Lab, guests: FakeDomainController
) -> None:
    async with Client(lab.socket) as api:
        outcome = await api.plug("web1/net0", "blue", affects="config")
        assert outcome.notes == (NOTE,)
        await api.unplug("web1/net0", affects=Affects.PERSISTENT)
        await api.set_link("web1/net0", "down", affects="config")
        await api.plug("web1/net0", "blue")
        await api.unplug("web1/net0")
    assert guests.affected == ["config", "persistent", "config", "live", "live"]
    operations = (await lab.ask("GET", "/v1/operations")).json["operations"]
    assert [each["subject"] for each in operations[:3]] == [
        "web1/net0 blue (config)", "web1/net0 (persistent)", "web1/net0 down (config)",
    ]  # fmt: skip


async def test_what_nobody_knows_is_refused(lab: Lab, guests: FakeDomainController) -> None:
    for method, path, body in (
        ("PUT", "/v1/connections/web1/net0", {"target": "blue", "affects": "now"}),
        ("PUT", "/v1/nics/web1/net0/link", {"state": "up", "affects": ["live"]}),
        ("DELETE", "/v1/connections/web1/net0?affects=always", None),
    ):
        answer = await lab.ask(method, path, body)
        assert (answer.status, answer.json["code"]) == (400, "bad-request")
        assert "affects" in answer.json["what"]
    assert guests.affected == []


async def test_the_rules_of_access_hold_for_the_next_start_too(tmp_path: Path) -> None:
    rule = Rule(user=os.geteuid(), nics=["web1/*"], networks=["blue"])
    config = Config(access=AccessSection(rules=[rule]))
    async with running(tmp_path, config) as lab:
        lab.context.access._privileged.clear()
        await lab.api.add_vm("web1", "/run/q")
        await lab.api.create_network("blue", "bridge", bridge="br0")
        async with Client(lab.socket) as api:
            await api.plug("web1/net0", "blue", affects="config")
            for affects in Affects:
                with pytest.raises(Forbidden):
                    await api.plug("web1/net0", "red", affects=affects)
                with pytest.raises(Forbidden):
                    await api.unplug("web2/net0", affects=affects)
                with pytest.raises(Forbidden):
                    await api.set_link("web2/net0", "up", affects=affects)
        assert lab.guests.affected == ["config"]


@pytest.mark.parametrize("path", ["/v1/check", "/v1/domains"])
async def test_a_look_that_its_client_does_not_wait_for_any_more_is_cancelled(
    lab: Lab, guests: FakeDomainController, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    looking, cancelled = asyncio.Event(), asyncio.Event()

    async def look() -> None:
        looking.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    for verb in ("check", "domains"):
        monkeypatch.setattr(guests, verb, look)
    _, writer = await lab.connect()
    writer.write(request("GET", path))
    async with asyncio.timeout(5):
        await looking.wait()
        writer.close()
        await cancelled.wait()


async def test_domains_are_listed_and_what_they_ask_for_in_vain_is_found(
    lab: Lab, guests: FakeDomainController
) -> None:
    async with Client(lab.socket) as api:
        assert await api.domains() == await guests.domains()
        assert await api.check() == await guests.check()
        assert "unknown-network" in (await lab.ask("GET", "/metrics")).raw.decode()
        guests.fails = LibvirtRefused("the list of domains: no", number=38)
        with pytest.raises(LibvirtRefused) as raised:
            await api.domains()
        assert raised.value.number == 38
