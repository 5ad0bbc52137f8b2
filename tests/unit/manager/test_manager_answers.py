"""What `LinkManager` says of calls that cannot be, and of what it was told to forget."""

from __future__ import annotations

from typing import Any

import pytest

from linkmgr.errors import BadOption, BadRequest
from linkmgr.events import EventKind
from linkmgr.manager.manager import LinkManager


async def test_a_manager_that_is_closed_says_so_whatever_it_is_asked() -> None:
    async with LinkManager() as links:
        pass
    for call in (
        links.add_vm("web1", "/run/web1.qmp"),
        links.plug("web1/net0", "blue"),
        links.unplug("web1/net0"),
        links.set_link("web1/net0", "down"),
        links.nic("web1/net0"),
    ):
        with pytest.raises(BadRequest) as caught:
            await call
        assert str(caught.value) == "this LinkManager is closed. To do: enter a new one"


@pytest.mark.parametrize("qmp", [None, ""])
async def test_a_vm_without_a_monitor_is_refused_in_a_sentence(qmp: Any) -> None:
    async with LinkManager() as links:
        with pytest.raises(BadOption, match="is not the address of a monitor"):
            await links.add_vm("web1", qmp)


async def test_a_word_that_is_none_of_the_choices_is_answered_with_them() -> None:
    async with LinkManager() as links:
        with pytest.raises(BadOption) as caught:
            await links.set_link("web1/net0", "sideways")
        assert str(caught.value) == "'sideways' is not a link state. To do: give up or down"
        with pytest.raises(BadOption, match=r"is not a way to notify.*flap, announce or silent"):
            await links.plug("web1/net0", "blue", notify="x")
        with pytest.raises(BadOption, match=r"'x' is not a policy for drift.*repair or report"):
            await links.create_network("blue", "bridge", bridge="br0", drift="x")


async def test_who_listens_hears_of_networks_and_ports_that_come_and_go() -> None:
    async with LinkManager() as links:
        events = links.events()
        for _ in range(2):
            await links.create_network("blue", "bridge", bridge="lmnone")
            await links.create_port("blue", "p1")
        assert await links.delete_port("blue", "p1")
        assert await links.delete_network("blue")
        assert not await links.delete_network("blue")
    heard = [(each.kind, each.subject) async for each in events]
    assert heard == [
        (EventKind.NETWORK_ADDED, "blue"),
        (EventKind.PORT_ADDED, "blue:p1"),
        (EventKind.PORT_REMOVED, "blue:p1"),
        (EventKind.NETWORK_REMOVED, "blue"),
    ]
