"""What is done with a domain's cables, and when: the table of docs/metadata.md, row by row."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time

import pytest

from linkmgr.errors import LinkMissing, NotOnHub, PortInUse
from linkmgr.events import EventKind
from linkmgr.libvirt.client.events import DomainEventKind
from linkmgr.libvirt.xml.desired_cables import CABLES_NAMESPACE
from linkmgr.model import NicRef, NicState
from tests.unit.care_lab import (
    BLUE,
    BOTH,
    NET0,
    RED,
    UUID,
    ConnectedQemu,
    Lab,
    cable,
    cables,
    domain_xml,
    lab,
)

__all__ = ["lab"]  # a fixture


async def test_a_guest_is_plugged_when_it_runs_and_not_before(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BOTH)
    async with lab.controller() as controller:
        await controller.on_unclaimed(ConnectedQemu())
        await lab.settle()
        assert lab.manager.calls == [f"add_vm web1 inbound:{UUID}"]
        lab.manager.resume()
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue", "ua-net1": "red"}
        calls = lab.manager.calls[1:]
        assert calls.index("set_link web1/ua-net1 down") < calls.index("plug web1/ua-net1 red")
        for nic in ("ua-net0", "ua-net1"):  # libvirt's tap must have let go of the name
            named = f"set_device_name web1/{nic} lmtap{nic[-1]}"
            assert calls.index(f"ensure_backend_placeholder web1/{nic}") < calls.index(named)
        assert controller.findings() == []


async def test_it_is_done_once_for_a_process_whatever_is_told_again(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
        await lab.manager.unplug(NET0)
        done = list(lab.manager.calls)
        lab.manager.resume()
        lab.manager.bus.publish(EventKind.VM_ANSWERS, "web1")
        lab.manager.bus.publish(EventKind.OVERFLOW, "")
        lab.libvirt.tell(DomainEventKind.CONNECTED)
        lab.libvirt.tell(DomainEventKind.METADATA, CABLES_NAMESPACE)
        lab.libvirt.tell(DomainEventKind.RESUMED)
        await lab.settle()
        assert lab.manager.calls == done
    lab.libvirt.calls.clear()
    async with lab.controller():  # nor by a service that was started anew
        await lab.settle()
    assert [call for call in lab.manager.calls if call.startswith("plug")] == [
        "plug web1/ua-net0 blue"
    ]


async def test_a_new_process_is_plugged_as_its_own_xml_says(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
        lab.manager.end()
        await lab.settle()
        assert lab.manager.vms == {}
        assert list(lab.folder.iterdir()) == []
        lab.libvirt.live = domain_xml(RED)  # a snapshot's, say
        lab.manager.boot()
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}


async def test_what_a_restart_cut_off_is_done_after_it(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BOTH)
    lab.retry_intervals = (60.0,)
    lab.manager.broken["plug web1/ua-net0"] = LinkMissing("there is no device br-blue")
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
        await lab.manager.unplug(NicRef("web1", "ua-net1"))  # an operator
    document = json.loads((lab.folder / "domains.json").read_text())
    assert document["domains"][UUID]["undone"] == ["ua-net0"]
    lab.manager.broken.clear()
    async with lab.controller():
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}, "and not what was done"


async def test_what_was_edited_while_the_service_was_away_is_followed(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
    lab.libvirt.live = domain_xml(RED)
    async with lab.controller():
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}


async def test_only_the_nics_whose_live_metadata_changed_are_touched(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BOTH)
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
        await lab.manager.unplug(NicRef("web1", "ua-net1"))  # an operator, and libvirt was away
        lab.manager.calls.clear()
        lab.libvirt.edit(BOTH.replace("blue", "red"))
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}
        assert not [call for call in lab.manager.calls if "ua-net1" in call]
        lab.libvirt.edit("")  # what is not asked for any more is unplugged
        await lab.settle()
        assert lab.manager.on() == {}


async def test_stored_metadata_changes_nothing_until_the_next_start(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
        lab.libvirt.stored = domain_xml(RED)
        lab.libvirt.tell(DomainEventKind.METADATA, CABLES_NAMESPACE)
        lab.libvirt.tell(DomainEventKind.DEFINED)
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}
        lab.manager.end()
        lab.libvirt.live = lab.libvirt.stored
        lab.manager.boot()
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}


async def test_metadata_that_cannot_be_read_is_told_once_and_the_guest_stays_as_it_is(
    lab: Lab,
) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        for _ in range(2):
            lab.libvirt.edit(cables(cable("ua-net0", netwrok="red")))
            await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}
        (finding,) = controller.findings()
        assert (finding.code, finding.subject) == ("bad-metadata", "web1/ua-net0")
        assert "did you mean network?" in finding.hint
        lab.libvirt.edit(RED)
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}
        assert controller.findings() == []
    assert [event["subject"] for event in lab.told()] == ["web1/ua-net0"]


async def test_metadata_that_cannot_be_read_at_boot_is_applied_when_it_is_mended(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(
        "<lm:cables xmlns:lm='urn:linkmgr:cables'><lm:cable/></lm:cables>"
    )
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        assert [each.code for each in controller.findings()] == ["bad-metadata"]
        assert lab.manager.on() == {}
        lab.libvirt.edit(BLUE)
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}


async def test_a_network_that_appears_later_is_plugged_into_then(lab: Lab) -> None:
    del lab.manager.the_networks["blue"]
    lab.retry_intervals = (60.0,)
    lab.libvirt.live = domain_xml(BOTH)
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        assert lab.manager.on() == {"ua-net1": "red"}, "one NIC never hinders another"
        (finding,) = controller.findings()
        assert (finding.code, finding.subject) == ("unknown-network", "web1/ua-net0")
        assert "by itself" in finding.hint
        lab.manager.network("blue")
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue", "ua-net1": "red"}
        assert controller.findings() == []
    (told,) = lab.told()
    assert told["waits"] is True


async def test_what_failed_is_tried_again_and_ends_with_its_process(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    lab.manager.broken["plug"] = PortInUse("port blue:p1 is in use by web2/net0")
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        tries = len(lab.manager.calls)
        await lab.settle()
        assert len(lab.manager.calls) > tries
        lab.manager.end()
        await lab.settle()
        tries = len(lab.manager.calls)
        await lab.settle()
        assert len(lab.manager.calls) == tries
        assert controller.findings() == []
    assert len(lab.told()) == 1, "told once, however often it was tried"


async def test_a_nic_that_is_not_there_and_one_that_no_cable_fits_are_not_tried_again(
    lab: Lab,
) -> None:
    lab.libvirt.live = domain_xml(
        cables(cable("ua-net7", network="blue"), cable("ua-net0", driver="nosuch"))
    )
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        calls = list(lab.manager.calls)
        await lab.settle()
        assert lab.manager.calls == calls
        assert {(each.code, each.subject) for each in controller.findings()} == {
            ("unknown-nic", "web1/ua-net7"), ("bad-option", "web1/ua-net0"),
        }  # fmt: skip


async def test_a_prepared_nic_that_is_not_on_its_hub_is_told_and_left_alone(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BOTH)
    async with lab.controller() as controller:
        lab.manager.boot(running=False)
        nic = lab.manager.the_nics[NET0]
        lab.manager.the_nics[NET0] = type(nic)(
            **{**vars(nic), "state": NicState.UNMANAGED, "wiring": None}
        )
        lab.manager.broken["plug web1/ua-net0"] = NotOnHub("no")
        lab.manager.resume()
        await lab.settle()
        (finding,) = controller.findings()
        assert (finding.code, finding.subject) == ("not-on-hub", "web1/ua-net0")
        assert "the guest is isolated" in finding.what
        assert "linkmgr prepare web1 --define" in finding.hint
        assert lab.manager.on() == {"ua-net1": "red"}
        assert "plug web1/ua-net0 blue" not in lab.manager.calls


async def test_an_inline_network_is_the_same_for_all_and_goes_with_the_last(lab: Lab) -> None:
    raw = "<lm:cable nic='{}' driver='bridge'>{}</lm:cable>"
    option = "<lm:option name='{}' value='{}'/>"
    one = option.format("bridge", "br7") + option.format("isolated", "true")
    other = option.format("isolated", "true") + option.format("bridge", "br7")
    lab.libvirt.live = domain_xml(cables(raw.format("ua-net0", one), raw.format("ua-net1", other)))
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
        (name,) = set(lab.manager.on().values())
        assert name.startswith("raw-bridge-")
        assert lab.manager.the_networks[name].options == {"bridge": "br7", "isolated": True}
        lab.manager.the_networks["raw-bridge-mine"] = lab.manager.the_networks["blue"]
        for number in (0, 1):
            assert name in lab.manager.the_networks
            await lab.manager.unplug(NicRef("web1", f"ua-net{number}"))
            await lab.settle()
        assert set(lab.manager.the_networks) == {"blue", "red", "raw-bridge-mine"}


async def test_a_guest_whose_link_was_down_does_not_see_its_old_cable_on_the_way(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(cables(cable("ua-net0", network="blue", link="down")))
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
        lab.manager.calls.clear()
        lab.libvirt.edit(RED)
        await lab.settle()
        assert lab.manager.calls == ["plug web1/ua-net0 red", "set_link web1/ua-net0 up"]


async def test_a_state_directory_that_cannot_be_written_keeps_no_cable_from_being_plugged(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.state.directory.SAVE_RETRY_INTERVAL_S", 0.05)
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller():
        lab.folder.rmdir()
        lab.folder.touch()
        lab.manager.boot()
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}
        assert [each.name for each, _ in lab.manager.documents.unwritten()] == ["domains"]
        await asyncio.sleep(0.3)
        assert caplog.text.count("domains' cables") == 1, "it is told once"
        lab.folder.unlink()
        lab.folder.mkdir()
        async with asyncio.timeout(5):
            while lab.manager.documents.unwritten():  # noqa: ASYNC110 - it knows no test
                await asyncio.sleep(0.02)
        assert "web1" in (lab.folder / "domains.json").read_text()


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "domains": {"x": {"name": 7}}}'])
async def test_a_damaged_record_is_set_aside_and_nothing_is_done_anew_for_who_ran_before(
    lab: Lab, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator may have changed its cables since."""
    caplog.set_level(logging.ERROR)
    lab.folder.mkdir()
    (lab.folder / "domains.json").write_text(text)
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
        assert lab.manager.on() == {}
        assert [each.name for each in lab.manager.documents.damages()] == ["domains"]
        lab.manager.end()
        await lab.settle()
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        lab.manager._boots = now  # it starts after the service
        lab.manager.boot()
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}
    assert (lab.folder / "domains.json.damaged").read_text() == text
