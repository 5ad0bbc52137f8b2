"""Findings about firewalls: bridges whose frames meet a forward chain that drops them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from linkmgr.aio.threads import run_in_thread
from linkmgr.host.netfilter import DropChain, passes_forward_chains, read_drop_chains
from linkmgr.model import Finding
from linkmgr.text.untrusted import shell_word

_WHAT = {"ip": "IPv4", "ip6": "IPv6", "inet": "IPv4 and IPv6", "bridge": "everything"}


async def find_filtered_bridges(bridges: Mapping[str, Collection[str]]) -> list[Finding]:
    """Compare the host's forward chains with the bridges that NICs are plugged into.

    :param bridges: the networks on each.
    :return: none where the kernel does not say.
    """
    if not bridges:
        return []
    try:
        return await run_in_thread(_look, bridges)
    except OSError:  # no nf_tables, or no right to read it
        return []


def _look(bridges: Mapping[str, Collection[str]]) -> list[Finding]:
    chains = read_drop_chains()
    return [
        Finding("bridge-filtered", f"network:{network}", *describe_drop_chain(chain, bridge))
        for bridge, networks in sorted(bridges.items())
        for chain in chains
        if passes_forward_chains(chain.family, bridge) and not chain.mentions(bridge)
        for network in sorted(networks)
    ]


def describe_drop_chain(chain: DropChain, bridge: str | None = None) -> tuple[str, str]:
    """What a chain does to a bridge, or to bridges in general, and what to do about it."""
    kind = _WHAT[chain.family]
    where = f"ports of bridge {bridge}" if bridge else "ports of a bridge"
    by = "" if chain.family == "bridge" else "br_netfilter hands it to "
    what = (
        f"{kind} between the {where} is dropped unless a rule accepts it: {by}{chain}, which "
        f"drops the rest, and no rule names {'the bridge' if bridge else 'bridges'}"
    )
    name = shell_word(bridge or "BRIDGE")
    place = f"{shell_word(chain.table)} {shell_word(chain.chain)}"
    if chain.family == "bridge":
        return what, f"run 'nft insert rule bridge {place} accept'"
    if chain.family == "inet":
        return what, (f"run 'nft insert rule inet {place} iifname {name} oifname {name} accept'")
    program = "iptables" if chain.family == "ip" else "ip6tables"
    first = f"'{program} -I {{}} -i {name} -o {name} -j ACCEPT'"
    docker = " (with Docker into DOCKER-USER)" if chain.family == "ip" else ""
    off = f"'sysctl net.bridge.bridge-nf-call-{program}=0' if nothing is to filter bridges"
    return what, f"run {first.format(shell_word(chain.chain))}{docker}, or {off}"
