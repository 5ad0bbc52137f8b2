"""`linkmgr` that dies or waits where a test wants it to: ``NOTE PROGRAM ...``.

NOTE is a file: ``die WHERE`` ends the service as kill -9 does, and ``hold WHERE`` keeps it there
until the file is gone. WHERE is a step of a swap, or ``hook OPERATION``: when libvirt's hook is
heard with that. The file is renamed to ``NOTE.reached`` when the service dies, and copied there
when it waits.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

from linkmgr.cli import main
from linkmgr.libvirt.domains.controller import DomainController
from linkmgr.libvirt.domains.hook_handler import HookAnswer
from linkmgr.manager.manager import LinkManager
from linkmgr.service import main as service
from linkmgr.swap.steps import Step

ROOT = Path(__file__).parents[2]


def reached(note: Path) -> Path:
    """The file that is there when the service has got to where it was wanted."""
    return note.with_suffix(".reached")


def command(note: Path) -> tuple[str, ...]:
    """Words before the service's own, for `bench.served.ServiceProcess`."""
    return ("env", f"PYTHONPATH={ROOT}", sys.executable, "-m", __name__, str(note))


async def _pass(note: Path, where: str) -> None:
    try:
        what, _, wanted = note.read_text().partition(" ")
    except FileNotFoundError:
        return
    if wanted != where:
        return
    if what == "die":
        note.rename(reached(note))
        os.kill(os.getpid(), signal.SIGKILL)
    shutil.copy(note, reached(note))
    while note.exists():  # noqa: ASYNC110 - another process removes it
        await asyncio.sleep(0.01)


def arm(note: Path) -> None:
    """Make the service of this process one that dies, or waits, as the note says."""

    async def probe(step: Step) -> None:
        await _pass(note, step.value)

    service.LinkManager = partial(LinkManager, probe=probe)  # type: ignore[attr-defined,assignment]
    heard = DomainController.on_hook

    async def on_hook(self: DomainController, operation: str, *rest: str) -> HookAnswer:
        await _pass(note, f"hook {operation}")
        return await heard(self, operation, *rest)

    DomainController.on_hook = on_hook  # type: ignore[assignment]  # replaced on purpose


if __name__ == "__main__":
    arm(Path(sys.argv.pop(1)))
    sys.argv.pop(1)  # the program that this stands for
    main()
