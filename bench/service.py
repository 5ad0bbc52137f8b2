"""The service with 200 VMs: how long a start takes, what it costs to wait, how fast it answers.

The VMs are QEMUs that stay stopped, half of them plugged into one bridge. A start is that of a
service that was killed: from the start of its process, Python's own included, until it has answered
and knows all NICs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.fleet import Fleet
from bench.procfs import Memory, cpu_seconds, read_memory
from bench.served import ServiceProcess
from bench.stats import spread
from linkmgr import Client, NicState
from linkmgr.testing.process import execute

__all__ = ["OPS", "VMS", "ServiceEffort", "ServiceFigures", "measure_service"]

VMS = 200
CLIENTS = 8
OPS = ("plug", "unplug", "read one NIC", "read all NICs")
_NETWORK, _BRIDGE = "blue", "br-fleet"


@dataclass(frozen=True)
class ServiceEffort:
    """How often each thing is measured.

    :param window: seconds of waiting, of which there are `windows`.
    :param rounds: of each client: it plugs, reads and unplugs once in each.
    """

    starts: int
    windows: int
    window: float
    rounds: int

    @property
    def ticks(self) -> int:
        """How often the progress moves."""
        return self.starts + self.windows + CLIENTS * self.rounds


@dataclass
class ServiceFigures:
    """What was found. Times in seconds unless they say ms; CPU times do not depend on others' load.

    :param add: of adding one VM, per VM.
    :param latencies: milliseconds of each request, by kind.
    """

    add: float = 0.0
    starts: list[float] = field(default_factory=list)
    start_cpu: list[float] = field(default_factory=list)
    idle_percent: list[float] = field(default_factory=list)
    memory: dict[str, Memory] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=lambda: {op: [] for op in OPS})
    load: list[float] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Return it for bench.json; memory in MB of 10^6 bytes."""
        settled = self.memory["idle"]
        return {
            "vms": VMS,
            "start_200_s": round(median(self.starts), 3),
            "start_200_cpu_s": round(median(self.start_cpu), 3),
            "idle_cpu_percent": round(max(self.idle_percent), 3),
            "rss_mb": _mb(settled.rss),
            "pss_mb": _mb(settled.pss),
            "memory_mb": {
                when: {"rss": _mb(memory.rss), "pss": _mb(memory.pss)}
                for when, memory in self.memory.items()
            },
            "add_ms": round(self.add * 1000, 2),
            "clients": CLIENTS,
            "latency_ms": {op: spread(ms).rounded() for op, ms in self.latencies.items()},
            "load": [round(each, 2) for each in self.load],
        }


async def measure_service(
    workdir: Path, effort: ServiceEffort, tick: Callable[[], None]
) -> ServiceFigures:
    """Start the fleet and the service, and measure."""
    found = ServiceFigures()
    async with Fleet(VMS, workdir) as fleet, _bridge(), ServiceProcess(workdir) as service:
        async with service.client() as client:
            await client.create_network(_NETWORK, "bridge", bridge=_BRIDGE)
            begun = time.monotonic()
            for name in fleet.names:
                await client.add_vm(name, fleet.monitor(name))
            found.add = (time.monotonic() - begun) / VMS
            for name in fleet.names[::2]:
                await client.plug(f"{name}/net0", _NETWORK)
        for _ in range(effort.starts):
            await _start_again(service, found)
            tick()
        found.memory["started"] = read_memory(service.pid)
        for _ in range(effort.windows):
            used = cpu_seconds(service.pid)
            await asyncio.sleep(effort.window)
            used = cpu_seconds(service.pid) - used
            found.idle_percent.append(100 * used / effort.window)
            tick()
        found.memory["idle"] = read_memory(service.pid)
        found.load = list(os.getloadavg())
        await _ask(service, fleet.names[1::2], effort.rounds, found, tick)
        found.memory["after the requests"] = read_memory(service.pid)
    return found


async def _start_again(service: ServiceProcess, found: ServiceFigures) -> None:
    await service.stop(signal.SIGKILL)
    begun = time.monotonic()
    await service.start()
    async with service.client() as client:
        states = Counter(nic.state for nic in await client.nics())
    found.starts.append(time.monotonic() - begun)
    found.start_cpu.append(cpu_seconds(service.pid))
    if states != {NicState.PLUGGED: VMS // 2, NicState.UNPLUGGED: VMS - VMS // 2}:
        raise RuntimeError(f"after a start the NICs are {dict(states)}: {service.said()[-2000:]}")


async def _ask(
    service: ServiceProcess,
    names: list[str],
    rounds: int,
    found: ServiceFigures,
    tick: Callable[[], None],
) -> None:
    """Let all clients ask at once, each for VMs of its own, as fast as they are answered."""

    async def timed(op: str, request: Awaitable[object]) -> None:
        begun = time.monotonic()
        await request
        found.latencies[op].append((time.monotonic() - begun) * 1000)

    async def ask(client: Client, own: list[str]) -> None:
        for number in range(rounds):
            nic = f"{own[number % len(own)]}/net0"
            await timed("plug", client.plug(nic, _NETWORK, notify="silent"))
            await timed("read one NIC", client.nic(nic))
            await timed("unplug", client.unplug(nic))
            if number % 4 == 0:
                await timed("read all NICs", client.nics())
            tick()

    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            client = await stack.enter_async_context(service.client())
            group.create_task(ask(client, names[number::CLIENTS]))


@asynccontextmanager
async def _bridge() -> AsyncIterator[None]:
    await execute(f"ip link add {_BRIDGE} type bridge".split())
    try:
        await execute(f"ip link set {_BRIDGE} up".split())
        yield
    finally:
        await execute(f"ip link del {_BRIDGE}".split())


def _mb(kib: int) -> float:
    return round(kib * 1024 / 1e6, 1)
