"""The story of the RFC of October 2011: a guest boots with no cable, and gets one at run time.

Two networks, blue (a bridge) and green (reached through macvtap), each with a peer that leases
addresses. Everything runs in a network namespace of its own, so nothing outlives the demo.

Writes build/demo.json: ``{"ok": true, "seconds": ..., "qemu": ..., "steps": [{"name", "ms",
"result"}, ...]}``. ``ms`` is the time of the step as it was measured, ``result`` what was seen;
steps with traffic have ``lost`` and ``sent`` too. On a failure ``ok`` is false and ``error`` says
why.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from linkmgr import LinkManager, hub_args
from linkmgr.testing import Guest, NetnsPeer, enter_sandbox

NIC = "web1/net0"
MAC = "52:54:00:12:00:01"
REPORT = Path("build/demo.json")


class Timeline:
    """Prints each step with the time that it took, and keeps it for the report."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.start = time.monotonic()
        self.steps: list[dict[str, Any]] = []

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """Time a step; the body fills in ``result``, and ``ms`` if it knows better."""
        step: dict[str, Any] = {"name": name}
        began = time.perf_counter()
        with self.console.status(f"[dim]{name} ..."):
            yield step
        step.setdefault("ms", round((time.perf_counter() - began) * 1000, 1))
        self.steps.append(step)
        at = time.monotonic() - self.start
        self.console.print(
            f"[dim]{at:6.1f} s[/]  {name:<50} [bold cyan]{step['ms']:>8.1f} ms[/]\n"
            f"          [green]{step.get('result', '')}[/]",
            highlight=False,
        )


def expect(truth: object, sentence: str) -> None:
    """Stop the demo when what it claims is not so."""
    if not truth:
        raise AssertionError(f"this should be so, but is not: {sentence}")


def sh(command: str) -> list[str]:
    """Split a command line."""
    return shlex.split(command)


async def run(command: str) -> None:
    """Run a command on the host side."""
    process = await asyncio.create_subprocess_exec(*sh(command))
    expect(await process.wait() == 0, command)


async def story(line: Timeline, workdir: Path) -> None:
    """Tell it, from an empty host to an empty host."""
    # Whoever is at the other end of the cable answers to fe80::1.
    blue = NetnsPeer("blue", "v-blue", addresses=["10.1.0.1/24", "fe80::1/64"],
                dhcp_range=("10.1.0.50", "10.1.0.99"))  # fmt: skip
    green = NetnsPeer("green", "v-green", addresses=["10.2.0.1/24", "fe80::1/64"],
                 dhcp_range=("10.2.0.50", "10.2.0.99"))  # fmt: skip
    guest = Guest("web1", nic_args=hub_args("net0", mac=MAC), workdir=workdir,
                  cmdline="lm.dhcp=eth0", paused=True)  # fmt: skip
    async with blue, green, LinkManager() as manager:
        async with line.step("two networks, each with a DHCP server") as step:
            await run("ip link add br-blue type bridge")
            await run("ip link set br-blue up")
            await run("ip link set v-blue master br-blue")
            await manager.create_network("blue", "bridge", bridge="br-blue")
            await manager.create_network("green", "direct", parent="v-green")
            step["result"] = "blue is a bridge, green a macvtap parent"
        async with guest:
            async with line.step("a guest is started, paused; its NIC goes down") as step:
                (nic,) = await manager.add_vm("web1", guest.qmp_path)
                step["result"] = f"{nic.ref} is {nic.describe()}, link {nic.link}"
            async with line.step("it boots with no cable") as step:
                await guest.cont()
                await guest.wait_boot()
                expect(not await guest.carrier("eth0"), "no carrier without a cable")
                ifindex = await guest.ifindex("eth0")
                step["result"] = f"eth0 is there (ifindex {ifindex}), carrier 0"
            await the_cable(line, manager, guest, ifindex)
            async with line.step("the guest is destroyed") as step:
                await guest.stop()
                step["result"] = "QEMU has ended"
        await run("ip link del br-blue")
        left = {path.name for path in Path("/sys/class/net").iterdir()} - {
            "lo",
            "v-blue",
            "v-green",
        }
        expect(not left, f"no device is left behind, not {left}")


async def the_cable(line: Timeline, manager: LinkManager, guest: Guest, ifindex: int) -> None:
    """Plug, swap, link down and up, unplug: one NIC, which stays the same device."""
    async with line.step("plug into blue: the cable") as step:
        outcome = await manager.plug(NIC, "blue")
        step["ms"] = round(sum(outcome.timings.values()), 1)
        step["result"] = outcome.nic.describe()
    async with line.step("... the guest sees a carrier and asks for a lease") as step:
        await guest.wait_carrier("eth0", True)
        step["result"] = f"lease {await guest.wait_ipv4('eth0', '10.1.0.')}"
    async with line.step("... and reaches blue") as step:
        await reach(step, guest, "10.1.0.1")

    async with line.step("swap to green while a ping runs") as step:
        pinging = asyncio.create_task(guest.ping("fe80::1%eth0", count=60, interval=0.05))
        await asyncio.sleep(1)
        outcome = await manager.plug(NIC, "green")
        switch = outcome.timings["switch"]
        step["ms"] = round(sum(outcome.timings.values()), 1)
        ping = await pinging
        expect(ping.received > 0, "the ping goes on after the swap")
        step.update(lost=ping.lost, sent=ping.sent, switch_ms=round(switch, 2))
        step["result"] = f"switched in {switch:.2f} ms, {ping.lost} of {ping.sent} pings lost"
    async with line.step("... same device, new lease") as step:
        address = await guest.wait_ipv4("eth0", "10.2.0.")
        expect(await guest.ifindex("eth0") == ifindex, "the NIC is the same device")
        step["result"] = f"still ifindex {ifindex}, lease {address}"
    async with line.step("... green is reachable") as step:
        await reach(step, guest, "10.2.0.1")
    async with line.step("... and blue is not") as step:
        ping = await guest.ping("10.1.0.1", count=2)
        expect(ping.received == 0, "blue is out of reach")
        step.update(lost=ping.lost, sent=ping.sent, result="no answer from 10.1.0.1")

    async with line.step("link down, still plugged") as step:
        outcome = await manager.set_link(NIC, "down")
        await guest.wait_carrier("eth0", False)
        step["result"] = outcome.nic.describe()
    async with line.step("link up") as step:
        await manager.set_link(NIC, "up")
        await guest.wait_carrier("eth0", True)
        step["result"] = f"lease {await guest.wait_ipv4('eth0', '10.2.0.')}"
    async with line.step("unplug") as step:
        outcome = await manager.unplug(NIC)
        await guest.wait_carrier("eth0", False)
        expect(not await manager.connections(), "no connection is left")
        step["result"] = f"{outcome.nic.describe()}, carrier 0"


async def reach(step: dict[str, Any], guest: Guest, address: str) -> None:
    """Ping a neighbour that must answer."""
    ping = await guest.ping(address, count=5)
    expect(ping.received > 0, f"{address} answers")
    step.update(lost=ping.lost, sent=ping.sent)
    step["result"] = f"{address} answered {ping.received} of {ping.sent}"


async def main() -> int:
    """Run the story and write the report."""
    console = Console()
    line = Timeline(console)
    report: dict[str, Any] = {"ok": True}
    console.print("[bold]A guest gets its cable at run time[/]\n")
    with tempfile.TemporaryDirectory(prefix="linkmgr-demo-") as workdir:
        try:
            await story(line, Path(workdir))
        except Exception as error:  # noqa: BLE001 - whatever it is goes into the report
            report = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    report["seconds"] = round(time.monotonic() - line.start, 1)
    report["steps"] = line.steps
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    if not report["ok"]:
        console.print(f"\n[bold red]failed:[/] {report['error']}")
        return 1
    console.print(f"\n[bold]done[/] in {report['seconds']} s; the same in {REPORT}")
    return 0


if __name__ == "__main__":
    enter_sandbox()
    sys.exit(asyncio.run(main()))
