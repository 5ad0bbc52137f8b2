"""libvirt's guests in the API: what a change affects, who may make it, the list, the findings."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from linkmgr import Client
from linkmgr.errors import Forbidden, LibvirtRefused, LibvirtUnreachable
from linkmgr.model import Affects, DomainInfo, Finding, LinkState, Notify, Outcome, Transport
from linkmgr.service.config import AccessSection, Config, Rule
from linkmgr.service.core import HookAnswer
from tests.unit.samples import domain
from tests.unit.service_lab import FakeLinks, Lab, running

NOTE = "from its next start on web1/net0 is plugged into blue, link up"


class Guests:
    """A care whose verbs remember what they were to affect."""

    def __init__(self, links: FakeLinks) -> None:
        self.links = links
        self.affected: list[Affects] = []
        self.fails: Exception | None = None

    @property
    def verbs(self) -> Guests:
        return self

    async def plug(
        self, nic: Any, target: Any, *, notify: str | Notify = Notify.AUTO,
        uid: int | None = None, affects: str | Affects = Affects.LIVE,
    ) -> Outcome:  # fmt: skip
        made = await self.links.plug(nic, target, notify=notify, uid=uid)
        return self._done(made, affects)

    async def unplug(self, nic: Any, *, affects: str | Affects = Affects.LIVE) -> Outcome:
        return self._done(await self.links.unplug(nic), affects)

    async def set_link(
        self, nic: Any, state: str | LinkState, *, affects: str | Affects = Affects.LIVE
    ) -> Outcome:
        return self._done(await self.links.set_link(nic, state), affects)

    def _done(self, made: Outcome, affects: str | Affects) -> Outcome:
        self.affected.append(Affects(affects))
        return replace(made, notes=(NOTE,))

    async def domains(self) -> list[DomainInfo]:
        if self.fails:
            raise self.fails
        return [domain(), replace(domain("web1"), transport=Transport.DIALS)]

    async def check(self) -> list[Finding]:
        return [Finding("unknown-network", "web1/net0", "there is no network blue", "create it")]

    async def on_hook(self, *_: str) -> HookAnswer:
        raise NotImplementedError


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path) as made:
        await made.links.add_vm("web1", "/run/q")
        await made.links.create_network("blue", "bridge", bridge="br0")
        yield made


@pytest.fixture
def guests(lab: Lab) -> Guests:
    made = Guests(lab.links)
    lab.core.look_after(made)
    return made


async def test_a_client_says_what_a_change_affects_and_hears_the_notes(
    lab: Lab, guests: Guests
) -> None:
    async with Client(lab.socket) as links:
        outcome = await links.plug("web1/net0", "blue", affects="config")
        assert outcome.notes == (NOTE,)
        await links.unplug("web1/net0", affects=Affects.PERSISTENT)
        await links.set_link("web1/net0", "down", affects="config")
        await links.plug("web1/net0", "blue")
        await links.unplug("web1/net0")
    assert guests.affected == ["config", "persistent", "config", "live", "live"]
    operations = (await lab.ask("GET", "/v1/operations")).json["operations"]
    assert [each["subject"] for each in operations[:3]] == [
        "web1/net0 blue (config)", "web1/net0 (persistent)", "web1/net0 down (config)",
    ]  # fmt: skip


async def test_what_nobody_knows_is_refused(lab: Lab, guests: Guests) -> None:
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
        lab.core.access._masters.clear()
        guests = Guests(lab.links)
        lab.core.look_after(guests)
        await lab.links.add_vm("web1", "/run/q")
        await lab.links.create_network("blue", "bridge", bridge="br0")
        async with Client(lab.socket) as links:
            await links.plug("web1/net0", "blue", affects="config")
            for affects in Affects:
                with pytest.raises(Forbidden):
                    await links.plug("web1/net0", "red", affects=affects)
                with pytest.raises(Forbidden):
                    await links.unplug("web2/net0", affects=affects)
                with pytest.raises(Forbidden):
                    await links.set_link("web2/net0", "up", affects=affects)
        assert guests.affected == ["config"]


async def test_without_libvirt_only_what_runs_can_be_changed(lab: Lab) -> None:
    async with Client(lab.socket) as links:
        assert (await links.plug("web1/net0", "blue")).changed
        for change in (
            links.plug("web1/net0", "blue", affects="config"),
            links.unplug("web1/net0", affects="persistent"),
            links.set_link("web1/net0", "down", affects="config"),
        ):
            with pytest.raises(LibvirtUnreachable, match="without libvirt"):
                await change
        assert (await links.nic("web1/net0")).connection is not None
        assert await links.domains() == []


async def test_domains_are_listed_and_what_they_ask_for_in_vain_is_found(
    lab: Lab, guests: Guests
) -> None:
    async with Client(lab.socket) as links:
        assert await links.domains() == await guests.domains()
        assert await links.check() == await guests.check()
        assert "unknown-network" in (await lab.ask("GET", "/metrics")).raw.decode()
        guests.fails = LibvirtRefused("the list of domains: no", number=38)
        with pytest.raises(LibvirtRefused) as raised:
            await links.domains()
        assert raised.value.number == 38
