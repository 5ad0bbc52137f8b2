"""Networks and ports: what may be created, deleted and claimed."""

from typing import Any

import pytest

from linkmgr.cli.params import OptionType, options_of
from linkmgr.drivers.bridge import BridgeDriver
from linkmgr.errors import (
    AlreadyExists,
    BadName,
    BadOption,
    LinkMissing,
    NetworkInUse,
    PortInUse,
    UnknownNetwork,
    UnknownPort,
)
from linkmgr.host import Host
from linkmgr.inventory.networks import Networks
from linkmgr.model import Network, NicRef

NET0 = NicRef("web1", "net0")
NET1 = NicRef("web1", "net1")


@pytest.fixture
def networks() -> Networks:
    networks = Networks(Host())
    networks.create("blue", "bridge", {"bridge": "br0"})
    return networks


def test_the_same_network_again_is_fine_another_is_not(networks: Networks) -> None:
    assert networks.create("blue", "bridge", {"bridge": "br0"}).name == "blue"
    with pytest.raises(AlreadyExists, match="br0"):
        networks.create("blue", "bridge", {"bridge": "br1"})
    assert networks.network("blue").options == {"bridge": "br0"}


@pytest.mark.parametrize("name", ["a/b", "a\nb", "x" * 300, "", "a:b"])
def test_a_bad_network_name_is_refused_everywhere(networks: Networks, name: str) -> None:
    for attempt in (
        lambda: networks.create(name, "bridge", {"bridge": "br0"}),
        lambda: networks.delete(name),
        lambda: networks.network(name),
        lambda: networks.create_port("blue", name, {}),
    ):
        with pytest.raises(BadName):
            attempt()
    assert [network.name for network in networks] == ["blue"]


@pytest.mark.parametrize(
    ("driver", "options", "complaint"),
    [
        ("nosuch", {}, "no network driver 'nosuch'"),
        ("bridge", {}, "needs the option 'bridge'"),
        ("bridge", {"bridge": "br0", "vlan": 3}, "no option 'vlan'"),
        ("bridge", {"bridge": 7}, "cannot be 7"),
        ("bridge", {"bridge": "br0", "create": 1}, "true or false"),
        ("bridge", {"bridge": "br0", "mtu": 10}, "from 68 to"),
        ("bridge", {"bridge": "br0", "mtu": True}, "from 68 to"),
        ("direct", {"parent": "eth0", "mode": "fast"}, "bridge, vepa, private, passthru"),
    ],
)
def test_a_bad_option_is_named_with_what_it_may_be(
    networks: Networks, driver: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadOption) as caught:
        networks.create("red", driver, options)
    assert complaint in str(caught.value)
    with pytest.raises(UnknownNetwork):
        networks.network("red")


@pytest.mark.parametrize("name", ["a/b", "..", "x" * 128, "a b", ""])
def test_a_device_name_that_the_kernel_would_not_take_is_refused(
    networks: Networks, name: str
) -> None:
    with pytest.raises(BadName):
        networks.create("red", "bridge", {"bridge": name})
    with pytest.raises(BadName):
        networks.create("red", "direct", {"parent": name})


def test_a_port_has_options_of_its_own_over_those_of_its_network(networks: Networks) -> None:
    networks.create("red", "bridge", {"bridge": "br1", "isolated": True, "hairpin": True})
    port = networks.create_port("red", "p1", {"hairpin": False})
    settings = networks.driver("bridge").settings(port)
    assert (settings["isolated"], settings["hairpin"], settings["learning"]) == (True, False, True)
    assert networks.create_port("red", "p1", {"hairpin": False}) == port
    with pytest.raises(AlreadyExists):
        networks.create_port("red", "p1", {"hairpin": True})
    with pytest.raises(BadOption, match="no option 'bridge'"):
        networks.create_port("red", "p2", {"bridge": "br2"})


def test_a_target_is_a_network_or_one_of_its_ports(networks: Networks) -> None:
    port = networks.create_port("blue", "p1", {})
    assert networks.port("blue:p1", NET0) == networks.port(port, NET0) == port
    implied = networks.port("blue", NET0)
    assert implied.implied
    assert networks.port(networks.network("blue"), NET0) == implied
    assert networks.port("blue", NET1) != implied
    with pytest.raises(UnknownPort, match="or plug into blue; its ports are: p1"):
        networks.port("blue:p2", NET0)
    with pytest.raises(UnknownNetwork, match="the networks are: blue"):
        networks.port("red", NET0)
    for bad in ("blue:", "blue:a/b", ":p1", "", 7):
        with pytest.raises(BadName):
            networks.port(bad, NET0)  # type: ignore[arg-type]  # wrong on purpose


def test_a_port_belongs_to_one_nic_at_a_time(networks: Networks) -> None:
    port = networks.create_port("blue", "p1", {})
    networks.claim(port, NET0)
    networks.claim(port, NET0)
    with pytest.raises(PortInUse, match="web1/net0"):
        networks.claim(port, NET1)
    with pytest.raises(PortInUse, match="web1/net0"):
        networks.delete_port("blue", "p1")
    networks.free(port, NET1)
    with pytest.raises(PortInUse):
        networks.claim(port, NET1)
    networks.free(port, NET0)
    networks.claim(port, NET1)


async def test_a_claim_is_ended_once(networks: Networks) -> None:
    """What ends it may be called again, by a clean-up that failed halfway, when others have it."""
    port = networks.create_port("blue", "p1", {})
    networks.claim(port, NET0)
    end = networks.claimed(port, NET0)
    await end()
    for nic in (NET1, NET0):
        networks.claim(port, nic)
        await end()
        with pytest.raises(PortInUse):
            networks.delete_port("blue", "p1")
        networks.free(port, nic)


def test_a_network_in_use_cannot_be_deleted(networks: Networks) -> None:
    implied = networks.port("blue", NET0)
    networks.claim(implied, NET0)
    with pytest.raises(NetworkInUse, match="web1/net0"):
        networks.delete("blue")
    networks.free(implied, NET0)
    networks.create_port("blue", "p1", {})
    with pytest.raises(NetworkInUse, match="blue:p1"):
        networks.delete("blue")
    assert networks.delete_port("blue", "p1")
    assert networks.delete("blue")


def test_deleting_twice_succeeds(networks: Networks) -> None:
    assert networks.delete("blue")
    assert networks.delete("blue") is None
    assert networks.delete_port("blue", "p1") is None


async def test_a_bridge_that_is_missing_is_told_with_words_that_the_command_line_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def none(*_: object) -> None:
        return None

    monkeypatch.setattr(Host, "find_device", none)
    driver = BridgeDriver(Host())
    with pytest.raises(LinkMissing, match=r"create=true \(in Python create=True\)"):
        await driver.ensure_bridge(Network("blue", "bridge", {"bridge": "br0"}))
    assert options_of([OptionType().convert("create=true", None, None)]) == {"create": True}
