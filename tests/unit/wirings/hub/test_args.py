"""The arguments that boot a NIC on a hub."""

from typing import Any

import pytest

from linkmgr import hub_args
from linkmgr.errors import BadName, BadOption


def test_a_nic_gets_a_hub_with_a_sink() -> None:
    args = hub_args("net0", mac="52:54:00:12:34:56", hub=7)
    assert args == [
        "-netdev", "hubport,id=lm-hub-net0,hubid=7",
        "-netdev", "hubport,id=lm-sink-net0,hubid=7",
        "-device", "virtio-net-pci,id=net0,netdev=lm-hub-net0,mac=52:54:00:12:34:56",
    ]  # fmt: skip


def test_two_nics_get_two_hubs() -> None:
    hubs = {hub_args(f"net{n}", mac="52:54:00:12:34:56")[1].split("hubid=")[1] for n in range(50)}
    assert len(hubs) == 50
    assert all(0 <= int(hub) < 2**31 for hub in hubs)


def test_model_mtu_and_properties_are_passed_on() -> None:
    args = hub_args(
        "n", mac="52:54:00:12:34:56", model="virtio-net-ccw", host_mtu=9000, properties="romfile="
    )
    assert args[-1] == (
        "virtio-net-ccw,id=n,netdev=lm-hub-n,mac=52:54:00:12:34:56,host_mtu=9000,romfile="
    )
    assert hub_args("n", mac="52:54:00:12:34:56", model="vmxnet3")[-1].startswith("vmxnet3,id=n,")


@pytest.mark.parametrize("alias", ["", "0net", "net,0", "net 0", "a/b"])
def test_an_alias_that_qemu_would_not_take_is_refused(alias: str) -> None:
    with pytest.raises(BadName):
        hub_args(alias, mac="52:54:00:12:34:56")


@pytest.mark.parametrize(
    ("mac", "hub"),
    [("", 1), ("52:54:00:12:34", 1), ("52:54:00:12:34:56,id=x", 1), ("01:00:5e:00:00:01", 1),
     ("52:54:00:12:34:56", -1), ("52:54:00:12:34:56", 2**31)],
)  # fmt: skip
def test_an_address_or_a_hub_that_qemu_would_not_take_is_refused(mac: str, hub: int) -> None:
    with pytest.raises(BadOption):
        hub_args("net0", mac=mac, hub=hub)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"host_mtu": -4}, "-4 cannot be the MTU of a NIC"),
        ({"host_mtu": 67}, "67 cannot be the MTU"),
        ({"host_mtu": 65536}, "65536 cannot be the MTU"),
        ({"host_mtu": "big"}, "'big' cannot be the MTU"),
        ({"host_mtu": True}, "True cannot be the MTU"),
        ({"host_mtu": 9000, "model": "vmxnet3"}, "vmxnet3 has no host_mtu"),
        ({"mac": "00:00:00:00:00:00"}, "QEMU would give the NIC an address of its own"),
        ({"mac": None}, "None cannot be the address of a NIC"),
        ({"mac": 5}, "5 cannot be the address of a NIC"),
        ({"hub": "x"}, "'x' cannot be the number of a hub"),
        ({"hub": True}, "True cannot be the number of a hub"),
        ({"model": None}, "None cannot be a model of a NIC"),
        ({"model": "vmxnet3,id=x"}, "'vmxnet3,id=x' cannot be a model of a NIC"),
        ({"properties": None}, "None cannot be properties of a NIC"),
    ],
)
def test_what_would_end_qemu_or_this_call_is_refused_in_a_sentence(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadOption) as caught:
        hub_args("net0", **{"mac": "52:54:00:12:34:56", **given})
    assert said in str(caught.value)
    assert caught.value.hint
