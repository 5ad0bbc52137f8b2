"""plug, unplug and link for libvirt's guests: live, config, persistent; what is written where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from linkmgr.errors import (
    AlreadyExists,
    AmbiguousNic,
    BadMetadata,
    BadOption,
    Conflict,
    LibvirtRefused,
    LibvirtUnreachable,
    UnknownNetwork,
    UnknownNic,
    UnknownVm,
)
from linkmgr.events import EventKind
from linkmgr.libvirt.client.events import DomainEventKind
from linkmgr.libvirt.xml.desired_cables import desired_cables_of_xml
from linkmgr.model import Affects, MonitorTransport, NicRef, NicState, NotifyMode, Outcome
from tests.unit.care_lab import UUID, Lab, cable, cables, domain_xml

NET0 = NicRef("web1", "ua-net0")
BLUE = cables(cable("ua-net0", network="blue"))


class ConnectedQemu:
    name, uuid, pid = "web1", UUID, 1


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path / "state", retry_intervals=(60.0,))
    for name in ("blue", "red"):
        made.manager.network(name)
    made.libvirt.live = made.libvirt.stored = domain_xml(BLUE)
    return made


def asked(xml: str, nic: str = "ua-net0") -> str:
    return str(desired_cables_of_xml(xml).get(nic))


async def test_a_plug_is_live_by_default_and_the_live_xml_says_so(lab: Lab) -> None:
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        outcome = await controller.verbs.plug("web1/ua-net0", "red:p7", notify="flap")
        assert (outcome.changed, outcome.notes) == (True, ())
        await lab.settle()  # libvirt tells of the change that was ours
        assert lab.manager.on() == {"ua-net0": "red:p7"}
        assert desired_cables_of_xml(lab.libvirt.live).get("ua-net0").notify is NotifyMode.FLAP
        assert asked(lab.libvirt.stored) == "plugged into blue, link up"
        assert [call for call in lab.manager.calls if call.startswith("plug")] == [
            "plug web1/ua-net0 blue", "plug web1/ua-net0 red:p7",
        ]  # fmt: skip

        await controller.verbs.set_link(NET0, "down")
        assert asked(lab.libvirt.live) == "plugged into red:p7, link down"
        await controller.verbs.unplug(NET0)
        assert asked(lab.libvirt.live) == "unplugged, link down"
        await controller.verbs.set_link(NET0, "up")
        assert desired_cables_of_xml(lab.libvirt.live).by_nic == {}


async def test_what_the_verb_on_the_running_guest_notes_is_passed_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = lab.manager.plug

    async def noting(nic: NicRef, target: str, **more: Any) -> Outcome:
        return replace(await plug(nic, target, **more), notes=("its device is moved",))

    monkeypatch.setattr(lab.manager, "plug", noting)
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        assert (await controller.verbs.plug(NET0, "blue")).notes == ("its device is moved",)
        both = await controller.verbs.plug(NET0, "blue", affects="persistent")
        assert both.notes[0] == "its device is moved"
        assert len(both.notes) == 2


async def test_config_changes_what_the_next_start_has_and_nothing_now(lab: Lab) -> None:
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        before = list(lab.manager.calls)
        outcome = await controller.verbs.plug(NET0, "green", affects="config")
        assert outcome.changed
        assert outcome.notes == (
            "from its next start on it is plugged into green, link up",
            "network green does not exist yet; it is plugged when it does",
        )
        assert outcome.nic.state is NicState.PLUGGED, "as it is now"
        await controller.verbs.set_link(NET0, "down", affects="config")
        await controller.verbs.unplug("web1/ua-net1", affects="config")
        await lab.settle()
        assert lab.manager.calls == before
        assert asked(lab.libvirt.live) == "plugged into blue, link up"
        assert asked(lab.libvirt.stored) == "plugged into green, link down"
        assert not (await controller.verbs.plug(NET0, "green", affects="config")).changed


async def test_persistent_changes_both_and_of_a_guest_that_is_off_its_next_start(lab: Lab) -> None:
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        outcome = await controller.verbs.plug(NET0, "red", affects=Affects.PERSISTENT)
        assert outcome.notes == ("from its next start on it is plugged into red, link up",)
        assert asked(lab.libvirt.live) == asked(lab.libvirt.stored) == "plugged into red, link up"
        assert lab.manager.on() == {"ua-net0": "red"}
        lab.manager.end()
        await lab.settle()
        lab.libvirt.active = False
        outcome = await controller.verbs.unplug(NET0, affects="persistent")
        assert (outcome.changed, outcome.nic.state) == (True, NicState.GONE)
        assert outcome.nic.mac == "52:54:00:00:00:00"
        assert desired_cables_of_xml(lab.libvirt.stored).by_nic == {}
        with pytest.raises(UnknownVm):
            await controller.verbs.plug(NET0, "red")


async def test_a_guest_that_is_off_is_named_by_its_name_and_the_address_of_its_nic(
    lab: Lab,
) -> None:
    lab.libvirt.active = False
    async with lab.controller() as controller:
        named = "web1/52:54:00:00:00:01"
        assert (
            await controller.verbs.plug(named, "red", affects="config")
        ).nic.ref.alias == "ua-net1"
        with pytest.raises(AmbiguousNic, match="web1/ua-net0, web1/ua-net1"):
            await controller.verbs.plug("web1", "red", affects="config")
        lab.libvirt.stored = domain_xml(BLUE, nics=1, prepared=1)
        with pytest.raises(UnknownVm, match="domain web1 is shut off"):
            await controller.verbs.plug("web1", "red")
        assert (await controller.verbs.unplug("web1", affects="config")).nic.ref == NET0
        assert desired_cables_of_xml(lab.libvirt.stored).by_nic == {}
        with pytest.raises(UnknownVm, match="there is no VM web7"):
            await controller.verbs.plug("web7", "red", affects="config")


@pytest.mark.parametrize(
    ("xml", "told"),
    [
        (
            "<network><name>default</name><forward mode='nat'/><bridge name='virbr0'/></network>",
            "default is a network of libvirt's own (nat, bridge virbr0), and linkmgr has none of "
            "that name. To do: run 'linkmgr network create default bridge bridge=virbr0', then "
            "plug again",
        ),
        (
            "<network><name>default</name><bridge name='virbr1'/></network>",
            "(isolated, bridge virbr1)",
        ),
        (
            "<network><name>default</name><forward dev='eth1' mode='vepa'/></network>",
            "To do: run 'linkmgr network create default direct parent=eth1 mode=vepa'",
        ),
        (
            "<network><name>default</name><forward mode='bridge'/>"
            "<bridge name='x; rm -rf /'/></network>",
            "(bridge), and linkmgr has none of that name. To do: see 'virsh net-dumpxml default'",
        ),
        ("<network", "there is no network default"),
        (None, "there is no network default"),
    ],
)
async def test_a_network_of_libvirts_own_is_told_with_what_makes_it_one_of_linkmgr(
    lab: Lab, xml: str | None, told: str
) -> None:
    if xml is not None:
        lab.libvirt.networks["default"] = xml
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        with pytest.raises(UnknownNetwork) as raised:
            await controller.verbs.plug(NET0, "default")
        assert told in str(raised.value)


@pytest.mark.parametrize("installed", [True, False])
async def test_persistent_on_a_guest_without_libvirt_is_done_and_says_what_it_means(
    lab: Lab, installed: bool
) -> None:
    lab.libvirt.installed = lab.libvirt.connected = installed
    async with lab.controller() as controller:
        lab.manager.boot("plain", transport=MonitorTransport.SOCKET)
        outcome = await controller.verbs.plug("plain/ua-net0", "red", affects="persistent")
        assert outcome.changed
        assert outcome.notes == (
            "libvirt has no guest plain, so nothing is kept for its next start: add it and plug "
            "it again then",
        )
        assert (await controller.verbs.unplug("plain/ua-net0", affects="persistent")).changed
        with pytest.raises(UnknownVm, match="libvirt has no domain plain, and only") as raised:
            await controller.verbs.unplug("plain/ua-net0", affects="config")
        assert "leave --config out" in str(raised.value)


async def test_a_transient_guest_has_no_next_start_and_is_changed_as_it_runs(lab: Lab) -> None:
    lab.libvirt.persistent = False
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        for target in ("red", "blue"):  # blue is what its XML asks for already
            with pytest.raises(Conflict, match="web1 is transient: it has no next start") as raised:
                await controller.verbs.plug(NET0, target, affects="config")
            assert "virsh define" in str(raised.value)
        assert lab.manager.on() == {"ua-net0": "blue"}
        outcome = await controller.verbs.plug(NET0, "red", affects="persistent")
        assert outcome.changed
        assert outcome.notes == (
            "it holds until the guest ends: web1 is transient: it has no next start",
        )
        assert lab.manager.on() == {"ua-net0": "red"}
        assert asked(lab.libvirt.live) == "plugged into red, link up"


async def test_a_verb_on_a_guest_that_is_no_vm_says_what_its_domain_lacks(lab: Lab) -> None:
    prepared, bare = domain_xml(), domain_xml(prepared=0)
    lab.libvirt.live = lab.libvirt.stored = prepared
    async with lab.controller() as controller:

        async def said() -> str:
            texts = set()
            for change in (
                controller.verbs.plug(NET0, "blue"),
                controller.verbs.unplug(NET0),
                controller.verbs.set_link(NET0, "down"),
            ):
                with pytest.raises(UnknownVm) as raised:
                    await change
                texts.add(str(raised.value))
            (text,) = texts
            return text

        lab.libvirt.active = False
        assert await said() == (
            "domain web1 is shut off. To do: start it ('virsh start web1'), or use --config, "
            "for its next start"
        )
        lab.libvirt.stored = bare
        assert await said() == (
            "domain web1 is shut off, and was never prepared. To do: run "
            "'linkmgr prepare web1 --define', then start it"
        )
        lab.libvirt.active = True
        assert "runs and is prepared, but its QEMU has not dialled" in await said()
        lab.libvirt.live = bare
        assert await said() == (
            "domain web1 was never prepared, so its cables cannot change. To do: run "
            "'linkmgr prepare web1 --define', then shut it down and start it again"
        )
        lab.libvirt.stored = prepared
        assert await said() == (
            "domain web1 was started before it was prepared, so its cables cannot change. "
            "To do: shut it down and start it again"
        )
        lab.libvirt.persistent = False
        assert "linkmgr prepare --xml FILE.xml" in await said()


@pytest.mark.parametrize("active", [False, True])
async def test_a_verb_on_a_guest_whose_xml_cannot_be_read_says_so(lab: Lab, active: bool) -> None:
    """Not to add it: no VM of its name could be."""
    large = domain_xml(f"<x xmlns='{'u' * 1000}'/>")
    lab.libvirt.live = lab.libvirt.stored = large
    lab.libvirt.active = active
    async with lab.controller() as controller:
        with pytest.raises(UnknownVm) as raised:
            await controller.verbs.plug(NET0, "blue")
    state = "running" if active else "shut off"
    assert str(raised.value) == (
        f"domain web1 is {state}, and its XML cannot be read: the XML has a namespace longer than "
        "512 characters. To do: no domain needs as much: look what has grown, its <metadata> or "
        "its NICs"
    )


async def test_a_vm_that_nobody_knows_is_told_as_ever_when_libvirt_cannot_say_more(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkmgr.libvirt.domains.diagnose.EXPLAIN_TIMEOUT_S", 0.01)
    lab.libvirt.active = False
    async with lab.controller() as controller:
        with pytest.raises(UnknownVm, match="there is no VM web9"):
            await controller.verbs.plug("web9/ua-net0", "blue")
        lab.libvirt.gate.clear()  # a libvirtd that hangs
        with pytest.raises(UnknownVm, match="there is no VM web1"):
            await controller.verbs.plug(NET0, "blue")
        lab.libvirt.gate.set()
        lab.libvirt.connected = False
        with pytest.raises(UnknownVm, match="there is no VM web1"):
            await controller.verbs.plug(NET0, "blue")
    async with lab.controller(libvirt=False) as controller:
        with pytest.raises(UnknownVm, match="there is no VM web1"):
            await controller.verbs.plug(NET0, "blue")


async def test_a_cable_changes_also_when_libvirt_is_away_and_a_note_says_what_is_not_written(
    lab: Lab,
) -> None:
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        lab.libvirt.connected = False
        outcome = await controller.verbs.plug(NET0, "red", affects="persistent")
        assert outcome.changed
        live, later = outcome.notes
        assert live.startswith("the domain's live XML still asks for what it did before (plugged")
        assert "blue" in live
        assert later.startswith("the next start is as before: there is no connection")
        lab.libvirt.connected = True
        lab.libvirt.fails = LibvirtRefused("transient", number=55)
        with pytest.raises(LibvirtRefused):
            await controller.verbs.plug(NET0, "blue", affects="config")
        lab.libvirt.fails = None
    async with lab.controller():  # what the operator did holds until the next start
        await lab.settle()
        lab.libvirt.edit(BLUE)
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}


async def test_an_error_of_libvirt_calls_the_domain_by_its_name(lab: Lab) -> None:
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        lab.libvirt.fails = LibvirtUnreachable(f"the XML of domain {UUID}: no answer")
        outcome = await controller.verbs.plug(NET0, "red")
        assert "the XML of domain web1: no answer" in outcome.notes[0]


async def test_an_inline_network_is_asked_for_by_its_description(lab: Lab) -> None:
    option = "<lm:option name='{}' value='{}'/>"
    options = option.format("bridge", "br0") + option.format("create", "true")
    options += option.format("mtu", "9000")
    raw = f"<lm:cable nic='ua-net0' driver='bridge'>{options}</lm:cable>"
    lab.libvirt.live = lab.libvirt.stored = domain_xml(cables(raw))
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        (name,) = lab.manager.on().values()
        assert name.startswith("raw-bridge-")
        outcome = await controller.verbs.plug(
            "web1/ua-net1", name, notify="flap", affects="persistent"
        )
        assert lab.manager.on() == {"ua-net0": name, "ua-net1": name}
        for xml in (lab.libvirt.live, lab.libvirt.stored):
            first, second = (desired_cables_of_xml(xml).get(nic) for nic in ("ua-net0", "ua-net1"))
            assert (second.inline, second.network) == (first.inline, None)
            assert second.notify is NotifyMode.FLAP
        said = "plugged into bridge(bridge=br0,create=true,mtu=9000), link up"
        assert outcome.notes == (f"from its next start on it is {said}",)
        await controller.verbs.set_link("web1/ua-net1", "down", affects="config")
        await controller.verbs.plug("web1/ua-net1", name, affects="config")
        assert asked(lab.libvirt.stored, "ua-net1") == said.replace("link up", "link down")


async def test_what_an_operator_does_ends_what_was_still_to_be_done(lab: Lab) -> None:
    del lab.manager.the_networks["blue"]
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        assert len(controller.findings()) == 1
        await controller.verbs.plug(NET0, "red")
        assert controller.findings() == []
        lab.manager.network("blue")
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}


async def test_a_verb_that_fails_writes_nothing(lab: Lab) -> None:
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        with pytest.raises(UnknownNetwork):
            await controller.verbs.plug(NET0, "green", affects="persistent")
        assert asked(lab.libvirt.live) == asked(lab.libvirt.stored) == "plugged into blue, link up"


async def test_an_fd_is_plugged_now_and_cannot_be_asked_for_at_the_next_start(lab: Lab) -> None:
    lab.manager.network("fd")
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        outcome = await controller.verbs.plug(NET0, "fd:tap7")
        assert lab.manager.on() == {"ua-net0": "fd:tap7"}
        assert "not there at the next start" in outcome.notes[0]
        with pytest.raises(BadMetadata):
            await controller.verbs.plug(NET0, "fd:tap7", affects="config")


async def test_metadata_that_cannot_be_read_is_not_overwritten(lab: Lab) -> None:
    broken = domain_xml(cables("<lm:cable/>"))
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        lab.libvirt.live = lab.libvirt.stored = broken
        outcome = await controller.verbs.plug(NET0, "red")
        assert "does not say for which NIC" in outcome.notes[0]
        with pytest.raises(BadMetadata):
            await controller.verbs.plug(NET0, "red", affects="config")
        assert lab.libvirt.live == lab.libvirt.stored == broken


async def test_nics_and_domains_that_are_not_there_are_refused_and_the_unprepared_are_noted(
    lab: Lab,
) -> None:
    async with lab.controller() as controller:
        with pytest.raises(UnknownNic, match=r"did you mean ua-net\d or ua-net\d\?"):
            await controller.verbs.plug("web1/ua-net7", "red", affects="config")
        with pytest.raises(UnknownVm, match="only a guest of libvirt"):
            await controller.verbs.plug("web9/ua-net0", "red", affects="persistent")
        with pytest.raises(BadOption, match="give live, config or persistent"):
            await controller.verbs.plug(NET0, "red", affects="now")
        lab.libvirt.stored = domain_xml(prepared=1)
        outcome = await controller.verbs.plug("web1/ua-net1", "red", affects="config")
        assert "linkmgr prepare web1 --define" in outcome.notes[-1]
    async with lab.controller(libvirt=False) as controller:
        with pytest.raises(LibvirtUnreachable, match="without libvirt"):
            await controller.verbs.plug(NET0, "red", affects="config")


async def test_a_guest_that_is_not_libvirts_is_plugged_as_ever(lab: Lab) -> None:
    async with lab.controller() as controller:
        lab.libvirt.pid = None
        lab.manager.boot("plain")
        lab.manager.vms["plain"] = type(lab.manager.vms["plain"])(
            "plain", "/run/p.qmp", *list(vars(lab.manager.vms["plain"]).values())[2:5]
        )
        outcome = await controller.verbs.plug("plain/ua-net0", "red")
        assert (outcome.changed, outcome.notes) == (True, ())
        assert not [call for call in lab.libvirt.calls if call.startswith("set_metadata")]


async def test_without_libvirt_only_what_runs_can_be_changed(lab: Lab) -> None:
    async with lab.controller(libvirt=False) as controller:
        lab.manager.boot()
        await lab.settle()
        assert (await controller.verbs.plug(NET0, "blue")).changed
        for change in (
            controller.verbs.plug(NET0, "red", affects="config"),
            controller.verbs.unplug(NET0, affects="config"),
            controller.verbs.set_link(NET0, "down", affects="config"),
        ):
            with pytest.raises(LibvirtUnreachable, match="without libvirt"):
                await change
        assert lab.manager.on() == {"ua-net0": "blue"}
        outcome = await controller.verbs.unplug(NET0, affects="persistent")
        assert outcome.changed
        assert "without libvirt" in outcome.notes[-1]
        assert lab.manager.on() == {}
        assert lab.libvirt.calls == []


async def test_the_listing_shows_every_guest_and_how_the_unprepared_would_be_prepared(
    lab: Lab,
) -> None:
    lab.libvirt.live = lab.libvirt.stored = domain_xml(BLUE, prepared=1)
    async with lab.controller() as controller:
        (off,) = await controller.domains()
        assert (off.name, off.uuid, off.transport) == ("web1", UUID, None)
        assert off.nics[0].wanted == "plugged into blue, link up"
        lab.manager.boot(nics=1)
        await lab.settle()
        (info,) = await controller.domains()
        assert (info.state, info.transport, info.prepared) == ("running", "inbound", False)
        assert info.command == "linkmgr prepare web1 --define"
        first, second = info.nics
        assert (first.prepared, first.wiring, first.state) == (True, "hub", "plugged")
        assert (first.network, first.link, first.device) == ("blue", "up", "lm0")
        assert (second.prepared, second.wiring, second.state) == (False, None, None)
        assert (second.network, second.link, second.device) == ("ethernet", "down", "lmtap1")
        assert [nic.restart for nic in info.nics] == [False, False]

        lab.libvirt.stored = domain_xml(BLUE)  # it is prepared while it runs
        (info,) = await controller.domains()
        assert [nic.restart for nic in info.nics] == [False, True]
        assert (info.prepared, info.command) == (False, None), "to prepare it again changes nothing"
        lab.libvirt.connected = False
        with pytest.raises(LibvirtUnreachable):  # a list that lacks what is off would say nothing
            await controller.domains()
        lab.libvirt.installed = False  # nor are there any, on a host without libvirt
        (info,) = await controller.domains()
    async with lab.controller(libvirt=False) as controller:
        assert await controller.domains() == [info]
        assert (info.name, info.transport, info.nics[0].network) == ("web1", "inbound", "blue")


async def test_what_an_operator_does_before_a_paused_guest_runs_holds(lab: Lab) -> None:
    lab.libvirt.live = domain_xml(BLUE)
    async with lab.controller() as controller:
        await controller.on_hook("prepare", "begin", "-", lab.libvirt.live)
        lab.manager.boot(running=False)
        await lab.settle()
        await controller.verbs.plug("web1/ua-net0", "red")
        assert "red" in lab.libvirt.live
        lab.manager.resume()
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red"}
        assert "plug web1/ua-net0 blue" not in lab.manager.calls


async def test_what_an_operator_does_while_nobody_knows_what_is_asked_for_holds(lab: Lab) -> None:
    asked = domain_xml(cables(cable("ua-net0", network="blue"), cable("ua-net1", network="blue")))
    lab.libvirt.live = asked
    lab.libvirt.fails = LibvirtUnreachable("no answer in time", sent=True)
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        assert (await controller.verbs.plug("web1/ua-net0", "red")).notes
        lab.libvirt.fails = None
        lab.libvirt.tell(DomainEventKind.CONNECTED)
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "red", "ua-net1": "blue"}
        assert "'ua-net0' network='red'" in lab.libvirt.live, "and its live XML says so, late"
        lab.manager.end()
        await lab.settle()
        lab.libvirt.live = asked
        lab.manager.boot()
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue", "ua-net1": "blue"}, "it was for one process"


async def test_a_guest_that_has_a_domains_name_and_is_not_it_changes_no_xml(lab: Lab) -> None:
    lab.manager.broken["add_vm"] = AlreadyExists("VM web1 exists with another monitor")
    async with lab.controller() as controller:
        with pytest.raises(AlreadyExists):
            await controller.on_unclaimed(ConnectedQemu())
        lab.manager.boot(transport=MonitorTransport.SOCKET)
        await lab.settle()
        before = lab.libvirt.live
        await controller.verbs.plug("web1/ua-net0", "red")
        assert lab.libvirt.live == before


async def test_a_guest_that_took_the_name_of_a_domain_that_still_runs_changes_no_xml(
    lab: Lab,
) -> None:
    async with lab.controller() as controller:
        lab.manager.boot()
        await lab.settle()
        assert lab.manager.on() == {"ua-net0": "blue"}
        del lab.manager.vms["web1"]  # "vm remove", and the domain runs on
        lab.manager.bus.publish(EventKind.VM_REMOVED, "web1")
        lab.manager.boot(transport=MonitorTransport.SOCKET)
        await lab.settle()
        before = lab.libvirt.live
        await controller.verbs.plug("web1/ua-net0", "red")
        assert lab.manager.on() == {"ua-net0": "red"}
        assert lab.libvirt.live == before
