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
from linkmgr.libvirt.client.eventloop import shared
from linkmgr.libvirt.client.libvirt_python import from_libvirt_error, load_libvirt_python
from linkmgr.libvirt.client.worker import NoResultError, WorkerThread

T = TypeVar("T")

#: libvirt is asked for a sign of life after so many seconds of silence, and given up after so many
#: unanswered ones: a libvirtd that is stopped, not ended, is noticed within 20 s.
KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 5, 3
BUSY_HINT = "look whether a hook of libvirt hangs or the guest's QEMU is stopped"
CLOSE_TIMEOUT_S = 2.0  #: for taking leave; then libvirt is left to find out by itself

#: Takes one registration back, in the thread.
Cleanup = Callable[[], object]


class LibvirtConnection:
    """A connection to libvirt, made by `open` once, until `lost` or `close`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.lost = asyncio.Event()
        self._worker = WorkerThread(f"libvirt {uri}")
        self._conn: Any = None
        self._cleanups: list[Cleanup] = []

    @classmethod
    async def open(
        cls,
        uri: str,
        prepare: Callable[[Self, Any, Any], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> Self:
        """Connect.

        :param prepare: called in the thread with this connection, libvirt-python and its
            connection, to register for events; see `on_close`.
        :param timeout: seconds; ``None`` for as long as it takes. A libvirt that is stopped takes a
            connection and answers when it goes on.
        :raise LibvirtUnreachable: nobody listens, no permission, no libvirt-python, no answer.
        """
        shared.use()
        connection = cls(uri)
        loop = asyncio.get_running_loop()
        lost = connection.lost  # and not the connection: libvirt would keep it

        def ended(*_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lost.set)

        def connect() -> None:
            connection._connect(ended, prepare)

        try:
            await connection._worker.call(connect, timeout=timeout)
        except BaseException as error:
            # If the connection still comes up, close it at once.
            connection._worker.finish(connection._disconnect)
            if not isinstance(error, NoResultError):
                raise
            raise LibvirtUnreachable(
                f"libvirt at {uri} took the connection and did not answer within {timeout:g} s",
                hint="look whether libvirtd is stopped or overloaded",
            ) from None
        return connection

    @property
    def alive(self) -> bool:
        """Whether the connection has not ended."""
        return not self.lost.is_set()

    def on_close(self, *cleanups: Cleanup) -> None:
        """Have these called when it is closed, in the thread, the last first."""
        self._cleanups += cleanups

    async def call(self, what: str, function: Callable[[Any, Any], T]) -> T:
        """Run ``function(api, conn)`` in the thread, behind other calls.

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
            return await self._worker.call(lambda: self._call(what, function))
        except NoResultError:  # it was closed meanwhile
            raise ended from None

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._worker.busy

    def retire(self) -> None:
        """Close it as soon as its calls have ended; does not wait."""
        self.lost.set()
        self._worker.finish(self._disconnect)

    async def close(self) -> None:
        """Take leave, for at most `CLOSE_TIMEOUT_S`. Idempotent, never raises."""
        self.lost.set()
        await asyncio.wait({self._worker.finish(self._disconnect)}, timeout=CLOSE_TIMEOUT_S)

    # --- in the thread ----------------------------------------------------------------------------
    def _connect(
        self, ended: Callable[..., None], prepare: Callable[[Self, Any, Any], None] | None
    ) -> None:
        api = load_libvirt_python()
        shared.register(api.libvirt)
        try:
            conn = api.libvirt.open(self.uri)
        except api.libvirt.libvirtError as error:
            text = " ".join(str(error.get_error_message() or error).split())
            raise LibvirtUnreachable(
                f"cannot connect to libvirt at {self.uri}: {text}",
                hint="'systemctl start libvirtd.socket' (or virtqemud.socket), and run as root",
            ) from None
        self._conn = conn
        try:
            with contextlib.suppress(api.libvirt.libvirtError):  # not every driver has it
                conn.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
            conn.registerCloseCallback(ended, None)
            self.on_close(conn.unregisterCloseCallback)
            if prepare is not None:
                prepare(self, api, conn)
        except BaseException as error:
            self._disconnect()
            if isinstance(error, api.libvirt.libvirtError):
                raise from_libvirt_error(error, f"connecting to {self.uri}", alive=True) from None
            raise

    def _call(self, what: str, function: Callable[[Any, Any], T]) -> T:
        api = load_libvirt_python()
        conn = self._conn
        try:
            return function(api, conn)
        except api.libvirt.libvirtError as error:
            raise from_libvirt_error(error, what, alive=_is_alive(conn)) from None

    def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        if conn is None:
            return
        # On a connection that has ended each of these frees what is on this side, and fails.
        cleanups, self._cleanups = self._cleanups, []
        for each in (*reversed(cleanups), conn.close):
            with contextlib.suppress(load_libvirt_python().libvirt.libvirtError):
                each()


def _is_alive(conn: Any) -> bool:
    """Whether libvirt's side has not hung up; asks nobody."""
    try:
        return bool(conn.isAlive())
    except Exception:  # noqa: BLE001 - of libvirt-python, which need not be loaded
        return False
