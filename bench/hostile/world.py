"""The service with a guest whose replugs are timed, and whatever an attacker is aimed at."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bench.fleet import Fleet
from bench.hostile.attack import QEMU
from bench.procfs import cpu_seconds, read_memory
from bench.served import ServiceProcess
from linkmgr import Client, LinkmgrError
from linkmgr.testing.process import Child, execute, until

__all__ = ["Block", "World", "make_world"]

NOBODY = 65534
NIC = "vm0/net0"
BRIDGES = {"blue": "br-blue", "red": "br-red"}
#: The attacker's own guest is `mine`; everything else is somebody else's.
CONFIG = f"""
[[access.rules]]
user = {NOBODY}
nics = ["mine/*"]
networks = ["blue", "red"]
verbs = ["plug", "unplug", "set_link"]
"""
WARM_UP_S = 0.5  # that an attacker has before the first replug is timed
LIST_INTERVAL_S = 1.0  # between two lists of all NICs, for which the service looks at each QEMU
#: Times as long as the replugs may take: one of them may be held up to the very end.
ATTACK_FACTOR = 3
SETTLE_TRIES, SETTLE_INTERVAL_S = 40, 0.5
SOCKETS = {"fds": "fd.sock", "dials": "qmp.sock"}  # of all others it is the API's
#: Attackers that are root: libvirt's hook hands over what an author of XML wrote.
ROOTS = frozenset({"metadata"})
SLOW = frozenset({"operations"})  # who has a guest of its own that does not answer


@dataclass
class Block:
    """Some replugs during which one attacker did its worst.

    :param replugs: milliseconds of each.
    :param cpu: CPU seconds of the service.
    :param rss: bytes of the service at its largest.
    :param failed: replugs that the service refused or that took too long.
    """

    replugs: list[float] = field(default_factory=list)
    cpu: float = 0.0
    seconds: float = 0.0
    rss: int = 0
    failed: int = 0


@dataclass
class World:
    """What is there; see `make_world`."""

    folder: Path
    service: ServiceProcess
    client: Client
    fleet: Fleet
    output: IO[bytes]
    _children: list[Child] = field(default_factory=list)  # of the block

    async def block(self, attacker: str, count: int, seconds: float, *, sink: bool) -> Block:
        """Replug the guest `count` times, or for `seconds`, while an attacker attacks.

        :param sink: aim it at a sink.
        """
        async with contextlib.AsyncExitStack() as stack:
            ends = time.monotonic() + ATTACK_FACTOR * seconds
            attack = self._attack(attacker, ATTACK_FACTOR * seconds, sink=sink)
            await stack.enter_async_context(attack)
            lister = asyncio.create_task(self._list())
            stack.callback(lister.cancel)
            await asyncio.sleep(WARM_UP_S)
            found = await self._replug(count, seconds)
            ended = any(child.status is not None for child in self._children)
            if ended and time.monotonic() < ends:
                self.output.seek(0)
                said = self.output.read().decode(errors="replace")
                raise RuntimeError(f"{attacker} or its sink ended early: {said[-2000:]}")
            return found

    async def quiet(self, count: int, seconds: float) -> Block:
        """Replug it while nobody attacks."""
        return await self._replug(count, seconds)

    async def settle(self) -> None:
        """Wait until the service has worked off what the last attacker left, if it ever does."""
        for _ in range(SETTLE_TRIES):
            cpu = cpu_seconds(self.service.pid)
            await asyncio.sleep(SETTLE_INTERVAL_S)
            if cpu_seconds(self.service.pid) - cpu < SETTLE_INTERVAL_S / 20:
                return

    async def _replug(self, count: int, seconds: float) -> Block:
        found = Block()
        watch = asyncio.create_task(self._watch_memory(found))
        begun, cpu = time.monotonic(), cpu_seconds(self.service.pid)
        try:
            for number in range(count):
                start = time.monotonic()
                if start - begun > seconds:
                    break
                target = tuple(BRIDGES)[number % 2]
                try:
                    await self.client.plug(NIC, target, notify="silent")
                except LinkmgrError:
                    found.failed += 1
                found.replugs.append((time.monotonic() - start) * 1000)
        finally:
            watch.cancel()
        found.seconds = time.monotonic() - begun
        found.cpu = cpu_seconds(self.service.pid) - cpu
        return found

    async def _watch_memory(self, found: Block) -> None:
        while True:
            found.rss = max(found.rss, read_memory(self.service.pid).rss * 1024)
            await asyncio.sleep(0.2)

    async def _list(self) -> None:
        async with self.service.client() as client:
            while True:
                with contextlib.suppress(LinkmgrError):
                    await client.nics()
                await asyncio.sleep(LIST_INTERVAL_S)

    # --- the attacker and its target --------------------------------------------------------------
    @asynccontextmanager
    async def _attack(self, attacker: str, seconds: float, *, sink: bool) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            if attacker in SLOW:
                self.fleet.signal("vm1", signal.SIGSTOP)
                stack.callback(self.fleet.signal, "vm1", signal.SIGCONT)
            if attacker in QEMU:
                await self._attack_from_qemu(stack, attacker, seconds, sink=sink)
                yield
                return
            kind = "seqpacket" if attacker == "fds" else "stream"
            target = self.service.socket.with_name(SOCKETS.get(attacker, "lm.sock"))
            if sink:
                target = self.folder / "sink.sock"
                target.unlink(missing_ok=True)
                await self._child(stack, "bench.hostile.sink", kind, str(target))
                await until(lambda: _exists(target), timeout=10, what="the sink")
            uid = 0 if attacker in ROOTS else NOBODY
            await self._child(
                stack, "bench.hostile.attack", attacker, str(target), str(uid), str(seconds)
            )
            yield

    async def _attack_from_qemu(
        self, stack: contextlib.AsyncExitStack, attacker: str, seconds: float, *, sink: bool
    ) -> None:
        target = self.folder / "evil.qmp"
        target.unlink(missing_ok=True)
        real = target.with_name("evil.qmp.real")
        if not real.exists():
            real.symlink_to(self.fleet.monitor("vm2"))
        await self._child(stack, "bench.hostile.attack", attacker, str(target), "0", str(seconds))
        await until(lambda: _exists(target), timeout=10, what="the attacker")
        if sink:
            await self._child(stack, "bench.hostile.sink", "dial", str(target))
            return
        adding = asyncio.create_task(self._add(target))
        stack.push_async_callback(self._forget)
        stack.callback(adding.cancel)

    async def _add(self, monitor: Path) -> None:
        """Keep adding the attacker's VM: a service that hangs up on it must hold out, too."""
        async with self.service.client() as client:
            while True:
                with contextlib.suppress(LinkmgrError):
                    await client.add_vm("evil", monitor)
                await asyncio.sleep(LIST_INTERVAL_S)

    async def _forget(self) -> None:
        with contextlib.suppress(LinkmgrError):
            await self.client.remove_vm("evil")

    async def _child(self, stack: contextlib.AsyncExitStack, *words: str) -> None:
        child = Child([sys.executable, "-m", *words], output=self.output)
        self._children.append(child)
        stack.callback(self._children.remove, child)
        stack.push_async_callback(child.end, 0)


async def _exists(path: Path) -> bool:
    return path.exists()


@asynccontextmanager
async def make_world(folder: Path, program: Sequence[str] = ()) -> AsyncIterator[World]:
    """Start three QEMUs, two bridges and the service, and plug the guest.

    :param program: words that start another service than this checkout's ``linkmgr``.
    """
    folder.chmod(0o755)
    async with contextlib.AsyncExitStack() as stack:
        output = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - it is entered
        fleet = await stack.enter_async_context(Fleet(3, folder))
        for bridge in BRIDGES.values():
            await execute(f"ip link add {bridge} type bridge".split())
            stack.push_async_callback(execute, f"ip link del {bridge}".split())
            await execute(f"ip link set {bridge} up".split())
        served = ServiceProcess(folder, config=CONFIG, program=program)
        service = await stack.enter_async_context(served)
        for path in (service.socket, service.socket.with_name("fd.sock")):
            os.chmod(path, 0o666)  # noqa: PTH101 - a socket
        client = await stack.enter_async_context(service.client())
        for network, bridge in BRIDGES.items():
            await client.create_network(network, "bridge", bridge=bridge)
        await client.add_vm("vm0", fleet.monitor("vm0"))
        await client.add_vm("mine", fleet.monitor("vm1"))
        await client.plug(NIC, "red", notify="silent")
        yield World(folder, service, client, fleet, output)
