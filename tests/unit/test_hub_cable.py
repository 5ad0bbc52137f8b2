"""What the hub wiring believes of a QEMU, and what it does about one that does not obey."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from linkmgr.errors import CommandFailed, LinkBusy, MonitorError, MonitorTimeout
from linkmgr.host import Host
from linkmgr.model import BridgeEndpoint, NicRef
from linkmgr.qmp.network import NetClient, NetworkInfo
from linkmgr.qmp.qemu import Qemu
from linkmgr.wirings import Cable, HubWiring
from linkmgr.wirings.host_side import make_tap
from linkmgr.wirings.receive_filter import guest_filter

NIC = NicRef("web1", "net0")
ID = "0000000a"
BACKEND = f"lmt-{ID}"
OWN, OTHERS = "52:54:00:00:00:01", "52:54:00:00:00:99"


class FakeQemu:
    """Has one backend, and a guest that goes by another address than its own."""

    alive = True

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def network(self) -> NetworkInfo:
        return NetworkInfo(netdevs={BACKEND: NetClient(BACKEND, "tap")})

    async def execute(self, name: str, _arguments: object = None) -> object:
        if name == "query-rx-filter":
            return [{"main-mac": OTHERS, "promiscuous": False}]
        if self.error is not None:
            raise self.error
        return None


class FakeHost:
    """Has the cable's device."""

    def __init__(self) -> None:
        self.done: list[str] = []
        mark = f"linkmgr:{NIC}:{ID}"
        self.link = SimpleNamespace(name="lm1", index=7, alias=mark, spanning_tree=False)
        self.keeper = SimpleNamespace(drop=lambda _: None)

    async def find_link(self, _: object) -> object:
        return self.link

    async def links(self) -> list[Any]:
        return [self.link]

    async def open_tap(self, *_: object, **__: object) -> object:
        return SimpleNamespace(fd=None)

    async def attach_to_bridge(self, *_: object, **__: object) -> None:
        pass

    async def forwarding(self, *_: object) -> set[str]:
        return {OTHERS}

    async def set_down(self, device: object) -> None:
        self.done.append(f"down {device}")

    async def delete_link(self, device: object) -> None:
        self.done.append(f"delete {device}")


def made(qemu: FakeQemu, host: FakeHost) -> HubWiring:
    return HubWiring(cast("Qemu", qemu), cast("Host", host))


def cable(*, learning: bool = True) -> Cable:
    where = BridgeEndpoint("br0", learning=learning)
    return Cable(ID, NIC, where, f"lmp-{ID}", BACKEND, mac=OWN, device="lm1", in_qemu=True)


@pytest.mark.parametrize(
    "error",
    [CommandFailed("no", command="netdev_del"), MonitorTimeout("no answer", sent=True)],
    ids=["refuses", "is-silent"],
)
async def test_a_qemu_that_keeps_a_backend_hears_nothing_through_it_any_more(
    error: Exception,
) -> None:
    """It has an fd of the tap, and would stay on a network that its NIC was unplugged from."""
    host, qemu, old = FakeHost(), FakeQemu(error), cable()
    wiring = made(qemu, host)
    with pytest.raises(type(error)):
        await wiring.release(old)
    assert host.done == ["down 7"], "to delete it would make QEMU spin"
    qemu.error = None
    await wiring.release(old)
    assert host.done == ["down 7", "delete 7"]


@pytest.mark.parametrize(("learning", "macs"), [(True, {OWN, OTHERS}), (False, {OWN})])
async def test_a_port_that_does_not_learn_gets_no_address_that_only_the_guest_says(
    learning: bool, macs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A static entry for it would take the traffic of whoever has that address."""

    async def make_tap(*_: object) -> None:
        raise LinkBusy("as far as that")

    monkeypatch.setattr("linkmgr.wirings.hub.make_tap", make_tap)
    new = cable(learning=learning)
    with pytest.raises(LinkBusy):
        await made(FakeQemu(), FakeHost()).stage(new, None)
    assert new.macs == macs


@pytest.mark.parametrize(("learning", "macs"), [(True, {OWN, OTHERS}), (False, {OWN})])
async def test_what_a_bridge_has_learned_does_not_move_for_good_to_a_port_that_does_not_learn(
    learning: bool, macs: set[str]
) -> None:
    old, new = cable(), cable(learning=learning)
    new.macs = {OWN}
    assert isinstance(new.endpoint, BridgeEndpoint)
    await make_tap(cast("Host", FakeHost()), new, new.endpoint, old)
    assert new.macs == macs


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, [7], [{}], [{"main-mac": "x", "promiscuous": False}],
     [{"main-mac": ["52:54:00:00:00:01"], "promiscuous": False}]],
)  # fmt: skip
async def test_a_receive_filter_that_is_none_is_a_fault_of_the_monitor(answer: object) -> None:
    class Liar:
        name = "VM web1"

        async def execute(self, *_: object) -> object:
            return answer

    with pytest.raises(MonitorError, match="web1/net0"):
        await guest_filter(cast("Qemu", Liar()), NIC)
