"""A linkmgr of its own process, that kills itself: ``python -m tests.integration.crash STATE ...``.

It does one verb and ends by SIGKILL before the step that it was told, or after the verb.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from linkmgr import LinkManager
from linkmgr.swap import Step

DIE = "die"  #: as a step: after the verb
STAY = 0  #: how it ends when the step was not reached


async def _main(state: str, step: str, vm: str, qmp: str, verb: str, *words: str) -> None:
    async def probe(begun: Step) -> None:
        if begun.value == step:
            os.kill(os.getpid(), signal.SIGKILL)

    async with LinkManager(state=state, probe=probe) as links:
        if vm not in {known.name for known in await links.vms()}:
            await links.add_vm(vm, qmp)
        match verb:
            case "plug":
                await links.plug(words[0], words[1])
            case "unplug":
                await links.unplug(words[0])
            case "none":
                pass
        if step == DIE:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
