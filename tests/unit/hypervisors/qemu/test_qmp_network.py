"""``info network``: the samples are real answers of QEMU 7.2."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkmgr.errors import MonitorError
from linkmgr.hypervisors.qemu.qmp.info_network import (
    Hub,
    HubPort,
    NetClient,
    NetTopology,
    parse_info_network,
)

DATA = Path(__file__).parents[2] / "data" / "info_network"
SAMPLES = sorted(path.stem for path in DATA.glob("*.txt"))


def sample(name: str) -> NetTopology:
    return parse_info_network((DATA / f"{name}.txt").read_text())


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_understood_with_either_line_end(name: str) -> None:
    text = (DATA / f"{name}.txt").read_text()
    assert parse_info_network(text) == parse_info_network(text.replace("\n", "\r\n"))


def test_an_unplugged_hub_nic() -> None:
    info = sample("hub_unplugged")
    assert info.hubs == {1: Hub(1, (HubPort("lm-sink0"), HubPort("lm-hub0", "net0", "nic")))}
    assert info.hub_of("net0") == (1, "lm-hub0")
    assert info.nics["net0"].model == "virtio-net-pci"
    assert info.nics["net0"].mac == "52:54:00:00:00:01"
    assert info.nics["net0"].peer == "lm-hub0"
    assert info.netdevs["lm-sink0"] == NetClient("lm-sink0", "hubport")
    assert info.hubs[1].backends == ()
    assert [port.id for port in info.hubs[1].free] == ["lm-sink0"]


def test_a_plugged_hub_nic_and_a_backend_that_is_staged() -> None:
    info = sample("hub_plugged_and_staged")
    assert info.hubs[1].backends == (HubPort("lm-port-1", "lm-tap-1", "tap"),)
    assert info.netdevs["lm-tap-1"].peer == "lm-port-1"
    assert info.netdevs["lm-tap-2"].peer is None
    assert info.netdevs["lm-tap-2"].type == "tap"
    assert len(sample("hub_plugged").netdevs) == 4


def test_a_hub_with_two_cables() -> None:
    assert [port.peer for port in sample("hub_crowded").hubs[1].backends] == ["x2", "lm-tap-1"]


@pytest.mark.parametrize(("name", "kind"), [("direct_tap", "tap"), ("direct_user", "user")])
def test_a_nic_with_a_direct_backend(name: str, kind: str) -> None:
    info = sample(name)
    assert info.hub_of("net0") is None
    backend = info.netdevs[info.nics["net0"].peer or ""]
    assert (backend.type, backend.peer) == (kind, "net0")
    assert info.hubs == {}


def test_a_nic_without_any_netdev() -> None:
    assert sample("nic_without_netdev").nics["net0"].peer is None
    assert sample("nic_without_id").nics["virtio-net-pci.0"].peer is None


def test_two_hubs_are_kept_apart() -> None:
    info = sample("two_hubs")
    assert info.hub_of("net0") == (1, "lm-hub0")
    assert info.hub_of("net1") == (2, "lm-hub1")
    assert info.hubs[1].backends
    assert not info.hubs[2].backends


def test_names_with_dots_dashes_and_underscores() -> None:
    assert sample("names_with_dots_and_dashes").hub_of("ua-net.0_x-1") == (17, "lm-hub.0-a_b")


def test_a_multiqueue_nic_is_one_nic() -> None:
    info = sample("multiqueue_direct")
    assert info.nics["net0"].queues == info.netdevs["hostnet0"].queues == 2
    assert info.nics["net0"].mac == "52:54:00:00:00:08"
    assert (info.nics["net0"].peer, info.netdevs["hostnet0"].peer) == ("hostnet0", "net0")


def test_other_models() -> None:
    info = sample("three_models")
    assert {nic.model for nic in info.nics.values()} == {"vmxnet3", "rtl8139", "e1000e"}
    assert sample("vmxnet3_hub").hub_of("net0") == (1, "lm-hub0")


def test_a_nic_and_a_netdev_may_have_the_same_name() -> None:
    info = sample("same_name_nic_and_netdev")
    assert info.nics["net0"].peer == info.netdevs["net0"].peer == "net0"
    assert info.clients["net0"].type == "nic"


def test_filters_of_a_backend_are_passed_over() -> None:
    info = sample("filters")
    assert [port.id for port in info.hubs[1].ports] == ["p1", "lm-sink0", "lm-hub0"]


def test_a_nic_that_lost_its_hub_port_is_nowhere() -> None:
    assert sample("orphan_nic").nics == {}


@pytest.mark.parametrize(
    "text",
    [
        "unknown command: 'info network'",
        "hub one",
        " \\ lm-sink0",
        "hub 1\n \\ a: b",
        "hub 1\n \\ a\n \\ a",
        "hub 1\nhub 1",
        "net0: index=0,type=nic",
        "net0: index=1,type=nic,",
        "net0: index=0,type=nic,\nnet0: index=0,type=nic,",
        "net0: index=0,type=nic,\nnet0: index=2,type=nic,",
        "t: index=0,type=tap,\n \\ u: index=0,type=tap,",
        "n: index=0,type=nic,\n \\ m: index=0,type=nic,",
        "t: index=0,type=tap,\nhub 1",
        "filters:",
        "a b: index=0,type=tap,",
    ],
)
def test_what_cannot_be_understood_is_refused_and_shown(text: str) -> None:
    with pytest.raises(MonitorError, match=r"line \d of QEMU's 'info network' cannot be") as info:
        parse_info_network(text)
    assert info.value.hint


@given(st.text())
def test_any_text_is_understood_or_refused(text: str) -> None:
    with suppress(MonitorError):
        parse_info_network(text)


@given(st.sampled_from(SAMPLES), st.data())
def test_a_damaged_answer_is_understood_or_refused(name: str, data: st.DataObject) -> None:
    text = (DATA / f"{name}.txt").read_text()
    at = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 20))
    with suppress(MonitorError):
        parse_info_network(text[:at] + data.draw(st.text(max_size=5)) + text[at + length :])


IDS = st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,12}", fullmatch=True)
INFOS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
KINDS = st.sampled_from(["tap", "user", "stream", "dgram", "socket", "vhost-user"])
MACS = st.from_regex(r"52:54:00(:[0-9a-f]{2}){3}", fullmatch=True)


@st.composite
def networks(draw: st.DrawFn) -> NetTopology:
    """A network as QEMU could have it."""
    nic_ids = draw(st.lists(IDS, unique=True, max_size=5))
    netdev_ids = iter(draw(st.lists(IDS, unique=True, min_size=24, max_size=24)))
    nics, netdevs, hubs = {}, {}, {}

    def nic(peer: str | None, queues: int = 1) -> NetClient:
        name = nic_ids.pop()
        model, mac = draw(st.sampled_from(["virtio-net-pci", "e1000e"])), draw(MACS)
        info = f"model={model},macaddr={mac}"
        nics[name] = NetClient(name, "nic", model, mac, info, peer, queues)
        return nics[name]

    def backend(peer: str | None, name: str, queues: int = 1) -> NetClient:
        kind, info = draw(KINDS), draw(INFOS)
        netdevs[name] = NetClient(name, kind, info=info, peer=peer, queues=queues)
        return netdevs[name]

    for number in draw(st.lists(st.integers(0, 99), unique=True, max_size=3)):
        ports = []
        for what in draw(st.lists(st.sampled_from(["nothing", "nic", "backend"]), max_size=4)):
            port = next(netdev_ids)
            peer = None
            if what == "nic" and nic_ids:
                peer = nic(port)
            elif what == "backend":
                peer = backend(port, next(netdev_ids))
            plugged = (peer.id, peer.type) if peer else (None, None)
            ports.append(HubPort(port, *plugged))
            netdevs[port] = NetClient(port, "hubport", peer=plugged[0])
        hubs[number] = Hub(number, tuple(ports))
    while nic_ids:
        if draw(st.booleans()):
            name, queues = next(netdev_ids), draw(st.integers(1, 3))
            backend(nic(name, queues).id, name, queues)
        else:
            nic(None)
    return NetTopology(hubs, nics, netdevs)


def render(info: NetTopology, newline: str) -> str:
    """The text of QEMU's ``hmp_info_network``."""

    def line(client: NetClient, index: int = 0) -> str:
        told = client.info if index == 0 else ""
        return f"{client.id}: index={index},type={client.type},{told}"

    lines = []
    for hub in info.hubs.values():
        lines.append(f"hub {hub.number}")
        for port in hub.ports:
            known = info.nics if port.peer_kind == "nic" else info.netdevs
            lines.append(f" \\ {port.id}" + (f": {line(known[port.peer])}" if port.peer else ""))
    for nic in info.nics.values():
        if info.hub_of(nic.id):
            continue
        for index in range(nic.queues):
            lines.append(line(nic, index))
            if nic.peer:
                lines.append(f" \\ {line(info.netdevs[nic.peer], index)}")
    lines += [line(c) for c in info.netdevs.values() if c.peer is None and c.type != "hubport"]
    return newline.join([*lines, ""])


@given(networks(), st.sampled_from(["\n", "\r\n"]))
def test_what_is_written_is_read_back(info: NetTopology, newline: str) -> None:
    assert parse_info_network(render(info, newline)) == info
