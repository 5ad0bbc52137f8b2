"""`linkmgr` with a fault: verbs do not take their NIC's lock. For test_linearizable only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from linkmgr.cli import main
from linkmgr.manager import LinkManager
from linkmgr.model import Outcome
from linkmgr.swap import Slot
from linkmgr.vm import Vm


async def _unlocked(
    self: LinkManager, vm: Vm, slot: Slot, work: Callable[[], Awaitable[Outcome]]
) -> Outcome:
    return await self._guarded(vm, slot, work)


if __name__ == "__main__":
    LinkManager._locked = _unlocked  # type: ignore[method-assign]
    main()
