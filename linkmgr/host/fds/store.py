"""Duplicates of fds that outlive this process, if somebody keeps them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class FdStore(Protocol):
    """A store that keeps a duplicate of a cable's fd, so that a kill -9 does not lose it.

    Without it a service that starts again has no duplicate, and the next swap closes the tap's last
    fd inside QEMU, which stalls the guest for 20 ms. Nothing else depends on it, so no method
    blocks and none raises: what cannot be kept is logged.

    `ident` is the id of the cable, as in the interface alias of its device.
    """

    def keep(self, ident: str, fd: int) -> None:
        """Keep a duplicate of `fd`, which stays the caller's. Repeats freely."""

    def drop(self, ident: str) -> None:
        """Let go of what is kept; nothing happens if nothing is.

        Call it before the caller's own fd is closed, so that the last close is in its thread.
        """

    def dup(self, ident: str) -> int | None:
        """Return a duplicate of what an earlier run left, for the caller to own.

        It stays kept until `drop`: a caller that failed halfway can have another one.
        """

    def prune(self, claimed: Collection[str], pending: Collection[str]) -> None:
        """Drop what an earlier run left and no cable needs.

        :param claimed: ids of cables whose fds were taken for good.
        :param pending: ids of those that may still be taken.
        """


class NullFdStore:
    """A store that keeps nothing: for a process that nobody starts again."""

    def keep(self, ident: str, fd: int) -> None:
        """See `FdStore.keep`."""

    def drop(self, ident: str) -> None:
        """See `FdStore.drop`."""

    def dup(self, ident: str) -> int | None:  # noqa: ARG002 - the protocol's name
        """See `FdStore.dup`."""
        return None

    def prune(self, claimed: Collection[str], pending: Collection[str]) -> None:
        """See `FdStore.prune`."""
