"""What is heard of a domain, and from whom: libvirt's hook, libvirt, a QEMU that dials or ends.

Also what is done when one of them is silent, or says what cannot be used.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from typing import cast
from unittest.mock import Mock

import pytest

from linkmgr.aio.token_bucket import TimeBudget
from linkmgr.errors import LibvirtRefused, LibvirtUnreachable, MonitorUnreachable, UnknownNetwork
from linkmgr.events import EventKind
from linkmgr.libvirt.client.events import DomainEvent, DomainEventKind
from linkmgr.libvirt.domains.domain_inventory import MAX_NICS, MAX_TEXT
from linkmgr.libvirt.prepare.rewrite import refresh
from linkmgr.libvirt.xml.desired_cables import CABLES_NAMESPACE
from linkmgr.libvirt.xml.document import Document, Element
from linkmgr.libvirt.xml.interfaces import domain_name
from linkmgr.libvirt.xml.prepared_element import prepared_nics_of
from linkmgr.model import MonitorTransport, VmState
from tests.prepared_once import prepared_once, prepared_open
from tests.unit.care_lab import (
    BLUE,
    NET0,
    RED,
    UUID,
    ConnectedQemu,
    FakePortBindings,
    Lab,
    cable,
    cables,
    domain_xml,
    lab,
)

__all__ = ["lab"]  # a fixture


async def test_libvirt_is_not_asked_while_a_hook_of_the_domain_waits(lab: Lab) -> None:
    lab.libvirt.gate.clear()  # as libvirt does while a hook runs
    xml = domain_xml(BLUE)
    async with lab.controller() as controller:
        for operation in ("prepare", "start"):
            assert (await controller.on_hook(operation, "begin", "-", xml)).ok
        await controller.on_unclaimed(ConnectedQemu())
        lab.manager.resume()
        async with asyncio.timeout(2):
            answer = await controller.on_hook("started", "begin", "-", xml)
        assert answer.ok
        assert "plugged into blue" in answer.said
        assert lab.manager.on() == {"ua-net0": "blue"}
        assert not [call for call in lab.libvirt.calls if call.startswith("xml")]
        lab.libvirt.gate.set()


async def test_a_hook_that_comes_while_libvirt_is_asked_answers_the_question(lab: Lab) -> None:
    lab.libvirt.gate.clear()
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        assert lab.libvirt.calls == [f"xml {UUID} True"]
        async with asyncio.timeout(2):
            assert (await controller.on_hook("started", "begin", "-", domain_xml(BLUE))).ok
        assert lab.manager.on() == {"ua-net0": "blue"}
        lab.libvirt.gate.set()


async def test_the_hook_at_started_waits_for_the_cables_but_not_for_a_paused_guest(
    lab: Lab,
) -> None:
    xml = domain_xml(BLUE)
    async with lab.controller(libvirt=False) as controller:
        await controller.on_hook("start", "begin", "-", xml)
        await controller.on_unclaimed(ConnectedQemu())
        answer = await controller.on_hook("started", "begin", "-", xml)
        assert answer.ok
        assert "when it is resumed" in answer.said
        lab.manager.gate.clear()
        lab.manager.resume()
        waiting = asyncio.create_task(controller.on_hook("started", "begin", "-", xml))
        await lab.settle()
        assert not waiting.done()
        lab.manager.gate.set()
        assert (await waiting).ok
        assert lab.manager.on() == {"ua-net0": "blue"}


async def test_what_the_hook_brings_while_the_cables_go_in_undoes_nothing_afterwards(
    lab: Lab,
) -> None:
    xml = lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller() as controller:
        await lab.settle()
        for operation in ("prepare", "start"):
            await controller.on_hook(operation, "begin", "-", xml)
        lab.manager.gate.clear()
        lab.manager.boot()
        await lab.settle()
        waiting = asyncio.create_task(controller.on_hook("started", "begin", "-", xml))
        await lab.settle()
        lab.manager.gate.set()
        assert (await waiting).ok
        await lab.settle()
        # libvirt tells of the live metadata that it changes.
        await controller.verbs.plug(NET0, "red")
        await lab.settle()
        plugs = [call for call in lab.manager.calls if call.startswith(f"plug {NET0}")]
        assert plugs == [f"plug {NET0} blue", f"plug {NET0} red"]


async def test_the_hook_says_no_to_what_cannot_be_read_and_tells_what_was_not_done(
    lab: Lab,
) -> None:
    bad = domain_xml(cables(cable("ua-net0", link="on")))
    missing = domain_xml(cables(cable("ua-net0", network="green")))
    async with lab.controller(libvirt=False) as controller:
        for text in ("", "<domain", "<domain><name>x</name></domain>"):
            assert not (await controller.on_hook("prepare", "begin", "-", text)).ok
        refused = await controller.on_hook("prepare", "begin", "-", bad)
        assert not refused.ok
        assert refused.said.startswith("web1/ua-net0: the cables in <metadata> cannot be read")
        assert (await controller.on_hook("prepare", "begin", "-", missing)).ok, "it may appear"
        lab.manager.boot()
        answer = await controller.on_hook("started", "begin", "-", missing)
        assert not answer.ok
        assert answer.said == "web1/ua-net0: there is no network green"
        assert (await controller.on_hook("reconnect", "begin", "-", bad)).ok
        lab.manager.end()
        assert (await controller.on_hook("release", "end", "-", missing)).ok
        assert lab.manager.vms == {}
        assert list(controller.known_domains) == []


async def test_a_guest_from_another_host_finds_its_place_or_is_refused(lab: Lab) -> None:
    bindings = cast("FakePortBindings", lab.manager.bindings)
    raw = "<lm:option name='bridge' value='br9'/>"
    xml = domain_xml(
        cables(
            cable("ua-net0", network="blue"),
            cable("ua-net1", driver="bridge").replace("/>", f">{raw}</lm:cable>"),
        )
    )
    async with lab.controller(libvirt=False) as controller:
        held = await controller.on_hook("migrate", "begin", "-", xml)
        assert held.ok
        assert "ua-net0 on blue, ua-net1 on bridge(bridge=br9)" in held.said
        assert bindings.held["web1/ua-net0"] == "blue 52:54:00:00:00:00 1500"
        assert bindings.held["web1/ua-net1"].startswith("raw-bridge-")
        assert (await controller.on_hook("release", "end", "-", xml)).ok
        assert bindings.held == {}

        bindings.broken = UnknownNetwork("there is no network blue")
        refused = await controller.on_hook("migrate", "begin", "-", xml)
        assert (refused.ok, refused.said) == (False, "web1/ua-net0: there is no network blue")
        bad = domain_xml(cables(cable("ua-net0", link="on")))
        assert not (await controller.on_hook("migrate", "begin", "-", bad)).ok
        # What it brought is not taken for the XML of a process that runs.
        domain = controller.known_domains.by_name("web1")
        assert domain is None or domain.hook_xml is None


async def test_a_guest_that_asks_for_nothing_holds_no_hook_up(lab: Lab) -> None:
    async with lab.controller(libvirt=False) as controller, asyncio.timeout(0.5):
        for xml in (domain_xml(), domain_xml(BLUE, prepared=0)):
            await controller.on_hook("start", "begin", "-", xml)
            assert (await controller.on_hook("started", "begin", "-", xml)).ok


async def test_what_libvirt_does_not_say_is_asked_again_until_it_does(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    lab.libvirt.connected = False
    lab.retry_intervals = (60.0,)
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        assert [each.code for each in controller.findings()] == ["libvirt-unreachable"]
        lab.libvirt.connected = True
        lab.libvirt.tell(DomainEventKind.CONNECTED)
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}
        assert controller.findings() == []


async def test_a_qemu_that_cannot_be_taken_charge_of_is_told(lab: Lab) -> None:
    lab.manager.broken["add_vm"] = MonitorUnreachable("nobody answers")
    async with lab.controller() as controller:
        with pytest.raises(MonitorUnreachable):
            await controller.on_unclaimed(ConnectedQemu())
        assert [(each.code, each.subject) for each in controller.findings()] == [
            ("monitor-unreachable", "web1")
        ]


async def test_a_guest_of_another_transport_is_a_domain_only_if_it_is_that_very_process(
    lab: Lab,
) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    lab.libvirt.pid = 1
    async with lab.controller():
        pid = lab.manager.boot(transport=MonitorTransport.SOCKET)
        await lab.settle()
        assert lab.manager.on() == {}, "another QEMU that is called the same"
        lab.libvirt.pid = pid
        lab.manager.bus.publish(EventKind.VM_ANSWERS, "web1")
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}
        lab.manager.end()
        lab.libvirt.pid = lab.manager.boot(transport=MonitorTransport.LIBVIRT, watched=False)
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}


async def test_a_process_of_which_nothing_is_known_ends_when_libvirt_says_so(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller() as controller:
        lab.manager.boot(transport=MonitorTransport.LIBVIRT, watched=False)
        await lab.settle()
        assert [each.applied_state is not None for each in controller.known_domains] == [True]
        lab.manager.vms.clear()
        lab.libvirt.tell(DomainEventKind.STOPPED, "destroyed")
        await lab.settle()
        assert list(controller.known_domains) == []


async def test_what_waits_is_plugged_also_while_libvirt_is_away(lab: Lab) -> None:
    del lab.manager.the_networks["blue"]
    lab.retry_intervals = (60.0,)
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        lab.libvirt.connected = False
        lab.manager.network("blue")
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}
        lab.manager.resume()  # and nobody is told again and again that it is away
        await lab.settle()
        assert controller.findings() == []


async def test_what_a_libvirt_that_is_there_does_not_answer_is_asked_again(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        lab.libvirt.fails = LibvirtUnreachable("no answer in time", sent=True)
        lab.libvirt.edit(RED)
        await lab.settle()
        assert [each.code for each in controller.findings()] == ["libvirt-unreachable"]
        lab.libvirt.fails = None
        await asyncio.sleep(0.05)
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}
        assert controller.findings() == []


async def test_without_libvirt_and_without_a_hook_nothing_is_asked_for_and_nothing_told(
    lab: Lab,
) -> None:
    async with lab.controller(libvirt=False) as controller:
        lab.manager.boot()
        await lab.settle()
        assert lab.manager.calls == []
        assert controller.findings() == []


async def test_a_prepared_guest_that_runs_and_has_not_dialled_is_found(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller() as controller:
        assert await controller.check() == [], (
            "nobody can have dialled before the service was there"
        )
        controller.start_time -= 10
        assert [(each.code, each.subject) for each in await controller.check()] == [
            ("guest-not-connected", "web1")
        ]
        (found,) = await controller.check()
        assert "'linkmgr prepare web1 --define', with '--monitor PATH' if" in found.hint
        lab.libvirt.connected = False
        assert await controller.check() == [], "nobody knows"
        lab.libvirt.connected = True
        lab.manager.boot()
        await lab.settle()
        assert await controller.check() == []


async def test_who_cannot_have_dialled_yet_or_was_never_to_is_no_finding(lab: Lab) -> None:
    async with lab.controller() as controller:
        controller.start_time -= 10
        lab.libvirt.live = domain_xml(BLUE, prepared=0)
        assert await controller.check() == [], "never prepared"
        lab.libvirt.live, lab.libvirt.active = domain_xml(BLUE), False
        assert await controller.check() == [], "does not run"
        lab.libvirt.active, lab.libvirt.pid = True, os.getpid()
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        lab.manager.started[os.getpid()] = now
        assert await controller.check() == [], "it has only begun"
        lab.manager.started[os.getpid()] = 0
        assert len(await controller.check()) == 1
        lab.libvirt.fails = LibvirtUnreachable("no answer in time", sent=True)
        assert await controller.check() == []


async def test_a_qemu_that_cannot_be_taken_charge_of_is_found_once(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    lab.manager.broken["add_vm"] = MonitorUnreachable("nobody answers")
    async with lab.controller() as controller:
        with pytest.raises(MonitorUnreachable):
            await controller.on_unclaimed(ConnectedQemu())
        assert [each.code for each in await controller.check()] == ["monitor-unreachable"]


async def test_a_qemu_that_is_refused_for_another_reason_each_time_does_not_fill_the_log(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    async with lab.controller() as controller:
        for number in range(3):
            lab.manager.broken["add_vm"] = MonitorUnreachable(f"it says {number}")
            with pytest.raises(MonitorUnreachable):
                await controller.on_unclaimed(ConnectedQemu())
    assert len(lab.told()) == 1
    assert caplog.text.count("it says") == 1


async def test_a_guest_that_is_not_libvirts_stays_known_as_gone(lab: Lab) -> None:
    async with lab.controller():
        lab.manager.boot("plain", transport=MonitorTransport.SOCKET)
        await lab.settle()
        lab.manager.end("plain")
        await lab.settle()
        assert [vm.state for vm in lab.manager.vms.values()] == [VmState.GONE]


async def test_ends_that_were_not_heard_of_are_seen(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        lab.manager.vms["web1"] = replace(lab.manager.vms["web1"], state=VmState.GONE)
        lab.manager.started.clear()
        lab.manager.bus.publish(EventKind.OVERFLOW, "")
        await lab.settle()
        assert lab.manager.vms == {}
        assert list(controller.known_domains) == []


async def test_the_end_of_a_guest_whose_name_no_vm_can_have_is_no_fault(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    async with lab.controller():
        event = DomainEvent(DomainEventKind.STOPPED, UUID, "my guest", "destroyed")
        lab.libvirt.broadcast.publish(event)
        await lab.settle()
    assert caplog.text == ""


async def test_who_asks_for_the_list_while_somebody_looks_gets_the_same_look(lab: Lab) -> None:
    """Anybody may ask; our own calls to libvirt must not stand behind a thousand others."""
    async with lab.controller() as controller:
        await lab.settle()
        lab.libvirt.calls.clear()
        lists = await asyncio.gather(*(controller.domains() for _ in range(50)))
        assert [[each.name for each in found] for found in lists] == [["web1"]] * 50
        assert len(lab.libvirt.calls) == 2
        await controller.domains()
        assert len(lab.libvirt.calls) == 4


async def test_a_domain_that_an_older_linkmgr_prepared_is_named_with_what_to_do(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    old = prepared_once(domain_xml(prepared=0))
    async with lab.controller() as controller:
        lab.libvirt.live = lab.libvirt.stored = old
        (info,) = await controller.domains()
        assert (info.prepared, info.command) == (True, "linkmgr prepare web1 --refresh")
        answer = await controller.on_hook("prepare", "begin", "-", old)
        assert answer.ok
        assert "'linkmgr prepare web1 --refresh'" in caplog.text
        # It runs on as it is; from its next start on it is as it should be.
        lab.libvirt.stored = refresh(old.encode()).xml.decode()
        (info,) = await controller.domains()
        assert info.command is None


async def test_a_guest_that_could_speak_as_its_qemu_is_named_and_gets_no_cables(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.libvirt.domains.controller.CONNECT_GRACE_S", 0.0)
    leaks = prepared_open(domain_xml(prepared=0))
    async with lab.controller() as controller:
        lab.libvirt.live = lab.libvirt.stored = leaks
        for operation in ("prepare", "start", "started", "migrate", "restore"):
            answer = await controller.on_hook(operation, "begin", "-", leaks)
            assert not answer.ok
            assert "its guest could speak to the service as its QEMU" in answer.said
            assert "linkmgr prepare web1 --refresh" in answer.said
        (finding,) = await controller.check()
        assert (finding.code, finding.subject) == ("guest-could-speak", "web1")
        (info,) = await controller.domains()
        assert info.command == "linkmgr prepare web1 --refresh"


async def test_a_domain_whose_xml_cannot_be_read_hides_no_other(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.libvirt.domains.controller.CONNECT_GRACE_S", 0.0)
    broken, well = (UUID[:-1] + each for each in "67")
    lab.libvirt.others = {broken: "<domain>" + "<a/>" * 20_000 + "</domain>"}
    lab.libvirt.others[well] = domain_xml(name="web3").replace(UUID, well)
    async with lab.controller() as controller:
        await lab.settle()
        found = await controller.domains()
        assert [(each.name, each.state, len(each.nics)) for each in found] == [
            ("web1", "running", 2), ("web2", "running", 0), ("web3", "running", 2)
        ]  # fmt: skip
        findings = {each.subject: each.code for each in await controller.check()}
        assert findings == {
            "web1": "guest-not-connected", "web2": "bad-metadata", "web3": "guest-not-connected"
        }  # fmt: skip


async def test_a_domain_of_many_nics_with_long_names_is_listed_briefly(lab: Lab) -> None:
    long = "n" * 5_000
    nic = f"<interface type='{long}'><source bridge='{long}'/><target dev='{long}'/>"
    nic += f"<mac address='{long}'/><model type='{long}'/><alias name='ua-{long}'/></interface>"
    some = domain_xml(nics=0).replace("<devices>", f"<devices>{nic * 30}")
    lab.libvirt.others = {
        UUID[:-1] + "6": some,
        UUID[:-1] + "7": domain_xml(nics=0).replace(
            "<devices>", "<devices>" + "<interface/>" * 9000
        ),
    }
    async with lab.controller() as controller:
        await lab.settle()
        well, long_ones, many = await controller.domains()
        assert (len(well.nics), len(long_ones.nics), len(many.nics)) == (2, 30, MAX_NICS)
        assert len(str(long_ones)) < 30 * (6 * MAX_TEXT + 500)


async def test_a_guest_whose_xml_libvirt_refuses_to_give_is_told_by_its_name(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.libvirt.domains.controller.CONNECT_GRACE_S", 0.0)
    async with lab.controller() as controller:
        await lab.settle()
        refused = LibvirtRefused(f"the XML of domain {UUID}: libvirt refused: too long", number=39)
        monkeypatch.setattr(lab.libvirt, "xml", Mock(side_effect=refused))
        (found,) = await controller.check()
        assert (found.code, found.subject) == ("libvirt-refused", "web1")
        assert found.what == "the XML of domain web1: libvirt refused: too long"
        refused.number = LibvirtRefused.NO_DOMAIN  # it has just ended
        assert await controller.check() == []


async def test_a_fault_in_the_look_at_one_domain_hides_no_other(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.libvirt.others = {UUID[:-1] + "6": domain_xml(name="web2")}

    def faulty(document: Document) -> dict[str, Element]:
        if domain_name(document) == "web2":
            raise ValueError("no")
        return prepared_nics_of(document)

    monkeypatch.setattr("linkmgr.libvirt.domains.domain_inventory.prepared_nics_of", faulty)
    async with lab.controller() as controller:
        await lab.settle()
        assert [(each.name, len(each.nics)) for each in await controller.domains()] == [
            ("web1", 2), ("web2", 0)
        ]  # fmt: skip


class SpentBudget(TimeBudget):
    """A budget that knows how much was spent, in seconds of processor time."""

    spent = 0.0

    def spend(self, seconds: float) -> None:
        self.spent += seconds
        super().spend(seconds)


async def test_who_edits_large_metadata_without_end_is_looked_at_now_and_then(lab: Lab) -> None:
    """Each look costs the loop a while; it is done in the end, with what was written last."""
    large = f"<x:x xmlns:x='urn:x'>{'<x:a/> ' * 9_000}</x:x>"
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        lab.libvirt.calls.clear()
        domain = controller.known_domains.by_uuid(UUID)
        assert domain is not None
        domain.budget = budget = SpentBudget(burst=0.0, share=0.02)
        begun = time.monotonic()
        while time.monotonic() - begun < 1.0:
            lab.libvirt.edit(RED + large)
            await asyncio.sleep(0.005)
        looks = lab.libvirt.calls.count(f"xml {UUID} True")
        assert looks >= 1
        # Their processor time is the share; the last look is still being paid off.
        last = 1.5 * budget.spent / looks
        assert budget.spent - last <= 0.02 * (time.monotonic() - begun)
        lab.libvirt.edit(BLUE + large)
        async with asyncio.timeout(20):
            while lab.manager.on() != {"ua-net0": "blue"}:  # noqa: ASYNC110 - it knows no test
                await asyncio.sleep(0.02)


async def test_a_list_that_libvirt_cannot_give_is_an_error_for_all_and_not_for_the_next(
    lab: Lab,
) -> None:
    async with lab.controller() as controller:
        await lab.settle()
        lab.libvirt.fails = LibvirtUnreachable("no answer in time", sent=True)
        said = await asyncio.gather(
            *(controller.domains() for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in said] == [LibvirtUnreachable] * 3
        lab.libvirt.fails = None
        assert len(await controller.domains()) == 1


async def test_metadata_that_is_edited_while_the_guest_is_paused_holds_when_it_is_resumed(
    lab: Lab,
) -> None:
    async with lab.controller() as controller:
        for operation in ("prepare", "start"):
            await controller.on_hook(operation, "begin", "-", domain_xml(BLUE))
        await controller.on_unclaimed(ConnectedQemu())
        assert (
            "when it is resumed"
            in (await controller.on_hook("started", "begin", "-", domain_xml(BLUE))).said
        )
        lab.libvirt.edit(RED)
        await lab.settle()
        lab.manager.resume()
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}
        lab.libvirt.edit("")
        await lab.settle()
        assert lab.manager.on() == {}


async def test_what_is_plugged_while_the_guest_is_paused_holds_when_it_is_resumed(
    lab: Lab,
) -> None:
    async with lab.controller() as controller:
        await controller.on_hook("start", "begin", "-", domain_xml(BLUE))
        await controller.on_unclaimed(ConnectedQemu())
        await controller.on_hook("started", "begin", "-", domain_xml(BLUE))
        lab.libvirt.live = domain_xml(BLUE)
        await controller.verbs.plug(NET0, "red")
        lab.manager.resume()
        await lab.settle()
        domain = controller.known_domains.by_name("web1")
        assert domain is not None
        assert domain.applied_state is not None
        assert domain.applied_state.desired("ua-net0").network == "red"
        assert lab.manager.on() == {"ua-net0": "red"}


async def test_an_edit_from_before_the_start_does_not_make_a_waiting_hook_ask_libvirt(
    lab: Lab,
) -> None:
    lab.libvirt.gate.clear()  # as libvirt does while a hook runs
    async with lab.controller() as controller:
        await controller.on_unclaimed(ConnectedQemu())
        waiting = asyncio.create_task(controller.on_hook("started", "begin", "-", domain_xml(BLUE)))
        await lab.settle()
        lab.libvirt.tell(DomainEventKind.METADATA, CABLES_NAMESPACE)
        lab.manager.resume()
        async with asyncio.timeout(2):
            assert (await waiting).ok
        assert lab.manager.on() == {"ua-net0": "blue"}
        lab.libvirt.gate.set()


async def test_who_is_removed_and_added_again_gets_its_names_again(lab: Lab) -> None:
    async with lab.controller():
        lab.manager.boot()
        await lab.settle()
        named = [call for call in lab.manager.calls if call.startswith("set_device_name")]
        assert named
        lab.manager.bus.publish(EventKind.VM_REMOVED, "web1")
        lab.manager.bus.publish(EventKind.VM_ADDED, "web1")
        await lab.settle()
        again = [call for call in lab.manager.calls if call.startswith("set_device_name")]
        assert again == named + named


async def test_a_nic_that_is_not_there_is_no_trouble_once_nothing_asks_for_it(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(cables(cable("ua-net9", network="blue")))
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        assert [each.code for each in controller.findings()] == ["unknown-nic"]
        lab.libvirt.edit(BLUE)
        await lab.settle()
        assert controller.findings() == []


async def test_what_could_not_be_written_into_the_live_xml_is_a_finding_until_it_is(
    lab: Lab,
) -> None:
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        lab.libvirt.connected = False
        outcome = await controller.verbs.plug(NET0, "red")
        assert outcome.changed
        assert "still asks for what it did before" in outcome.notes[0]
        (finding,) = controller.findings()
        assert (finding.subject, finding.code) == ("web1", "libvirt-unreachable")
        assert "its live XML does not say yet what was done to its NICs" in finding.what
        await controller.verbs.set_link(NET0, "down")
        lab.libvirt.connected = True
        lab.libvirt.live = domain_xml(cables(cable("ua-net1", network="blue")))  # by somebody else
        lab.libvirt.tell(DomainEventKind.CONNECTED)
        await lab.settle()
        assert "nic='ua-net0' network='red' link='down'" in lab.libvirt.live
        assert "nic='ua-net1' network='blue'" in lab.libvirt.live
        assert lab.manager.on() == {"ua-net0": "red", "ua-net1": "blue"}
        assert controller.findings() == []


async def test_what_no_xml_can_say_does_not_keep_later_things_from_being_written(lab: Lab) -> None:
    lab.manager.network("fd")
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        outcome = await controller.verbs.plug(NET0, "fd:mine")
        assert "cannot ask for it" in outcome.notes[0]
        assert controller.findings() == []
        assert (await controller.verbs.plug(NET0, "red")).notes == ()
        assert "nic='ua-net0' network='red'" in lab.libvirt.live
