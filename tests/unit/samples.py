"""A NIC and its surroundings as the service tells of them."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from linkmgr.drivers.fd import FD_NETWORK
from linkmgr.model import (
    BridgeEndpoint,
    Connection,
    DomainInfo,
    DomainNicInfo,
    FdEndpoint,
    LinkState,
    Network,
    Nic,
    NicRef,
    NicState,
    Outcome,
    Port,
    VmInfo,
    VmState,
)
from linkmgr.naming import NicCandidate, NicName, find_nic
from linkmgr.state.codec import to_json

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
BLUE = Network("blue", "bridge", {"bridge": "br0"})


def nic(
    ref: str = "web1/net0",
    state: NicState = NicState.PLUGGED,
    *,
    link: LinkState | None = LinkState.UP,
    wanted: LinkState = LinkState.UP,
    hours: float = 3,
) -> Nic:
    """A NIC that has been in its state for some hours."""
    since = NOW - timedelta(hours=hours)
    parsed = NicRef.parse(ref)
    connection = Connection(
        parsed,
        Port(BLUE, "web1-net0", implied=True),
        BridgeEndpoint("br0"),
        "3f9a1c2e",
        "lm3f9a1c2e",
        since,
    )
    return Nic(
        ref=parsed,
        model="virtio-net-pci",
        mac="52:54:00:12:34:56",
        mtu=1500,
        state=state,
        link=link,
        wanted_link=wanted,
        wiring=None if state is NicState.UNMANAGED else "hub",
        since=since,
        connection=connection if state is NicState.PLUGGED else None,
    )


def named(name: str | NicRef, nics: Iterable[Nic], vms: Iterable[str] = ()) -> NicRef:
    """Which of these NICs a name means, as `LinkManager.resolve` would say."""
    known = [
        NicCandidate(each.ref, each.mac, each.connection.device if each.connection else None)
        for each in nics
    ]
    return find_nic(NicName.parse(name), known, {*vms, *(each.ref.vm for each in known)})


def fd_nic() -> Nic:
    """A NIC on an fd that was handed over: no device between them is linkmgr's."""
    made = nic()
    assert made.connection is not None
    port = Port(FD_NETWORK, "0.up")
    endpoint = FdEndpoint("0.up", "mytap")
    return replace(
        made, connection=replace(made.connection, port=port, endpoint=endpoint, device="")
    )


def vm(name: str = "web1", state: VmState = VmState.ANSWERS, nics: int = 1) -> VmInfo:
    """A VM with NICs net0, net1, ..."""
    refs = tuple(NicRef(name, f"net{number}") for number in range(nics))
    return VmInfo(name, f"/run/{name}.qmp", state, NOW - timedelta(hours=3), refs)


def domain(name: str = "web3", **nic: Any) -> DomainInfo:
    """A guest of libvirt that is shut off; its one NIC was never prepared."""
    facts: dict[str, Any] = {
        "alias": "ua-net0",
        "mac": "52:54:00:00:00:03",
        "model": "virtio",
        "prepared": False,
    }
    uuid = "11111111-2222-3333-4444-555555555555"
    command = f"linkmgr prepare {name} --define"
    nics = (DomainNicInfo(**(facts | {"network": "bridge br7"} | nic)),)
    return DomainInfo(name, uuid, "shut off", None, nics[0].prepared, command, nics)


def outcome(**words: Any) -> Any:
    """What a verb answers, as JSON."""
    return to_json(Outcome(nic(**words), changed=True, timings={"switch": 1.5}))
