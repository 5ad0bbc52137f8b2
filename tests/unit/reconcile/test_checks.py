"""What `check` advises for what it finds is something that helps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from linkmgr.model import DirectEndpoint, DirectMode, Drift, LinkState, Network, Nic, NicState, Port
from linkmgr.reconcile.checks import check_nic, device_faults
from linkmgr.wirings import Cable
from linkmgr.wirings.endpoints.receive_filter import hint_for
from tests.unit.swap_lab import NIC, Bench, bench, impatient

__all__ = ["bench", "impatient"]  # fixtures


def stranger(port: str) -> Cable:
    return Cable(id="", nic=NIC, endpoint=None, hubport_id=port, netdev_id="theirs")


def nic_of(bench: Bench) -> Nic:
    state = NicState.PLUGGED if bench.nic.connection else NicState.UNPLUGGED
    return Nic(
        NIC, "virtio-net-pci", "52:54:00:00:00:01", 1500, state, LinkState.UP, LinkState.UP, "hub",
        datetime.now(UTC),
    )  # fmt: skip


async def test_a_stranger_on_the_hub_is_to_be_taken_out_first(bench: Bench) -> None:
    """Until then every plug and unplug is refused."""
    await bench.on_blue()
    assert bench.nic.connection
    bench.wiring.foreign = [bench.nic.connection.cable, stranger("p7")]
    (found, *_) = await check_nic(nic_of(bench), bench.nic, {})
    assert (found.code, found.hint) == ("wrong-cable", "take these out with netdev_del: p7")
    bench.wiring.foreign = []
    (found, *_) = await check_nic(nic_of(bench), bench.nic, {})
    assert (found.code, found.hint) == ("wrong-cable", "unplug it and plug it again")


async def test_an_endpoint_that_is_gone_is_to_be_made_and_the_nic_plugged_again(
    bench: Bench,
) -> None:
    await bench.on_blue()
    assert bench.nic.connection
    (fault,) = device_faults(bench.nic, {})
    assert fault[2] == (
        "make blue again, then unplug the NIC and plug it again; "
        "where linkmgr watches it is repaired by itself then"
    )
    bench.nic.connection.attachment.port = Port(Network("blue", "fake", drift=Drift.REPORT), "blue")
    (fault,) = device_faults(bench.nic, {})
    assert fault[2] == "make blue again, then unplug the NIC and plug it again"


ALL = "the guest asks for all frames; only a trusted port in passthru mode gives them"
ADDRESS = "the guest uses the address 52:54:00:00:00:09, but its port does not trust it"


@pytest.mark.parametrize(
    ("refused", "trusted", "mode", "said"),
    [
        (ALL, True, DirectMode.BRIDGE, "plug it into a network with passthru mode"),
        (ALL, False, DirectMode.PASSTHRU, "plug it into a network with trust_guest"),
        (ALL, False, DirectMode.VEPA, "plug it into a network with trust_guest and passthru mode"),
        (ADDRESS, False, DirectMode.BRIDGE, "give its port trust_guest"),
        ("the guest's receive filter cannot be followed: no", True, DirectMode.BRIDGE, "mend that"),
    ],
)
def test_what_the_port_does_not_give_the_guest_comes_with_what_would(
    refused: str, trusted: bool, mode: DirectMode, said: str
) -> None:
    endpoint = replace(DirectEndpoint("eth1"), mode=mode, trust_guest=trusted)
    hint = hint_for(refused, endpoint)
    assert hint.startswith(said)
    assert ("passthru" in hint) is ("passthru" in said)
