"""An fd in the words of linkmgr: its endpoint as JSON, its port, its reserved network."""

from __future__ import annotations

import json
import os

import pytest

from linkmgr.drivers.fd import FD_NETWORK, fd_port
from linkmgr.errors import BadName, PortInUse, UnknownPort
from linkmgr.host import Host
from linkmgr.inventory.networks import Networks
from linkmgr.model import Drift, FdEndpoint, NicRef
from linkmgr.state.codec import DecodeError, JsonReader, read_endpoint, read_port, to_json

NET0, NET1 = NicRef("web1", "net0"), NicRef("web1", "net1")


@pytest.mark.parametrize(
    "endpoint",
    [FdEndpoint("0.uplink"), FdEndpoint("1000.uplink", "tap0", vnet_hdr=True, mtu=9000)],
)
def test_the_endpoint_reads_back_from_its_json(endpoint: FdEndpoint) -> None:
    document = json.loads(json.dumps(to_json(endpoint)))
    assert document["kind"] == "fd"
    assert read_endpoint(JsonReader(document)) == endpoint


def test_what_is_wrong_in_the_json_is_named() -> None:
    with pytest.raises(DecodeError, match="mtu: should be a number"):
        read_endpoint(JsonReader({"kind": "fd", "name": "0.uplink", "mtu": "large"}))


def test_the_port_reads_back_from_its_json_and_from_its_text() -> None:
    port = fd_port(1000, "uplink")
    assert read_port(JsonReader(json.loads(json.dumps(to_json(port))))) == port
    assert str(port) == "fd:1000.uplink"
    assert fd_port(1000, str(port).partition(":")[2]) == port


def test_a_target_is_an_fd_of_the_user_who_asks() -> None:
    networks = Networks(Host())
    assert networks.port("fd:uplink", NET0, 1000) == fd_port(1000, "uplink")
    assert networks.port("fd:uplink", NET0) == fd_port(os.geteuid(), "uplink")
    assert networks.port(fd_port(1000, "uplink"), NET0, 1000) == fd_port(1000, "uplink")
    with pytest.raises(UnknownPort):
        networks.port(fd_port(1000, "uplink"), NET0, 1001)
    networks.claim(fd_port(1000, "uplink"), NET0)
    networks.claim(fd_port(1001, "uplink"), NET1)
    with pytest.raises(PortInUse, match=r"port fd:1000\.uplink is in use by web1/net0"):
        networks.claim(fd_port(1000, "uplink"), NET1)


@pytest.mark.parametrize("target", ["fd", "fd:"])
def test_the_network_alone_is_no_target_and_the_error_says_how_an_fd_is_named(target: str) -> None:
    with pytest.raises(BadName, match="does not name an fd") as caught:
        Networks(Host()).port(target, NET0, 1000)
    assert "fd:NAME" in (caught.value.hint or "")


def test_a_wrong_name_cannot_be_that_of_an_fd() -> None:
    with pytest.raises(BadName, match="'a/b' cannot be the name of an fd"):
        fd_port(1000, "a/b")


def test_the_network_is_there_and_nobody_can_have_another_of_its_name() -> None:
    networks = Networks(Host())
    assert networks.network("fd") == FD_NETWORK
    assert FD_NETWORK.drift is Drift.REPORT, "a lost fd cannot be had again"
    for attempt in (
        lambda: networks.create("fd", "bridge", {"bridge": "br0"}),
        lambda: networks.create("mine", "fd", {}),
        lambda: networks.create_port("fd", "uplink", {}),
        lambda: networks.delete("fd"),
    ):
        with pytest.raises(BadName, match="reserved"):
            attempt()
    assert list(networks) == []
