"""The steps of a swap, in order: of a plain one, over a foreign cable, with notice, with a name."""

from __future__ import annotations

import pytest

from linkmgr.errors import HubCrowded, MonitorTimeout, NameTaken, SwitchFailed
from linkmgr.model import LinkState, NotifyMode
from linkmgr.swap import steps
from linkmgr.wirings import Cable
from tests.unit.swap_lab import NIC, RELEASE, Bench, bench, impatient

__all__ = ["bench", "impatient"]  # fixtures


async def test_a_plug_does_its_steps_in_order(bench: Bench) -> None:
    await bench.plug("blue")
    assert bench.log == [
        *("[offer]", "offer"),
        *("[init]", "init blue"),
        "[intend]",
        *("[realise]", "realise blue"),
        *("[stage]", "stage blue"),
        *("[switch]", "switch - to blue"),
        *("[activate]", "activate blue"),
        *("[notify]", "link up"),
        "[record]",
    ]
    assert bench.where == "blue"


async def test_a_replug_takes_the_old_side_down_last(bench: Bench) -> None:
    await bench.on_blue()
    await bench.plug("red")
    assert bench.log == [
        *("[offer]", "offer"),
        *("[init]", "init red"),
        "[intend]",
        *("[realise]", "realise red"),
        *("[stage]", "stage red"),
        *("[switch]", "switch blue to red"),
        *("[activate]", "activate red"),
        "[notify]",
        "[record]",
        *("[release]", "release blue"),
        *("[terminate]", "terminate blue", "free blue"),
    ]
    assert bench.where == "red"


async def test_an_unplug_takes_the_carrier_first(bench: Bench) -> None:
    await bench.on_blue()
    await bench.unplug()
    assert bench.log == [
        "[intend]",
        *("[link-down]", "link down"),
        *("[switch]", "switch blue to -"),
        "[record]",
        *("[release]", "release blue"),
        *("[terminate]", "terminate blue", "free blue"),
    ]
    assert bench.where is None


class TestAForeignCable:
    """One that somebody else plugged; its attachment is not ours to free."""

    @pytest.fixture
    def bench(self) -> Bench:
        bench = Bench()
        bench.wiring.foreign = [
            Cable(id="theirs", nic=NIC, endpoint=None, hubport_id="p", netdev_id="b")
        ]
        bench.nic.foreign, bench.nic.carrier.up = True, None
        return bench

    async def test_is_replaced_and_left_alone(self, bench: Bench) -> None:
        await bench.plug("red")
        assert "switch theirs to red" in bench.log
        # `release` leaves alone what linkmgr did not make; there is no attachment to terminate.
        assert bench.calls[-1] == "release theirs"
        assert not bench.nic.foreign

    async def test_is_put_back_when_the_switch_fails(self, bench: Bench) -> None:
        bench.log.fail("switch theirs to red", SwitchFailed("no"))
        with pytest.raises(SwitchFailed):
            await bench.plug("red")
        assert bench.calls[-4:] == ["switch back to theirs", *RELEASE]
        assert bench.nic.foreign

    async def test_is_unplugged(self, bench: Bench) -> None:
        await bench.unplug()
        assert bench.calls == ["recognise", "link down", "switch theirs to -", "release theirs"]
        assert not bench.nic.foreign

    async def test_has_its_carrier_back_when_it_cannot_be_unplugged(self, bench: Bench) -> None:
        bench.log.fail("switch theirs to -", SwitchFailed("no"))
        with pytest.raises(SwitchFailed):
            await bench.unplug()
        assert bench.calls[-2:] == ["switch back to theirs", "link up"]

    async def test_is_not_one_of_two(self, bench: Bench) -> None:
        bench.wiring.foreign *= 2
        with pytest.raises(HubCrowded):
            await bench.plug("red")
        assert bench.calls == ["offer", "free red"]


class TestNotify:
    """How the guest hears of a new cable."""

    @pytest.mark.parametrize(
        ("notify", "calls"),
        [
            (NotifyMode.AUTO, ["link down", "link up", "teach"]),
            (NotifyMode.FLAP, ["link down", "link up"]),
            (NotifyMode.ANNOUNCE, ["announce"]),
            (NotifyMode.SILENT, []),
        ],
    )
    async def test_of_another_network(
        self, bench: Bench, notify: NotifyMode, calls: list[str]
    ) -> None:
        await bench.on_blue()
        await bench.plug("red", notify)
        at = bench.calls.index("activate red") + 1
        assert bench.calls[at : bench.calls.index("release blue")] == calls

    @pytest.mark.parametrize("notify", NotifyMode)
    async def test_a_link_that_is_set_down_stays_down(
        self, bench: Bench, notify: NotifyMode
    ) -> None:
        await bench.on_blue()
        bench.nic.wanted_link = LinkState.DOWN
        await bench.nic.apply_link()
        bench.log.clear()
        await bench.plug("red", notify)
        assert not {"link up", "link down", "announce"} & set(bench.calls)


class TestAName:
    """One that was asked for, for the host's device."""

    @pytest.fixture
    def bench(self) -> Bench:
        bench = Bench()
        bench.nic.wanted_ifname = "lmtap0"
        return bench

    async def test_is_given_when_the_old_device_is_gone(self, bench: Bench) -> None:
        await bench.plug("blue")
        assert bench.log[-2:] == ["[name]", "name blue lmtap0"]
        bench.log.clear()
        await bench.plug("red")
        assert bench.log[-7:] == [
            *("[release]", "release blue"),
            *("[terminate]", "terminate blue", "free blue"),
            *("[name]", "name red lmtap0"),
        ]
        bench.log.clear()
        await bench.unplug()
        assert "[name]" not in bench.log

    async def test_waits_for_an_old_device_that_cannot_be_freed_yet(self, bench: Bench) -> None:
        await bench.on_blue()
        bench.log.fail("release blue", MonitorTimeout("no"))
        await bench.plug("red")
        assert "name red lmtap0" not in bench.log
        await steps.run_deferred(bench.nic)
        assert bench.log[-1] == "name red lmtap0"

    async def test_that_is_taken_fails_no_plug_and_is_told_once(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.log.fail("name blue lmtap0", NameTaken("it is taken"))
        bench.log.fail("name red lmtap0", NameTaken("it is taken"))
        await bench.plug("blue")
        await bench.plug("red")
        assert bench.where == "red"
        assert isinstance(bench.nic.rename_error, NameTaken)
        assert caplog.text.count("it is taken") == 1
        await bench.plug("blue")
        assert bench.nic.rename_error is None
