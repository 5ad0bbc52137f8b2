"""A name that does not exist is answered with what was meant, else with some that there are."""

from __future__ import annotations

import time

import pytest

from linkmgr.errors import BadOption, LinkmgrError, NotFound
from linkmgr.manager.manager import LinkManager
from linkmgr.model import NotifyMode, parse_choice
from linkmgr.text.suggest import NAMES_SHOWN_MAX, close_matches, hint_for_unknown, join_names


def test_the_closest_names_are_meant() -> None:
    assert close_matches("bleu", ["green", "blue", "black"]) == ["blue"]
    assert close_matches("WEB1", ["web1", "db"]) == ["web1"]
    assert close_matches("zzz", ["green", "blue"]) == []
    assert close_matches("on", ["up", "down"]) == []
    assert hint_for_unknown("bleu", ["blue", "red"], "the networks are", "create it first") == (
        "did you mean blue? Else create it first; the networks are: blue, red"
    )
    assert hint_for_unknown("net12", ["net1", "net2"], "its NICs are") == (
        "did you mean net2 or net1? Its NICs are: net1, net2"
    )
    assert hint_for_unknown("x", ["blue", "red"], "the networks are", "create it first") == (
        "create it first; the networks are: blue, red"
    )
    assert (
        hint_for_unknown("x", [], "the VMs are", "add it first")
        == "add it first; the VMs are: none"
    )


def test_many_names_are_a_few_and_a_number() -> None:
    names = [f"net{number:03}" for number in range(400)]
    assert join_names(names) == ", ".join(names[:NAMES_SHOWN_MAX]) + " and 392 more"
    assert close_matches("bleu", [*names, "blue"]) == ["blue"]


def test_a_long_word_and_many_names_cost_little() -> None:
    names = [f"{'ab' * 26}{number:06}" for number in range(50_000)]
    began = time.process_time()
    close_matches("ba" * 5000, names)
    assert time.process_time() - began < 0.5


async def test_an_error_of_the_manager_stays_short_with_400_networks() -> None:
    async with LinkManager() as links:
        for number in range(400):
            await links.create_network(f"net{number:03}", "bridge", bridge="lmnone")
        with pytest.raises(NotFound) as raised:
            await links.ports("blue")
        assert len(str(raised.value)) < 300
        with pytest.raises(NotFound, match=r"did you mean net\d07, net\d07 or net\d07\?"):
            await links.ports("net07")


async def test_drivers_options_and_their_values_are_suggested() -> None:
    async with LinkManager() as links:
        with pytest.raises(BadOption, match=r"there is no network driver 'brige'.*mean bridge\?"):
            await links.create_network("blue", "brige", bridge="br0")
        with pytest.raises(BadOption, match=r"has no option 'bride'.*did you mean bridge\?"):
            await links.create_network("blue", "bridge", bride="br0")
        with pytest.raises(BadOption, match=r"cannot be 'brige'.*did you mean bridge\?"):
            await links.create_network("blue", "direct", parent="eth1", mode="brige")


def test_a_choice_is_suggested() -> None:
    with pytest.raises(BadOption, match=r"To do: did you mean flap\? Else give auto, flap, "):
        parse_choice(NotifyMode, "flip", "way to notify")


async def test_what_exists_with_other_properties_is_told_as_it_is_typed() -> None:
    async with LinkManager() as links:
        await links.create_network("blue", "bridge", bridge="br0", create=True)
        await links.create_port("blue", "p1", isolated=True)
        with pytest.raises(LinkmgrError) as raised:
            await links.create_network("blue", "bridge", bridge="br1")
        assert raised.value.what == (
            "network blue exists with other properties: driver bridge, drift repair, "
            "bridge=br0 create=true"
        )
        with pytest.raises(LinkmgrError, match="with other options: isolated=true"):
            await links.create_port("blue", "p1")


def test_an_error_inside_another_one_says_once_that_there_is_something_to_do() -> None:
    inner = LinkmgrError("it is away", hint="wait")
    outer = LinkmgrError(f"nothing is known: {inner}", hint="ask again")
    assert str(outer) == "nothing is known: it is away. To do: wait; ask again"
