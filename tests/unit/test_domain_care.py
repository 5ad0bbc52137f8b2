"""What is done with a domain's cables, and when: the table of docs/metadata.md, row by row."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from linkmgr.errors import (
    LibvirtUnreachable,
    LinkMissing,
    MonitorUnreachable,
    NotOnHub,
    PortInUse,
    UnknownNetwork,
)
from linkmgr.events import EventKind
from linkmgr.libvirt.domain_events import DomainEvent, DomainEventKind
from linkmgr.libvirt.metadata import CABLES
from linkmgr.model import NicRef, NicState, Transport, VmState
from tests.unit.care_lab import UUID, FakeReservations, Lab, cable, cables, domain_xml

NET0 = NicRef("web1", "ua-net0")
BLUE = cables(cable("ua-net0", network="blue"))
RED = cables(cable("ua-net0", network="red"))
BOTH = cables(cable("ua-net0", network="blue"), cable("ua-net1", network="red", link="down"))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path / "state")
    for name in ("blue", "red"):
        made.links.network(name)
    return made


class Dialled:
    name, uuid, pid = "web1", UUID.upper(), 1


async def test_a_guest_is_plugged_when_it_runs_and_not_before(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BOTH)
    async with lab.care() as care:
        await care.on_new(Dialled())
        await lab.settle()
        assert lab.links.calls == [f"add_vm web1 dials:{UUID}"]
        lab.links.resume()
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue", "ua-net1": "red"}
        calls = lab.links.calls[1:]
        assert calls.index("set_link web1/ua-net1 down") < calls.index("plug web1/ua-net1 red")
        for nic in ("ua-net0", "ua-net1"):  # libvirt's tap must have let go of the name
            named = f"name_device web1/{nic} lmtap{nic[-1]}"
            assert calls.index(f"place_stub web1/{nic}") < calls.index(named)
        assert care.findings() == []


async def test_it_is_done_once_for_a_process_whatever_is_told_again(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care():
        lab.links.boot()
        await lab.settle()
        await lab.links.unplug(NET0)
        done = list(lab.links.calls)
        lab.links.resume()
        lab.links.board.tell(EventKind.VM_ANSWERS, "web1")
        lab.links.board.tell(EventKind.OVERFLOW, "")
        lab.libvirt.tell(DomainEventKind.CONNECTED)
        lab.libvirt.tell(DomainEventKind.METADATA, CABLES)
        lab.libvirt.tell(DomainEventKind.RESUMED)
        await lab.settle()
        assert lab.links.calls == done
    lab.libvirt.calls.clear()
    async with lab.care():  # nor by a service that was started anew
        await lab.settle()
    assert [call for call in lab.links.calls if call.startswith("plug")] == [
        "plug web1/ua-net0 blue"
    ]


async def test_a_new_process_is_plugged_as_its_own_xml_says(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care():
        lab.links.boot()
        await lab.settle()
        lab.links.end()
        await lab.settle()
        assert lab.links.vms == {}
        assert list(lab.folder.iterdir()) == []
        lab.libvirt.live = domain_xml(RED)  # a snapshot's, say
        lab.links.boot()
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "red"}


async def test_what_a_restart_cut_off_is_done_after_it(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BOTH)
    lab.pauses = (60.0,)
    lab.links.broken["plug web1/ua-net0"] = LinkMissing("there is no device br-blue")
    async with lab.care():
        lab.links.boot()
        await lab.settle()
        await lab.links.unplug(NicRef("web1", "ua-net1"))  # an operator
    document = json.loads((lab.folder / "domains.json").read_text())
    assert document["domains"][UUID]["undone"] == ["ua-net0"]
    lab.links.broken.clear()
    async with lab.care():
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}, "and not what was done"


async def test_what_was_edited_while_the_service_was_away_is_followed(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care():
        lab.links.boot()
        await lab.settle()
    lab.libvirt.live = domain_xml(RED)
    async with lab.care():
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "red"}


async def test_only_the_nics_whose_live_metadata_changed_are_touched(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BOTH)
    async with lab.care():
        lab.links.boot()
        await lab.settle()
        await lab.links.unplug(NicRef("web1", "ua-net1"))  # an operator, and libvirt was away
        lab.links.calls.clear()
        lab.libvirt.edit(BOTH.replace("blue", "red"))
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "red"}
        assert not [call for call in lab.links.calls if "ua-net1" in call]
        lab.libvirt.edit("")  # what is not asked for any more is unplugged
        await lab.settle()
        assert lab.links.on() == {}


async def test_stored_metadata_changes_nothing_until_the_next_start(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care():
        lab.links.boot()
        await lab.settle()
        lab.libvirt.stored = domain_xml(RED)
        lab.libvirt.tell(DomainEventKind.METADATA, CABLES)
        lab.libvirt.tell(DomainEventKind.DEFINED)
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}
        lab.links.end()
        lab.libvirt.live = lab.libvirt.stored
        lab.links.boot()
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "red"}


async def test_metadata_that_cannot_be_read_is_told_once_and_the_guest_stays_as_it_is(
    lab: Lab,
) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        for _ in range(2):
            lab.libvirt.edit(cables(cable("ua-net0", netwrok="red")))
            await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}
        (finding,) = care.findings()
        assert (finding.code, finding.subject) == ("bad-metadata", "web1/ua-net0")
        assert "did you mean network?" in finding.hint
        lab.libvirt.edit(RED)
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "red"}
        assert care.findings() == []
    assert [event["subject"] for event in lab.told()] == ["web1/ua-net0"]


async def test_metadata_that_cannot_be_read_at_boot_is_applied_when_it_is_mended(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(
        "<lm:cables xmlns:lm='urn:linkmgr:cables'><lm:cable/></lm:cables>"
    )
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        assert [each.code for each in care.findings()] == ["bad-metadata"]
        assert lab.links.on() == {}
        lab.libvirt.edit(BLUE)
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}


async def test_a_network_that_appears_later_is_plugged_into_then(lab: Lab) -> None:
    del lab.links.the_networks["blue"]
    lab.pauses = (60.0,)
    lab.libvirt.live = domain_xml(BOTH)
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        assert lab.links.on() == {"ua-net1": "red"}, "one NIC never hinders another"
        (finding,) = care.findings()
        assert (finding.code, finding.subject) == ("unknown-network", "web1/ua-net0")
        assert "by itself" in finding.hint
        lab.links.network("blue")
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue", "ua-net1": "red"}
        assert care.findings() == []
    (told,) = lab.told()
    assert told["waits"] is True


async def test_what_failed_is_tried_again_and_ends_with_its_process(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    lab.links.broken["plug"] = PortInUse("port blue:p1 is in use by web2/net0")
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        tries = len(lab.links.calls)
        await lab.settle()
        assert len(lab.links.calls) > tries
        lab.links.end()
        await lab.settle()
        tries = len(lab.links.calls)
        await lab.settle()
        assert len(lab.links.calls) == tries
        assert care.findings() == []
    assert len(lab.told()) == 1, "told once, however often it was tried"


async def test_a_nic_that_is_not_there_and_one_that_no_cable_fits_are_not_tried_again(
    lab: Lab,
) -> None:
    lab.libvirt.live = domain_xml(
        cables(cable("ua-net7", network="blue"), cable("ua-net0", driver="nosuch"))
    )
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        calls = list(lab.links.calls)
        await lab.settle()
        assert lab.links.calls == calls
        assert {(each.code, each.subject) for each in care.findings()} == {
            ("unknown-nic", "web1/ua-net7"), ("bad-option", "web1/ua-net0"),
        }  # fmt: skip


async def test_a_prepared_nic_that_is_not_on_its_hub_is_told_and_left_alone(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BOTH)
    async with lab.care() as care:
        lab.links.boot(running=False)
        nic = lab.links.the_nics[NET0]
        lab.links.the_nics[NET0] = type(nic)(
            **{**vars(nic), "state": NicState.UNMANAGED, "wiring": None}
        )
        lab.links.broken["plug web1/ua-net0"] = NotOnHub("no")
        lab.links.resume()
        await lab.settle()
        (finding,) = care.findings()
        assert (finding.code, finding.subject) == ("not-on-hub", "web1/ua-net0")
        assert "the guest is isolated" in finding.what
        assert "linkmgr prepare web1 --define" in finding.hint
        assert lab.links.on() == {"ua-net1": "red"}
        assert "plug web1/ua-net0 blue" not in lab.links.calls


async def test_a_raw_port_is_the_same_network_for_all_and_goes_with_the_last(lab: Lab) -> None:
    raw = "<lm:cable nic='{}' driver='bridge'>{}</lm:cable>"
    option = "<lm:option name='{}' value='{}'/>"
    one = option.format("bridge", "br7") + option.format("isolated", "true")
    other = option.format("isolated", "true") + option.format("bridge", "br7")
    lab.libvirt.live = domain_xml(cables(raw.format("ua-net0", one), raw.format("ua-net1", other)))
    async with lab.care():
        lab.links.boot()
        await lab.settle()
        (name,) = set(lab.links.on().values())
        assert name.startswith("raw-bridge-")
        assert lab.links.the_networks[name].options == {"bridge": "br7", "isolated": True}
        lab.links.the_networks["raw-bridge-mine"] = lab.links.the_networks["blue"]
        for number in (0, 1):
            assert name in lab.links.the_networks
            await lab.links.unplug(NicRef("web1", f"ua-net{number}"))
            await lab.settle()
        assert set(lab.links.the_networks) == {"blue", "red", "raw-bridge-mine"}


async def test_libvirt_is_not_asked_while_a_hook_of_the_domain_waits(lab: Lab) -> None:
    lab.libvirt.gate.clear()  # as libvirt does while a hook runs
    xml = domain_xml(BLUE)
    async with lab.care() as care:
        for operation in ("prepare", "start"):
            assert (await care.on_hook(operation, "begin", "-", xml)).ok
        await care.on_new(Dialled())
        lab.links.resume()
        async with asyncio.timeout(2):
            answer = await care.on_hook("started", "begin", "-", xml)
        assert answer.ok
        assert "plugged into blue" in answer.said
        assert lab.links.on() == {"ua-net0": "blue"}
        assert not [call for call in lab.libvirt.calls if call.startswith("xml")]
        lab.libvirt.gate.set()


async def test_a_hook_that_comes_while_libvirt_is_asked_answers_the_question(lab: Lab) -> None:
    lab.libvirt.gate.clear()
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        assert lab.libvirt.calls == [f"xml {UUID} True"]
        async with asyncio.timeout(2):
            assert (await care.on_hook("started", "begin", "-", domain_xml(BLUE))).ok
        assert lab.links.on() == {"ua-net0": "blue"}
        lab.libvirt.gate.set()


async def test_the_hook_at_started_waits_for_the_cables_but_not_for_a_paused_guest(
    lab: Lab,
) -> None:
    xml = domain_xml(BLUE)
    async with lab.care(libvirt=False) as care:
        await care.on_hook("start", "begin", "-", xml)
        await care.on_new(Dialled())
        answer = await care.on_hook("started", "begin", "-", xml)
        assert answer.ok
        assert "when it is resumed" in answer.said
        lab.links.gate.clear()
        lab.links.resume()
        waiting = asyncio.create_task(care.on_hook("started", "begin", "-", xml))
        await lab.settle()
        assert not waiting.done()
        lab.links.gate.set()
        assert (await waiting).ok
        assert lab.links.on() == {"ua-net0": "blue"}


async def test_what_the_hook_brings_while_the_cables_go_in_undoes_nothing_afterwards(
    lab: Lab,
) -> None:
    xml = lab.libvirt.live = domain_xml(BLUE)
    async with lab.care() as care:
        await lab.settle()
        for operation in ("prepare", "start"):
            await care.on_hook(operation, "begin", "-", xml)
        lab.links.gate.clear()
        lab.links.boot()
        await lab.settle()
        waiting = asyncio.create_task(care.on_hook("started", "begin", "-", xml))
        await lab.settle()
        lab.links.gate.set()
        assert (await waiting).ok
        await lab.settle()
        await care.verbs.plug(NET0, "red")  # libvirt tells of the live metadata that it changes
        await lab.settle()
        plugs = [call for call in lab.links.calls if call.startswith(f"plug {NET0}")]
        assert plugs == [f"plug {NET0} blue", f"plug {NET0} red"]


async def test_the_hook_says_no_to_what_cannot_be_read_and_tells_what_was_not_done(
    lab: Lab,
) -> None:
    bad = domain_xml(cables(cable("ua-net0", link="on")))
    missing = domain_xml(cables(cable("ua-net0", network="green")))
    async with lab.care(libvirt=False) as care:
        for text in ("", "<domain", "<domain><name>x</name></domain>"):
            assert not (await care.on_hook("prepare", "begin", "-", text)).ok
        refused = await care.on_hook("prepare", "begin", "-", bad)
        assert not refused.ok
        assert refused.said.startswith("web1/ua-net0: the cables in <metadata> cannot be read")
        assert (await care.on_hook("prepare", "begin", "-", missing)).ok, "it may appear"
        lab.links.boot()
        answer = await care.on_hook("started", "begin", "-", missing)
        assert not answer.ok
        assert answer.said == "web1/ua-net0: there is no network green"
        assert (await care.on_hook("reconnect", "begin", "-", bad)).ok
        lab.links.end()
        assert (await care.on_hook("release", "end", "-", missing)).ok
        assert lab.links.vms == {}
        assert list(care.known) == []


async def test_a_guest_from_another_host_finds_its_place_or_is_refused(lab: Lab) -> None:
    places = cast("FakeReservations", lab.links.reservations)
    raw = "<lm:option name='bridge' value='br9'/>"
    xml = domain_xml(
        cables(
            cable("ua-net0", network="blue"),
            cable("ua-net1", driver="bridge").replace("/>", f">{raw}</lm:cable>"),
        )
    )
    async with lab.care(libvirt=False) as care:
        held = await care.on_hook("migrate", "begin", "-", xml)
        assert held.ok
        assert "ua-net0 on blue, ua-net1 on bridge(bridge=br9)" in held.said
        assert places.held["web1/ua-net0"] == "blue 52:54:00:00:00:00 1500"
        assert places.held["web1/ua-net1"].startswith("raw-bridge-")
        assert (await care.on_hook("release", "end", "-", xml)).ok
        assert places.held == {}

        places.broken = UnknownNetwork("there is no network blue")
        refused = await care.on_hook("migrate", "begin", "-", xml)
        assert (refused.ok, refused.said) == (False, "web1/ua-net0: there is no network blue")
        bad = domain_xml(cables(cable("ua-net0", link="on")))
        assert not (await care.on_hook("migrate", "begin", "-", bad)).ok
        # What it brought is not taken for the XML of a process that runs.
        domain = care.known.find("web1")
        assert domain is None or domain.brought is None


async def test_a_guest_that_asks_for_nothing_holds_no_hook_up(lab: Lab) -> None:
    async with lab.care(libvirt=False) as care, asyncio.timeout(0.5):
        for xml in (domain_xml(), domain_xml(BLUE, prepared=0)):
            await care.on_hook("start", "begin", "-", xml)
            assert (await care.on_hook("started", "begin", "-", xml)).ok


async def test_what_libvirt_does_not_say_is_asked_again_until_it_does(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    lab.libvirt.connected = False
    lab.pauses = (60.0,)
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        assert [each.code for each in care.findings()] == ["libvirt-unreachable"]
        lab.libvirt.connected = True
        lab.libvirt.tell(DomainEventKind.CONNECTED)
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}
        assert care.findings() == []


async def test_a_qemu_that_cannot_be_taken_charge_of_is_told(lab: Lab) -> None:
    lab.links.broken["add_vm"] = MonitorUnreachable("nobody answers")
    async with lab.care() as care:
        with pytest.raises(MonitorUnreachable):
            await care.on_new(Dialled())
        assert [(each.code, each.subject) for each in care.findings()] == [
            ("monitor-unreachable", "web1")
        ]


async def test_a_guest_of_another_transport_is_a_domain_only_if_it_is_that_very_process(
    lab: Lab,
) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    lab.libvirt.pid = 1
    async with lab.care():
        pid = lab.links.boot(transport=Transport.SOCKET)
        await lab.settle()
        assert lab.links.on() == {}, "another QEMU that is called the same"
        lab.libvirt.pid = pid
        lab.links.board.tell(EventKind.VM_ANSWERS, "web1")
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}
        lab.links.end()
        lab.libvirt.pid = lab.links.boot(transport=Transport.LIBVIRT, watched=False)
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}


async def test_a_process_of_which_nothing_is_known_ends_when_libvirt_says_so(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care() as care:
        lab.links.boot(transport=Transport.LIBVIRT, watched=False)
        await lab.settle()
        assert [each.record is not None for each in care.known] == [True]
        lab.links.vms.clear()
        lab.libvirt.tell(DomainEventKind.STOPPED, "destroyed")
        await lab.settle()
        assert list(care.known) == []


async def test_a_state_directory_that_cannot_be_written_keeps_no_cable_from_being_plugged(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care():
        lab.folder.rmdir()
        lab.folder.touch()
        lab.links.boot()
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}
    assert "domains' cables" in caplog.text
    lab.folder.unlink()


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "domains": {"x": {"name": 7}}}'])
async def test_a_damaged_record_is_set_aside_and_nothing_is_done_anew_for_who_ran_before(
    lab: Lab, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator may have changed its cables since."""
    caplog.set_level(logging.ERROR)
    lab.folder.mkdir()
    (lab.folder / "domains.json").write_text(text)
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        assert lab.links.on() == {}
        assert [each.code for each in care.findings()] == ["state-damaged"]
        lab.links.end()
        await lab.settle()
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        lab.links._boots = now  # it starts after the service
        lab.links.boot()
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}
    assert (lab.folder / "domains.json.damaged").read_text() == text


async def test_what_waits_is_plugged_also_while_libvirt_is_away(lab: Lab) -> None:
    del lab.links.the_networks["blue"]
    lab.pauses = (60.0,)
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        lab.libvirt.connected = False
        lab.links.network("blue")
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "blue"}
        lab.links.resume()  # and nobody is told again and again that it is away
        await lab.settle()
        assert care.findings() == []


async def test_what_a_libvirt_that_is_there_does_not_answer_is_asked_again(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        lab.libvirt.fails = LibvirtUnreachable("no answer in time", sent=True)
        lab.libvirt.edit(RED)
        await lab.settle()
        assert [each.code for each in care.findings()] == ["libvirt-unreachable"]
        lab.libvirt.fails = None
        await asyncio.sleep(0.05)
        await lab.settle()
        assert lab.links.on() == {"ua-net0": "red"}
        assert care.findings() == []


async def test_without_libvirt_and_without_a_hook_nothing_is_asked_for_and_nothing_told(
    lab: Lab,
) -> None:
    async with lab.care(libvirt=False) as care:
        lab.links.boot()
        await lab.settle()
        assert lab.links.calls == []
        assert care.findings() == []


async def test_a_guest_whose_link_was_down_does_not_see_its_old_cable_on_the_way(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(cables(cable("ua-net0", network="blue", link="down")))
    async with lab.care():
        lab.links.boot()
        await lab.settle()
        lab.links.calls.clear()
        lab.libvirt.edit(RED)
        await lab.settle()
        assert lab.links.calls == ["plug web1/ua-net0 red", "set_link web1/ua-net0 up"]


async def test_a_prepared_guest_that_runs_and_has_not_dialled_is_found(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care() as care:
        assert await care.check() == [], "nobody can have dialled before the service was there"
        care.began -= 10
        assert [(each.code, each.subject) for each in await care.check()] == [
            ("guest-does-not-dial", "web1")
        ]
        lab.libvirt.connected = False
        assert await care.check() == [], "nobody knows"
        lab.libvirt.connected = True
        lab.links.boot()
        await lab.settle()
        assert await care.check() == []


async def test_who_cannot_have_dialled_yet_or_was_never_to_is_no_finding(lab: Lab) -> None:
    async with lab.care() as care:
        care.began -= 10
        lab.libvirt.live = domain_xml(BLUE, prepared=0)
        assert await care.check() == [], "never prepared"
        lab.libvirt.live, lab.libvirt.active = domain_xml(BLUE), False
        assert await care.check() == [], "does not run"
        lab.libvirt.active, lab.libvirt.pid = True, os.getpid()
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        lab.links.started[os.getpid()] = now
        assert await care.check() == [], "it has only begun"
        lab.links.started[os.getpid()] = 0
        assert len(await care.check()) == 1
        lab.libvirt.fails = LibvirtUnreachable("no answer in time", sent=True)
        assert await care.check() == []


async def test_a_qemu_that_cannot_be_taken_charge_of_is_found_once(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    lab.links.broken["add_vm"] = MonitorUnreachable("nobody answers")
    async with lab.care() as care:
        with pytest.raises(MonitorUnreachable):
            await care.on_new(Dialled())
        assert [each.code for each in await care.check()] == ["monitor-unreachable"]


async def test_a_qemu_that_is_refused_for_another_reason_each_time_does_not_fill_the_log(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    async with lab.care() as care:
        for number in range(3):
            lab.links.broken["add_vm"] = MonitorUnreachable(f"it says {number}")
            with pytest.raises(MonitorUnreachable):
                await care.on_new(Dialled())
    assert len(lab.told()) == 1
    assert caplog.text.count("it says") == 1


async def test_a_guest_that_is_not_libvirts_stays_known_as_gone(lab: Lab) -> None:
    async with lab.care():
        lab.links.boot("plain", transport=Transport.SOCKET)
        await lab.settle()
        lab.links.end("plain")
        await lab.settle()
        assert [vm.state for vm in lab.links.vms.values()] == [VmState.GONE]


async def test_ends_that_were_not_heard_of_are_seen(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.care() as care:
        lab.links.boot()
        await lab.settle()
        lab.links.vms["web1"] = replace(lab.links.vms["web1"], state=VmState.GONE)
        lab.links.started.clear()
        lab.links.board.tell(EventKind.OVERFLOW, "")
        await lab.settle()
        assert lab.links.vms == {}
        assert list(care.known) == []


async def test_the_end_of_a_guest_whose_name_no_vm_can_have_is_no_fault(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    async with lab.care():
        event = DomainEvent(DomainEventKind.STOPPED, UUID, "my guest", "destroyed")
        lab.libvirt.hub.tell(event)
        await lab.settle()
    assert caplog.text == ""


async def test_who_asks_for_the_list_while_somebody_looks_gets_the_same_look(lab: Lab) -> None:
    """Anybody may ask; our own calls to libvirt must not stand behind a thousand others."""
    async with lab.care() as care:
        await lab.settle()
        lab.libvirt.calls.clear()
        lists = await asyncio.gather(*(care.domains() for _ in range(50)))
        assert [[each.name for each in found] for found in lists] == [["web1"]] * 50
        assert len(lab.libvirt.calls) == 2
        await care.domains()
        assert len(lab.libvirt.calls) == 4


async def test_a_list_that_libvirt_cannot_give_is_an_error_for_all_and_not_for_the_next(
    lab: Lab,
) -> None:
    async with lab.care() as care:
        await lab.settle()
        lab.libvirt.fails = LibvirtUnreachable("no answer in time", sent=True)
        said = await asyncio.gather(*(care.domains() for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in said] == [LibvirtUnreachable] * 3
        lab.libvirt.fails = None
        assert len(await care.domains()) == 1
