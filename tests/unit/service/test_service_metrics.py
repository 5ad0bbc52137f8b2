"""The figures are those of what happened, and a hung QEMU does not hold a scrape up."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from linkmgr.errors import PortInUse
from linkmgr.model import Finding, VmInfo
from linkmgr.service import metrics
from linkmgr.service.metrics import metrics_text
from tests.unit.service_lab import FakeApi, Lab, running

WHERE = "/v1/connections/web1/net0"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(tmp_path) as made:
        await made.api.add_vm("web1", "/nowhere")
        await made.api.create_network("blue", "bridge", bridge="br0")
        yield made


def figures(text: str) -> dict[str, float]:
    rows = re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in rows}


async def scrape(lab: Lab) -> dict[str, float]:
    answer = await lab.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return figures(answer.raw.decode())


async def test_changes_are_counted_by_verb_and_code(lab: Lab) -> None:
    await lab.ask("PUT", WHERE, {"target": "blue"})
    lab.api.fails = PortInUse("it is in use")
    await lab.ask("PUT", WHERE, {"target": "blue"})
    await lab.ask("DELETE", WHERE)
    found = await scrape(lab)
    assert found['linkmgr_verbs_total{code="ok",verb="plug"}'] == 1
    assert found['linkmgr_verbs_total{code="port-in-use",verb="plug"}'] == 1
    assert found['linkmgr_verbs_total{code="ok",verb="unplug"}'] == 1
    assert found['linkmgr_verb_seconds_count{verb="plug"}'] == 2
    assert found['linkmgr_step_seconds_count{step="switch"}'] == 1
    assert found['linkmgr_step_seconds_sum{step="switch"}'] == 0.0005
    assert found['linkmgr_events_total{kind="plugged"}'] == 1
    assert found["linkmgr_process_resident_memory_bytes"] > 0


async def test_every_name_is_our_own_and_none_is_about_when_counting_began(lab: Lab) -> None:
    await lab.ask("PUT", WHERE, {"target": "blue"})
    await lab.ask("GET", "/v1/check")
    text = (await lab.ask("GET", "/metrics")).raw.decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert len(names) > 10
    # node_exporter's textfile collector refuses process_*, which it has itself.
    assert [name for name in names if not name.startswith("linkmgr_")] == []
    assert "_created" not in text


async def test_what_is_there_is_counted_by_state(lab: Lab) -> None:
    await lab.ask("PUT", WHERE, {"target": "blue"})
    found = await scrape(lab)
    assert found['linkmgr_nics{state="plugged"}'] == 1
    assert found['linkmgr_nics{state="unplugged"}'] == 0
    assert found['linkmgr_vms{state="answers"}'] == 1
    assert found['linkmgr_connections{network="blue"}'] == 1
    assert found["linkmgr_networks"] == 1
    await lab.api.unplug("web1/net0")
    await lab.api.delete_network("blue")
    found = await scrape(lab)
    assert found['linkmgr_nics{state="plugged"}'] == 0
    assert 'linkmgr_connections{network="blue"}' not in found


async def test_what_a_check_found_is_counted(lab: Lab) -> None:
    before = (await lab.ask("GET", "/metrics")).raw.decode()
    assert "last_check" not in before, "there was none"
    lab.api.findings = [Finding("moved", f"web1/net{n}", "it moved", "plug it") for n in (0, 1)]
    await lab.ask("GET", "/v1/check")
    found = await scrape(lab)
    assert found['linkmgr_findings{code="moved"}'] == 2
    assert found["linkmgr_last_check_timestamp_seconds"] > 1e9
    lab.api.findings = []
    await lab.ask("GET", "/v1/check")
    assert 'linkmgr_findings{code="moved"}' not in await scrape(lab)


async def test_a_qemu_that_hangs_does_not_hold_a_scrape_up(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scrape(lab)
    go_on = asyncio.Event()

    async def hangs() -> list[VmInfo]:
        await go_on.wait()
        return []

    monkeypatch.setattr(lab.api, "vms", hangs)
    monkeypatch.setattr(metrics, "_SCRAPE_TIMEOUT_S", 0.1)
    found = await asyncio.wait_for(scrape(lab), 5)
    assert found['linkmgr_vms{state="answers"}'] == 1, "the figures before"
    await scrape(lab)
    go_on.set()
    assert (await scrape(lab))['linkmgr_vms{state="answers"}'] == 0


async def test_verbs_that_know_without_asking_are_not_asked(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    vms, nics = await lab.api.vms(), await lab.api.nics()

    async def asked() -> list[VmInfo]:
        raise AssertionError("a QEMU was asked")

    monkeypatch.setattr(lab.api, "vms", asked)
    monkeypatch.setattr(lab.api, "nics", asked)
    monkeypatch.setattr(lab.api, "snapshot", lambda: (vms, nics), raising=False)
    assert (await scrape(lab))['linkmgr_vms{state="answers"}'] == 1


async def test_the_text_file_has_what_can_be_counted_from_outside() -> None:
    api = FakeApi()
    await api.add_vm("web1", "/nowhere")
    api.findings = [Finding("moved", "web1/net0", "it moved", "plug it")]
    found = figures(await metrics_text(api))
    assert found['linkmgr_nics{state="unplugged"}'] == 1
    assert found['linkmgr_findings{code="moved"}'] == 1
    assert "process_resident_memory_bytes" not in found
