"""Probe of the host's firewall: whether bridged frames meet a forward chain that drops them."""

from __future__ import annotations

import asyncio
import errno
import shutil
from pathlib import Path

from linkmgr.doctor.result import ProbeResult, Verdict, run_program
from linkmgr.host.netfilter import passes_forward_chains, read_drop_chains
from linkmgr.reconcile.firewall import describe_drop_chain

_AREA, _NAME = "network", "bridged frames"
_OLD_TABLES = Path("/proc/net/ip_tables_names")  # of the iptables before nf_tables


async def forwarding() -> list[ProbeResult]:
    """Look at the forward chains of nf_tables and of the old iptables."""
    results = [await asyncio.to_thread(_of_nf_tables), *await _of_old_iptables()]
    return [result for result in results if result.verdict is not Verdict.WORKS] or results[:1]


def _of_nf_tables() -> ProbeResult:
    try:
        chains = read_drop_chains()
    except OSError as error:
        if error.errno == errno.EPERM:
            return ProbeResult(
                _AREA, _NAME, Verdict.UNKNOWN, "only root sees the firewall", "ask as root"
            )
        what = f"nf_tables does not say: {error.strerror or error}"
        return ProbeResult(_AREA, _NAME, Verdict.UNKNOWN, what)
    for chain in chains:
        if passes_forward_chains(chain.family) and not chain.mentions():
            return ProbeResult(_AREA, _NAME, Verdict.MISSING, *describe_drop_chain(chain))
    if passes_forward_chains("inet"):
        what = "pass the firewall (br_netfilter), which drops none of them by its policy"
    else:
        what = "do not pass the firewall"
    return ProbeResult(_AREA, _NAME, Verdict.WORKS, what)


async def _of_old_iptables() -> list[ProbeResult]:
    try:
        tables = _OLD_TABLES.read_text(encoding="ascii").split()
    except OSError:  # not root's, or there are none
        return []
    if "filter" not in tables or not passes_forward_chains("ip"):
        return []
    program = shutil.which("iptables-legacy")
    if program is None:
        what = "pass the FORWARD chain of the old iptables, which only iptables-legacy can show"
        return [
            ProbeResult(_AREA, _NAME, Verdict.UNKNOWN, what, "see 'iptables-legacy -S FORWARD'")
        ]
    status, said = await run_program([program, "-w", "2", "-S", "FORWARD"])
    if status or "-P FORWARD DROP" not in said or "physdev" in said:
        return []
    what = (
        "IPv4 between the ports of a bridge is dropped unless a rule accepts it: br_netfilter "
        "hands it to chain FORWARD of the old iptables, whose policy is drop"
    )
    todo = "run 'iptables-legacy -I FORWARD -i BRIDGE -o BRIDGE -j ACCEPT'"
    return [ProbeResult(_AREA, _NAME, Verdict.MISSING, what, todo)]
