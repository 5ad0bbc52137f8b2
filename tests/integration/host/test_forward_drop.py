"""A firewall that drops what bridges forward: a guest is cut off, and it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2.nftables.expressions import genex, verdict
from pyroute2.nftables.main import NFTables

from linkmgr import doctor
from linkmgr.doctor import Verdict
from linkmgr.host.netfilter import read_drop_chains
from linkmgr.model import Finding
from tests.integration.lab import Lab, make_lab

IP, BRIDGE = 2, 7  # NFPROTO_*
DROP, ACCEPT = 0, 1
IIFNAME = 6  # NFT_META_IIFNAME
SWITCH = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    if not SWITCH.exists():
        pytest.skip("this kernel has no br_netfilter")
    before = SWITCH.read_text()
    SWITCH.write_text("1")
    try:
        async with make_lab(tmp_path) as made:
            yield made
    finally:
        SWITCH.write_text(before)
        await asyncio.to_thread(_no_tables)


def _no_tables() -> None:
    for family in (IP, BRIDGE):
        with NFTables(nfgen_family=family) as tables:
            for each in tables.get_tables():
                if each["nfgen_family"] == family:
                    tables.table("del", name=each.get_attr("NFTA_TABLE_NAME"))


async def chain(family: int = IP, policy: int = DROP) -> None:
    """Make a base chain; in a thread, for pyroute2's own event loop."""
    await asyncio.to_thread(_chain, family, policy)


async def rule(*expressions: Any, family: int = IP) -> None:
    await asyncio.to_thread(_rule, expressions, family)


def _chain(family: int, policy: int) -> None:
    with NFTables(nfgen_family=family) as tables:
        tables.table("add", name="filter")
        tables.chain(
            "add", table="filter", name="FORWARD", type="filter", hook="forward",
            policy=policy, priority=0,
        )  # fmt: skip


def _rule(expressions: tuple[Any, ...], family: int) -> None:
    with NFTables(nfgen_family=family) as tables:
        tables.rule("add", table="filter", chain="FORWARD", expressions=(expressions,))


def from_device(name: str) -> list[Any]:
    data = {"attrs": [("NFTA_DATA_VALUE", name.encode().ljust(16, b"\0"))]}
    return [
        genex("meta", {"key": IIFNAME, "dreg": 1}),
        genex("cmp", {"sreg": 1, "op": 0, "data": data}),
    ]


async def of_firewall(lab: Lab) -> list[Finding]:
    return [each for each in await lab.links.check() if each.code == "bridge-filtered"]


async def received(lab: Lab) -> bool:
    return (await lab.guests["web1"].ping("10.1.0.1", count=3)).received > 0


async def test_a_guest_that_a_forward_policy_cuts_off_is_told_of_until_it_is_accepted(
    lab: Lab,
) -> None:
    await lab.network("blue")
    await lab.guest(cmdline="lm.ip.eth0=10.1.0.2/24")
    await lab.links.plug("web1/net0", "blue")
    assert await received(lab)
    assert await of_firewall(lab) == []

    await chain()
    assert not await received(lab)
    (finding,) = await of_firewall(lab)
    assert finding.subject == "network:blue"
    assert "IPv4 between the ports of bridge br-blue is dropped" in finding.what
    assert "chain FORWARD of table ip filter" in finding.what
    assert "'iptables -I FORWARD -i br-blue -o br-blue -j ACCEPT'" in finding.hint
    assert "bridge-nf-call-iptables=0" in finding.hint
    (line,) = await doctor.forwarding()
    assert line.verdict is Verdict.MISSING
    assert "chain FORWARD of table ip filter" in line.what

    SWITCH.write_text("0")
    assert await received(lab)
    assert await of_firewall(lab) == []
    SWITCH.write_text("1")
    await rule(*from_device("br-blue"), *verdict(ACCEPT))
    assert await received(lab)
    assert await of_firewall(lab) == []


async def test_a_chain_of_the_bridge_family_drops_without_br_netfilter(lab: Lab) -> None:
    SWITCH.write_text("0")
    await lab.network("blue")
    await lab.guest(cmdline="lm.ip.eth0=10.1.0.2/24")
    await lab.links.plug("web1/net0", "blue")
    await chain(BRIDGE)
    assert not await received(lab)
    (finding,) = await of_firewall(lab)
    assert finding.what.startswith("everything between the ports of bridge br-blue is dropped")
    assert finding.hint == "run 'nft insert rule bridge filter FORWARD accept'"


async def test_what_no_nic_is_plugged_into_is_nobodys_trouble(lab: Lab) -> None:
    await lab.network("blue")
    await lab.network("green")
    await chain()
    await lab.guest(boot=False)
    assert await of_firewall(lab) == []
    await lab.links.plug("web1/net0", "green")  # a macvtap passes no bridge
    assert await of_firewall(lab) == []


@pytest.mark.parametrize(
    ("policy", "rules", "drops"),
    [
        (DROP, [], True),
        (ACCEPT, [], False),
        (DROP, [verdict(ACCEPT)], False),
        (ACCEPT, [verdict(DROP)], True),
        (DROP, [[*from_device("eth9"), *verdict(ACCEPT)]], True),
        (ACCEPT, [[*from_device("eth9"), *verdict(DROP)]], False),
        (DROP, [[*from_device("eth9"), *verdict(DROP)], verdict(ACCEPT)], False),
    ],
)
async def test_what_a_chain_does_at_its_end_counts(
    lab: Lab, policy: int, rules: list[list[Any]], drops: bool
) -> None:
    await chain(policy=policy)
    for each in rules:
        await rule(*each)
    assert bool(read_drop_chains()) is drops
