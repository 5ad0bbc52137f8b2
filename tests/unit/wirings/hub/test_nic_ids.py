"""Ids of QEMU that cannot be names, and what stands for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkmgr.errors import NotOnHub
from linkmgr.hypervisors.qemu.qmp.info_network import parse_info_network
from linkmgr.model import NicRef
from linkmgr.wirings.hub.alias import alias_of, unusable_id_error
from linkmgr.wirings.hub.topology import find_hub


@given(st.text(min_size=1))
def test_every_id_has_an_alias_that_can_be_named(ident: str) -> None:
    alias = alias_of(ident)
    assert NicRef.parse(f"web1/{alias}") == NicRef("web1", alias)
    assert alias_of(ident) == alias
    assert str(unusable_id_error(ident)).isprintable()
    assert len(str(unusable_id_error(ident))) < 400


@pytest.mark.parametrize("ident", ["net0", "ua-net.0_x-1", "a" * 63])
def test_an_id_that_can_be_a_name_is_its_own_alias(ident: str) -> None:
    assert alias_of(ident) == ident


def test_two_long_ids_that_begin_alike_are_told_apart() -> None:
    assert alias_of("a" * 64) != alias_of("a" * 65)
    assert alias_of("a" * 64).startswith("a" * 54)


@pytest.mark.parametrize("number", ["9" * 5000, "-1", str(2**31)])
def test_a_nic_on_a_hub_of_no_number_is_on_no_hub_and_the_others_are(number: str) -> None:
    info = parse_info_network(
        "hub 7\n \\ s7\n \\ p7: net7: index=0,type=nic,\n"
        f"hub {number}\n \\ s8\n \\ p8: net8: index=0,type=nic,\n"
    )
    assert find_hub(info, NicRef("web1", "net7")).number == 7
    with pytest.raises(NotOnHub, match="whose number is none of QEMU's"):
        find_hub(info, NicRef("web1", "net8"))


@pytest.mark.parametrize("ident", ["a/b", "-net0", "n" * 1000, "\x1b[2J", "#net123", "né"])
def test_an_odd_id_does_not_keep_the_others_from_being_read(ident: str) -> None:
    info = parse_info_network(f"{ident}: index=0,type=nic,\nnet1: index=0,type=nic,\n")
    assert list(info.nics) == [ident, "net1"]
