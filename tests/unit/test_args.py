"""The arguments that boot a NIC on a hub."""

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
        "n", mac="52:54:00:12:34:56", model="vmxnet3", host_mtu=9000, properties="romfile="
    )
    assert args[-1] == "vmxnet3,id=n,netdev=lm-hub-n,mac=52:54:00:12:34:56,host_mtu=9000,romfile="


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
