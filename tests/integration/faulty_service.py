"""`linkmgr` with a fault, which tests must find: ``FAULT serve ...``.

``no-lock``: verbs do not take their NIC's lock. ``no-access``: everybody may change everything.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from linkmgr.cli import main
from linkmgr.inventory.machine import Vm
from linkmgr.manager.manager import LinkManager
from linkmgr.model import Outcome
from linkmgr.service.auth.policy import Access
from linkmgr.swap.steps import ManagedNic


def command(fault: str) -> str:
    """Return the command line of the service with a fault."""
    root = Path(__file__).parents[2]
    return f"env PYTHONPATH={root} {sys.executable} -m {__name__} {fault} serve"


async def _unlocked(
    self: LinkManager, vm: Vm, nic: ManagedNic, work: Callable[[], Awaitable[Outcome]]
) -> Outcome:
    return await self._guarded(vm, nic, work)


def _allow(*_: object, **__: object) -> None:
    pass


if __name__ == "__main__":
    match sys.argv.pop(1):
        case "no-lock":
            LinkManager._locked = _unlocked  # type: ignore[method-assign, assignment]
        case "no-access":
            Access.check = _allow  # type: ignore[method-assign]  # replaced on purpose
        case fault:
            sys.exit(f"there is no fault {fault}")
    main()
