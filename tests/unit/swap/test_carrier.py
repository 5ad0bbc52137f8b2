"""A carrier that changes slowly enough for a guest to see it."""

import time

import pytest

from linkmgr.errors import MonitorTimeout
from linkmgr.model import NicRef
from linkmgr.swap.carrier import LINKWATCH_INTERVAL_S, MIN_DOWN_S, Carrier, CarrierClock
from linkmgr.wirings.hub.nic_models import shows_carrier


class Link:
    """Takes down what was set, and when."""

    def __init__(self) -> None:
        self.set: list[tuple[bool, float]] = []
        self.broken = False

    async def set_link(self, _nic: NicRef, *, up: bool) -> None:
        if self.broken:
            raise MonitorTimeout("no answer")
        self.set.append((up, time.monotonic()))


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def carrier(link: Link) -> Carrier:
    return Carrier(link, NicRef("web1", "net0"), CarrierClock())  # type: ignore[arg-type]  # a fake


async def test_setting_what_is_set_does_nothing(link: Link, carrier: Carrier) -> None:
    await carrier.set(up=False)
    await carrier.set(up=False)
    assert [up for up, _ in link.set] == [False]


@pytest.mark.parametrize("up", [False, True])
async def test_what_another_monitor_may_have_set_is_set_anew(
    link: Link, carrier: Carrier, up: bool
) -> None:
    await carrier.set(up=up)
    await carrier.set(up=up, force=True)
    assert [was for was, _ in link.set] == [up, up]


async def test_a_first_flap_holds_the_carrier_down_long_enough_to_be_seen(
    link: Link, carrier: Carrier
) -> None:
    await carrier.flap()
    (down, at_down), (up, at_up) = link.set
    assert (down, up) == (False, True)
    assert at_up - at_down >= MIN_DOWN_S


async def test_a_second_flap_at_once_waits_until_linux_looks_again(
    link: Link, carrier: Carrier
) -> None:
    await carrier.flap()
    await carrier.flap()
    (_, _), (_, first_up), (_, _), (_, second_up) = link.set
    assert second_up - first_up >= LINKWATCH_INTERVAL_S


async def test_a_silent_change_does_not_wait(link: Link, carrier: Carrier) -> None:
    await carrier.flap()
    await carrier.set(up=False)
    await carrier.set(up=True, hold_down=False)
    assert link.set[-1][1] - link.set[-2][1] < MIN_DOWN_S


async def test_a_carrier_that_qemu_did_not_confirm_is_unknown_and_set_again(
    link: Link, carrier: Carrier
) -> None:
    await carrier.set(up=False)
    link.broken = True
    with pytest.raises(MonitorTimeout):
        await carrier.set(up=True)
    assert carrier.up is None
    link.broken = False
    await carrier.set(up=False)
    assert [up for up, _ in link.set] == [False, False]


async def test_the_carrier_of_a_second_nic_waits_for_the_guests_next_look(link: Link) -> None:
    watch = CarrierClock()
    one = Carrier(link, NicRef("web1", "net0"), watch)  # type: ignore[arg-type]  # a fake
    two = Carrier(link, NicRef("web1", "net1"), watch)  # type: ignore[arg-type]  # a fake
    await one.flap()
    await two.flap()
    (_, _), (_, _), (_, down), (_, up) = link.set
    assert up - down >= LINKWATCH_INTERVAL_S


@pytest.mark.parametrize(
    ("model", "build", "shown"),
    [
        ("virtio-net-pci", "7.2.22 (Debian) x86_64", True),
        ("e1000", "7.2.22 (Debian) x86_64", True),
        ("e1000e", "7.2.22 (Debian) x86_64", False),
        ("e1000e", "10.0.2 (Debian) x86_64", True),
        ("e1000e", "odd", True),
        ("i82801", "10.0.2 (Debian) x86_64", False),
        ("?", "7.2.22 (Debian) x86_64", True),
    ],
)
def test_whether_a_guest_sees_its_carrier_is_a_matter_of_the_model(
    model: str, build: str, shown: bool
) -> None:
    assert shows_carrier(model, build) is shown


async def test_what_is_set_again_is_no_change(link: Link, carrier: Carrier) -> None:
    await carrier.set(up=False)
    await carrier.set(up=False, force=True)
    assert carrier.changes == 1, "it may have been up before"
    await carrier.flap()
    assert carrier.changes == 2
    carrier.invalidate()
    link.broken = True
    with pytest.raises(MonitorTimeout):
        await carrier.set(up=False)
    assert carrier.changes == 2
