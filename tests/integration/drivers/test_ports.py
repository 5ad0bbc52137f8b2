"""Ports of a network: their options, and a NIC that moves between two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkmgr.errors import LinkBusy, NotForwarding
from linkmgr.host import Host
from tests.integration.lab import Lab, mac_of

NIC = "web1/net0"
STATIC = " ".join(f"lm.ip.eth0=10.{n}.0.2/24 lm.ip6.eth0=fd00:{n}::2/64" for n in (1, 2))


def flags(device: str) -> dict[str, bool]:
    """What the kernel says of a bridge port."""
    port = Path("/sys/class/net") / device / "brport"
    return {
        flag: (port / file).read_text().strip() == "1"
        for flag, file in (
            ("isolated", "isolated"),
            ("hairpin", "hairpin_mode"),
            ("learning", "learning"),
        )
    }


async def test_a_bridge_port_behaves_as_its_options_say(lab: Lab) -> None:
    await lab.network("blue")
    await lab.guest(boot=False)
    for name, options in (
        ("plain", {}),
        ("odd", {"isolated": True, "hairpin": True, "learning": False}),
    ):
        await lab.links.create_port("blue", name, **options)
        outcome = await lab.links.plug(NIC, f"blue:{name}")
        assert outcome.nic.connection
        expected = {"isolated": False, "hairpin": False, "learning": True, **options}
        assert flags(outcome.nic.connection.device) == expected


async def test_a_port_that_does_not_learn_is_told_where_the_nic_is_and_does_not_forget_it(
    lab: Lab,
) -> None:
    await lab.network("blue")
    await lab.guest(boot=False)
    for name, learning in (("p1", False), ("p2", True), ("p3", False)):
        await lab.links.create_port("blue", name, learning=learning)
        outcome = await lab.links.plug(NIC, f"blue:{name}")
        assert outcome.nic.connection
        device = outcome.nic.connection.device
        known = await lab.sh(f"bridge fdb show br br-blue brport {device}")
        (entry,) = [line for line in known.splitlines() if line.startswith(mac_of(1, 0))]
        assert ("static" in entry.split()) is not learning, f"{name}: {entry}"


@pytest.mark.parametrize("network", ["blue", "green"])
async def test_a_replug_within_a_network_keeps_the_address_and_the_carrier(
    lab: Lab, network: str
) -> None:
    await lab.network(network)
    for name in ("p1", "p2"):
        await lab.links.create_port(network, name)
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.plug(NIC, f"{network}:p1")
    await guest.wait_carrier("eth0", True)
    changes = await guest.carrier_changes("eth0")
    number = {"blue": 1, "green": 2}[network]
    for name in ("p2", "p1", "p2"):
        outcome = await lab.links.plug(NIC, f"{network}:{name}")
        assert outcome.changed
        assert outcome.nic.connection
        assert outcome.nic.connection.port.name == name
        assert (await guest.ping(f"10.{number}.0.1")).received
        assert (await guest.ping(f"fd00:{number}::1")).received
    assert await guest.carrier_changes("eth0") == changes
    (connection,) = await lab.links.connections()
    async with Host() as host:
        if network == "green":
            assert (await host.device(connection.device)).mac == mac_of(1, 0)


async def test_plugging_where_it_is_does_nothing(lab: Lab) -> None:
    await lab.network("blue")
    await lab.links.create_port("blue", "p1")
    await lab.guest(boot=False)
    first = await lab.links.plug(NIC, "blue:p1")
    for target in ("blue:p1", "blue"):
        again = await lab.links.plug(NIC, target)
        assert (again.changed, again.nic.connection) == (False, first.nic.connection)
    assert (await lab.links.unplug(NIC)).changed
    assert not (await lab.links.unplug(NIC)).changed


async def test_a_replug_on_one_parent_keeps_the_device_and_loses_nothing(lab: Lab) -> None:
    """Also in passthru mode, where the kernel allows no second device on the parent."""
    green = await lab.network("green", mode="passthru")
    for name in ("p1", "p2"):
        await lab.links.create_port("green", name)
    guest = await lab.guest(cmdline=STATIC)
    first = (await lab.links.plug(NIC, "green:p1")).nic.connection
    mac = await guest.mac("eth0")
    async with guest.counting("eth0", tag="peer") as heard:
        said = await green.send_frames("eth0", mac, rate=1000, count=300, tag="peer")
        second = (await lab.links.plug(NIC, "green:p2")).nic.connection
        more = await green.send_frames("eth0", mac, rate=1000, count=300, tag="peer")
    assert heard.report.tags["peer"].frames == said.sent + more.sent
    assert first
    assert second
    assert first.device == second.device
    assert first.attachment != second.attachment
    assert {connection.port.name for connection in await lab.links.connections()} == {"p2"}
    assert await lab.links.check() == []
    await lab.links.unplug(NIC)
    assert not Path(f"/sys/class/net/{second.device}").exists()


async def test_two_networks_on_one_parent_differ_in_mode_and_mtu(lab: Lab) -> None:
    await lab.network("green")
    await lab.links.create_network("small", "direct", parent="v-green", mode="private", mtu=1400)
    guest = await lab.guest(cmdline=STATIC)
    for target, mode, mtu in (("green", "bridge", 1500), ("small", "private", 1400)) * 2:
        outcome = await lab.links.plug(NIC, target)
        assert outcome.nic.connection
        async with Host() as host:
            device = await host.device(outcome.nic.connection.device)
        assert (device.mode, device.mtu) == (mode, mtu)
        assert (await guest.ping("10.2.0.1")).received
        assert await lab.links.check() == []


async def test_a_macvtap_cannot_become_passthru_and_the_cable_stays(lab: Lab) -> None:
    await lab.network("green")
    await lab.links.create_network("all", "direct", parent="v-green", mode="passthru")
    guest = await lab.guest(cmdline=STATIC)
    first = await lab.links.plug(NIC, "green")
    with pytest.raises(LinkBusy, match="web1/net0 is plugged into green") as caught:
        await lab.links.plug(NIC, "all")
    assert caught.value.hint
    assert (await lab.links.nic(NIC)).connection == first.nic.connection
    assert (await guest.ping("10.2.0.1")).received


async def test_a_bridge_that_is_made_for_a_network_goes_with_its_last_nic(lab: Lab) -> None:
    await lab.links.create_network("red", "bridge", bridge="br-made", create=True)
    await lab.guest(nics=2, boot=False)
    bridge = Path("/sys/class/net/br-made")
    assert not bridge.exists()
    for nic in ("web1/net0", "web1/net1"):
        await lab.links.plug(nic, "red")
    await lab.links.unplug("web1/net0")
    assert bridge.exists()
    await lab.links.unplug("web1/net1")
    assert not bridge.exists()
    assert await lab.links.delete_network("red")


async def test_a_bridge_port_is_switched_to_only_when_it_forwards(lab: Lab) -> None:
    """With STP a new port listens and learns first; the NIC stays where it is meanwhile."""
    await lab.network("blue")
    await lab.network("red")
    await lab.sh("ip link set br-red type bridge stp_state 1 forward_delay 200")
    guest = await lab.guest(cmdline=STATIC)
    await lab.links.plug(NIC, "blue")
    await lab.links.plug(NIC, "red", notify="silent")
    (connection,) = await lab.links.connections()
    state = Path(f"/sys/class/net/{connection.device}/brport/state").read_text().strip()
    assert state == "3"
    assert connection.network == "red"
    assert await guest.carrier("eth0")


async def test_a_port_that_never_forwards_is_not_switched_to(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.network("blue")
    await lab.network("red")
    await lab.sh("ip link set br-red type bridge stp_state 1 forward_delay 3000")
    guest = await lab.guest(cmdline=STATIC)
    first = await lab.links.plug(NIC, "blue")
    monkeypatch.setattr("linkmgr.wirings.endpoints.host_side.FORWARDING_TIMEOUT_S", 0.5)
    with pytest.raises(NotForwarding, match="web1/net0 is plugged into blue"):
        await lab.links.plug(NIC, "red")
    assert await lab.links.connections() == [first.nic.connection]
    assert (await guest.ping("10.1.0.1")).received
