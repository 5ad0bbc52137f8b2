"""One lock for each VM, and waits that end at once when the VM is to go or linkmgr stops.

A verb that waits for its turn on a QEMU that answers slowly has changed nothing, so it can be sent
away with an error; without that a stop, and the removal of the VM, wait behind all such verbs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from linkmgr.errors import BeingRemoved, LinkmgrError, Stopping


class CancellableWaits:
    """Waits that can all be cancelled with an error."""

    def __init__(self) -> None:
        self._refusals: list[Callable[[], LinkmgrError]] = []
        self._waiting: dict[asyncio.Timeout, LinkmgrError | None] = {}  # and why it was cancelled

    def cancel_all(self, refusal: Callable[[], LinkmgrError]) -> None:
        """Cancel all waits with this error, and from now on each one as it begins.

        Repeats freely. A wait that was cancelled before may still be cleaning up: it keeps the
        error that it has, for a timeout that has expired cannot be set anew.
        """
        if refusal not in self._refusals:
            self._refusals.append(refusal)
        now = asyncio.get_running_loop().time()
        for timeout, error in self._waiting.items():
            if error is None:
                self._waiting[timeout] = refusal()
                timeout.reschedule(now)

    def allow(self, refusal: Callable[[], LinkmgrError]) -> None:
        """Take back a `cancel_all`."""
        self._refusals.remove(refusal)

    @asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Make the block one of the waits.

        :raise LinkmgrError: that of `cancel_all`.
        """
        if self._refusals:
            raise self._refusals[0]()
        timeout, error = asyncio.timeout(None), None
        try:
            async with timeout:
                self._waiting[timeout] = None
                try:
                    yield
                finally:
                    error = self._waiting.pop(timeout)
        except TimeoutError:
            if error is not None and timeout.expired():
                raise error from None
            raise


class _Entry:
    """What there is for one VM while somebody uses it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waits = CancellableWaits()
        self.users = 0


class VmLocks:
    """The locks of all VMs, by name. That of a name which nobody uses takes no memory."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._all = CancellableWaits()

    def stop(self) -> None:
        """Cancel all waits, for good. Repeats freely."""
        self._all.cancel_all(_stopping)

    @asynccontextmanager
    async def vm_lock(self, name: str) -> AsyncIterator[None]:
        """The VM's lock, for adding it and looking for its NICs.

        The block is cancelled when the VM is to be removed, and when linkmgr stops.

        :raise BeingRemoved, Stopping: then.
        """
        with self._used(name) as entry:
            async with self._all.wait(), entry.waits.wait(), entry.lock:
                yield

    @asynccontextmanager
    async def removing(self, name: str) -> AsyncIterator[None]:
        """The VM's lock, for removing it. All other waits for the VM end at once.

        :raise Stopping: linkmgr stops before the lock is free.
        """

        def refusal() -> BeingRemoved:
            return BeingRemoved(
                f"VM {name} is being removed, so what waited for it was not begun",
                hint="look whether it is still there when that is done, and add it again",
            )

        with self._used(name) as entry:
            try:
                entry.waits.cancel_all(refusal)
                async with self.acquired(entry.lock):
                    yield
            finally:
                entry.waits.allow(refusal)

    @asynccontextmanager
    async def forgetting(self, name: str) -> AsyncIterator[None]:
        """The VM's lock, for forgetting it if it has ended. Nobody else's wait ends.

        :raise Stopping: linkmgr stops before the lock is free.
        """
        with self._used(name) as entry:
            async with self.acquired(entry.lock):
                yield

    @asynccontextmanager
    async def nic_lock(self, name: str, lock: asyncio.Lock) -> AsyncIterator[None]:
        """The lock of one of the VM's NICs. What runs under it is never cancelled.

        :raise BeingRemoved, Stopping: instead of waiting on.
        """
        with self._used(name) as entry:
            async with self._all.wait(), entry.waits.wait():
                await lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @asynccontextmanager
    async def acquired(self, lock: asyncio.Lock) -> AsyncIterator[None]:
        """A lock that the VM's removal takes. What runs under it is never cancelled.

        :raise Stopping: instead of waiting on.
        """
        async with self._all.wait():
            await lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _used(self, name: str) -> Iterator[_Entry]:
        entry = self._entries.setdefault(name, _Entry())
        entry.users += 1
        try:
            yield entry
        finally:
            entry.users -= 1
            if not entry.users:
                del self._entries[name]


def _stopping() -> Stopping:
    return Stopping(
        "linkmgr is stopping, so what waited for its turn was not begun",
        hint="ask again when it has started",
    )
