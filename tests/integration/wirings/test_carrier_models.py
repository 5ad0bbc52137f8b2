"""NICs of a real QEMU whose model does not show its guest that the carrier changes."""

from __future__ import annotations

import pytest

from linkmgr import hub_args
from linkmgr.model import Outcome
from linkmgr.wirings.hub.nic_models import shows_carrier, unseen_carrier
from tests.integration.lab import Lab, mac_of


@pytest.mark.next_qemu
@pytest.mark.parametrize("model", ["virtio-net-pci", "e1000e", "ne2k_pci"])
async def test_an_outcome_says_once_that_the_guest_does_not_see_its_carrier_change(
    lab: Lab, model: str
) -> None:
    guest = await lab.guest(nic_args=hub_args("net0", mac=mac_of(1, 0), model=model), boot=False)
    await lab.network("blue")
    await lab.links.create_port("blue", "other")
    await lab.network("red")
    version = (await guest.qmp("query-version"))["qemu"]
    seen = model == "virtio-net-pci" or (model == "e1000e" and version["major"] >= 10)
    assert shows_carrier(model, f"{version['major']}.{version['minor']}") is seen
    notes = () if seen else (unseen_carrier(model),)

    def said(outcome: Outcome) -> tuple[str, ...]:
        assert outcome.changed
        return outcome.notes

    links = lab.links
    assert said(await links.plug("web1/net0", "blue", notify="silent")) == notes
    assert said(await links.plug("web1/net0", "blue:other")) == (), "its carrier stays up"
    assert said(await links.plug("web1/net0", "red")) == notes, "a flap is two changes"
    assert said(await links.set_link("web1/net0", "down")) == notes
    assert (await links.set_link("web1/net0", "down")).notes == ()
    assert said(await links.set_link("web1/net0", "up")) == notes
    assert said(await links.unplug("web1/net0")) == notes
    assert (await links.unplug("web1/net0")).notes == ()
    assert await links.check() == [], "nothing is wrong with it"
