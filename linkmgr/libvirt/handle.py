"""One open connection to libvirt: its thread, its end, and calls that are bounded in time.

One thread for each connection, and never two: libvirt's client (before 10.0) can forget to send the
call of one thread while another waits for its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Self, TypeVar

from linkmgr.errors import LibvirtUnreachable
from linkmgr.libvirt.binding import load, told
from linkmgr.libvirt.eventloop import shared
from linkmgr.libvirt.worker import LateError, Worker

T = TypeVar("T")

#: libvirt is asked for a sign of life after so many seconds of silence, and given up after so many
#: unanswered ones: a libvirtd that is stopped, not ended, is noticed within 20 s.
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 5, 3
BUSY_HINT = "look whether a hook of libvirt hangs or the guest's QEMU is stopped"
CLOSE_SECONDS = 2.0  #: for taking leave; then libvirt is left to find out by itself

#: Undoes one registration, in the thread.
Undo = Callable[[], object]


class Handle:
    """A connection, from `open` until `lost` or `close`. Made by `open`, never opened again."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.lost = asyncio.Event()
        self._worker = Worker(f"libvirt {uri}")
        self._connection: Any = None
        self._undo: list[Undo] = []

    @classmethod
    async def open(
        cls,
        uri: str,
        prepare: Callable[[Self, Any, Any], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> Self:
        """Connect.

        :param prepare: called in the thread with the handle, `load` and libvirt-python's
            connection, to register for events; see `undo`.
        :param timeout: seconds; ``None`` for as long as it takes. A libvirt that is stopped takes a
            connection and answers when it goes on.
        :raise LibvirtUnreachable: nobody listens, no permission, no libvirt-python, no answer.
        """
        shared.use()
        handle = cls(uri)
        loop = asyncio.get_running_loop()
        lost = handle.lost  # and not the handle: libvirt would keep it

        def ended(*_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lost.set)

        def connect() -> None:
            handle._connect(ended, prepare)

        try:
            await handle._worker.call(connect, timeout=timeout)
        except BaseException as error:
            # A connection that is made yet is closed as soon as it is.
            handle._worker.finish(handle._leave)
            if not isinstance(error, LateError):
                raise
            raise LibvirtUnreachable(
                f"libvirt at {uri} took the connection and did not answer within {timeout:g} s",
                hint="look whether libvirtd is stopped or overloaded",
            ) from None
        return handle

    @property
    def alive(self) -> bool:
        """Whether the connection has not ended."""
        return not self.lost.is_set()

    def undo(self, *undo: Undo) -> None:
        """Say how to take back what was registered; called in the thread, the last first."""
        self._undo += undo

    async def call(self, what: str, work: Callable[[Any, Any], T]) -> T:
        """Run ``work(load(), connection)`` in the thread, behind other calls.

        :param what: that is asked, for errors: "the XML of web1".
        :raise LibvirtUnreachable: the connection ended.
        :raise LibvirtRefused: libvirt answered with an error.
        """
        ended = LibvirtUnreachable(
            f"{what}: the connection to libvirt has ended",
            hint="it is connected again by itself; look whether libvirtd runs",
        )
        if not self.alive:
            raise ended
        try:
            return await self._worker.call(lambda: self._ask(what, work))
        except LateError:  # it was closed meanwhile
            raise ended from None

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._worker.busy

    def retire(self) -> None:
        """Close it as soon as its calls have ended; does not wait."""
        self.lost.set()
        self._worker.finish(self._leave)

    async def close(self) -> None:
        """Take leave, for at most `CLOSE_SECONDS`. Idempotent, never raises."""
        self.lost.set()
        await asyncio.wait({self._worker.finish(self._leave)}, timeout=CLOSE_SECONDS)

    # --- in the thread ----------------------------------------------------------------------------
    def _connect(
        self, ended: Callable[..., None], prepare: Callable[[Self, Any, Any], None] | None
    ) -> None:
        api = load()
        shared.register(api.libvirt)
        try:
            made = api.libvirt.open(self.uri)
        except api.libvirt.libvirtError as error:
            text = " ".join(str(error.get_error_message() or error).split())
            raise LibvirtUnreachable(
                f"cannot connect to libvirt at {self.uri}: {text}",
                hint="'systemctl start libvirtd.socket' (or virtqemud.socket), and run as root",
            ) from None
        self._connection = made
        try:
            with contextlib.suppress(api.libvirt.libvirtError):  # not every driver has it
                made.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
            made.registerCloseCallback(ended, None)
            self.undo(made.unregisterCloseCallback)
            if prepare is not None:
                prepare(self, api, made)
        except BaseException as error:
            self._leave()
            if isinstance(error, api.libvirt.libvirtError):
                raise told(error, f"connecting to {self.uri}", alive=True) from None
            raise

    def _ask(self, what: str, work: Callable[[Any, Any], T]) -> T:
        api = load()
        connection = self._connection
        try:
            return work(api, connection)
        except api.libvirt.libvirtError as error:
            raise told(error, what, alive=_is_alive(connection)) from None

    def _leave(self) -> None:
        made, self._connection = self._connection, None
        if made is None:
            return
        # On a connection that has ended each of these frees what is on this side, and fails.
        undo, self._undo = self._undo, []
        for each in (*reversed(undo), made.close):
            with contextlib.suppress(load().libvirt.libvirtError):
                each()


def _is_alive(connection: Any) -> bool:
    """Whether libvirt's side has not hung up; asks nobody."""
    try:
        return bool(connection.isAlive())
    except Exception:  # noqa: BLE001 - of libvirt-python, which need not be loaded
        return False
