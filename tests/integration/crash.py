"""A linkmgr of its own process, that kills itself; see `forks`. Its words are those of `_main`.

It does one verb and ends by SIGKILL where it was told, and writes down where that was. Instead of a
step it can be a place inside the steps: a number means after so many answers of QEMU to the verb,
`CROSSED` when the kernel has switched and QEMU not yet, ``netlink-N`` after so many sends to the
kernel, `NODE` when the device node of a macvtap was made.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linkmgr import LinkManager
from linkmgr.errors import CommandFailed
from linkmgr.host import Host
from linkmgr.host.devices import macvtap
from linkmgr.host.netlink.changes import NetlinkRequest, Rtnl
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.hypervisors.qemu.qmp import Monitor, QmpCommand
from linkmgr.hypervisors.qemu.qmp.transport import QmpTransport
from linkmgr.swap.steps import Step
from tests.integration.forks import fork_each

DIE = "die"  #: as a step: after the verb
CROSSED = "crossed"
NODE = "node"
NETLINK = "netlink-"
STAY = 0  #: how it ends when there was no such place


def kill_after(answers: int, note: Path) -> None:
    """Kill this process after so many answers of QEMU."""
    left = answers
    execute = QmpTransport.execute

    async def counted(self: QmpTransport, name: str, arguments: Mapping[str, object]) -> Any:
        nonlocal left
        try:
            return await execute(self, name, arguments)
        finally:
            left -= 1
            if left == 0:
                die(note, f"{answers} {name}")

    async def one_by_one(
        self: Monitor, commands: Sequence[QmpCommand], *, timeout: float | None = None
    ) -> list[object | CommandFailed]:
        """So that it can be killed between two commands of the switch."""
        answers: list[object | CommandFailed] = []
        for each in commands:
            try:
                answers.append(await self.execute(each.name, each.arguments, timeout=timeout))
            except CommandFailed as error:
                answers.append(error)
        return answers

    QmpTransport.execute = counted  # type: ignore[method-assign]  # replaced on purpose
    Monitor.batch = one_by_one  # type: ignore[method-assign]  # replaced on purpose


def kill_after_the_crossing(note: Path) -> None:
    """Kill this process between the kernel's part of a switch and QEMU's."""
    switch = Host.switch_bridge_ports

    async def last(self: Host, *args: Any, **options: Any) -> None:
        await switch(self, *args, **options)
        die(note, CROSSED)

    Host.switch_bridge_ports = last  # type: ignore[method-assign, assignment]


def kill_after_a_send(number: int, note: Path) -> None:
    """Kill this process after so many sends of changes to the kernel."""
    left = number
    attempt = Rtnl._send_batch

    def counted(self: Rtnl, requests: Sequence[NetlinkRequest]) -> list[KernelRefused | None]:
        nonlocal left
        results = attempt(self, requests)
        left -= 1
        if left == 0:
            die(note, f"{NETLINK}{number} {requests[0].action}")
        return results

    Rtnl._send_batch = counted  # type: ignore[method-assign]  # replaced on purpose


def kill_at_the_node(note: Path) -> None:
    """Kill this process when it has made a device node of its own; the kernel's is not there."""
    mknod = os.mknod
    macvtap._DEV = note.with_name("dev")

    def last(*args: Any, **options: Any) -> None:
        mknod(*args, **options)
        die(note, NODE)

    os.mknod = last


def die(note: Path, where: str) -> None:
    """End at once, as kill -9 does it."""
    note.write_text(where)
    os.kill(os.getpid(), signal.SIGKILL)


async def _main(state: str, where: str, vm: str, qmp: str, verb: str, *words: str) -> None:
    note = Path(state).with_name("killed-at")
    note.unlink(missing_ok=True)

    async def probe(begun: Step) -> None:
        if begun.value == where:
            die(note, where)

    async with LinkManager(state=state, probe=probe) as links:
        if vm not in {known.name for known in await links.vms()}:
            await links.add_vm(vm, qmp)
        if where.isdecimal():
            kill_after(int(where), note)
        if where == CROSSED:
            kill_after_the_crossing(note)
        if where == NODE:
            kill_at_the_node(note)
        if where.startswith(NETLINK):
            kill_after_a_send(int(where.removeprefix(NETLINK)), note)
        match verb:
            case "plug":
                await links.plug(words[0], words[1])
            case "unplug":
                await links.unplug(words[0])
            case "none":
                pass
        if where == DIE:
            die(note, where)
        os._exit(STAY)  # closing would talk to QEMU


if __name__ == "__main__":
    fork_each(int(sys.argv[1]), lambda words: asyncio.run(_main(*words)))
