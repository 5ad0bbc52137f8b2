"""Connectors: a monitor is reached over its socket, when QEMU connects to ours, or through libvirt.

An address is text that names both the way and the QEMU, and is what the journal keeps: a path,
``inbound:UUID`` or ``libvirt:UUID``. A `Connector` is made of it, and connects as often as needed.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from linkmgr.aio.file_threads import run_in_file_thread
from linkmgr.errors import BadOption, BadRequest, MonitorReplaced, MonitorUnreachable
from linkmgr.hypervisors.qemu.qmp.admission import Admission
from linkmgr.hypervisors.qemu.qmp.monitor import Monitor
from linkmgr.model import MonitorTransport

__all__ = [  # noqa: RUF022 - most important first
    "Connector",
    "ConnectorFactory",
    "SocketConnector",
    "transport_of",
    "address_of",
    "socket_file",
    "inbound_address",
    "socket_connector",
]


class Connector(Protocol):
    """Makes connections to the monitor of one QEMU."""

    @property
    def address(self) -> str:
        """What it was made from."""

    @property
    def transport(self) -> MonitorTransport:
        """How it reaches QEMU."""

    async def connect(self, name: str, timeout: float) -> Monitor:
        """Connect. Called again after each lost connection. Cancelling it leaves nothing open.

        :param name: which monitor, for errors: ``of VM web1``.
        :param timeout: seconds, for connecting and then for every call that does not say.
        :raise MonitorUnreachable: when nobody answers there as QEMU does.
        """

    def proves_absence(self, error: Exception) -> bool:
        """Whether a connect error proves that nobody listens, not just that the peer is slow."""


ConnectorFactory = Callable[[str], Connector]  #: makes the connector of an address


class SocketConnector:
    """Connects to a socket on which QEMU listens (``-qmp unix:PATH,server=on,wait=off``).

    :param admit: decides at each connect whether the process there is the VM's.
    :param uid: of the user who named the path; ``None`` for this process's own.
    """

    transport = MonitorTransport.SOCKET

    def __init__(
        self, path: str | Path, admit: Admission | None = None, *, uid: int | None = None
    ) -> None:
        self.address = str(path)
        self.admit = admit or Admission()
        self.uid = uid

    async def connect(self, name: str, timeout: float) -> Monitor:
        """See `Connector.connect`.

        :raise Forbidden, MonitorReplaced: as `Admission`.
        """
        return await Monitor.connect(
            self.address, name=name, timeout=timeout, admit=self.admit, uid=self.uid
        )

    def proves_absence(self, error: Exception) -> bool:
        """See `Connector.proves_absence`."""
        if isinstance(error, MonitorReplaced):
            return True  # the process that listens is not this VM
        return isinstance(error, MonitorUnreachable) and isinstance(
            error.__cause__, ConnectionRefusedError | FileNotFoundError
        )


def transport_of(address: str) -> MonitorTransport:
    """How the QEMU of an address is reached."""
    for transport in (MonitorTransport.INBOUND, MonitorTransport.LIBVIRT):
        if address.startswith(f"{transport}:"):
            return transport
    return MonitorTransport.SOCKET


def address_of(qmp: str | Path) -> str:
    """The one spelling of an address.

    :param qmp: an address as a caller gives it; a path may be a `Path`.
    :raise BadRequest: when an inbound QEMU is not named by a uuid, or this is no address at all.
    """
    if not isinstance(qmp, str | Path) or not str(qmp):
        raise BadOption(
            f"{ascii(qmp)[:43]} is not the address of a monitor",
            hint="give the path of its socket, inbound:UUID or libvirt:NAME",
        )
    if isinstance(qmp, Path) or transport_of(qmp) is MonitorTransport.SOCKET:
        path = str(Path(qmp))
        # A file's name may begin as another address does.
        return path if transport_of(path) is MonitorTransport.SOCKET else f"./{path}"
    if transport_of(qmp) is MonitorTransport.INBOUND:
        return inbound_address(qmp.partition(":")[2])
    return qmp


async def socket_file(address: str, timeout: float, uid: int | None) -> tuple[int, int] | None:
    """Device and inode of the socket that an address leads to now, by whatever path.

    ``None`` if it is no path, or nothing is there: to connect says so, and also when the file
    system does not answer.

    :param uid: of the user who named it.
    """
    if transport_of(address) is not MonitorTransport.SOCKET:
        return None
    owner = os.geteuid() if uid is None else uid
    try:
        found = await run_in_file_thread(owner, partial(os.stat, address), timeout=timeout)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def inbound_address(domain: str) -> str:
    """The address of a QEMU that connects to us.

    :param domain: its uuid.
    :raise BadRequest: when it is none.
    """
    try:
        return f"{MonitorTransport.INBOUND}:{uuid.UUID(domain)}"
    except ValueError:
        raise BadRequest(
            f"{ascii(domain)[:43]} is not a uuid",
            hint="a QEMU that connects to the service is known by its uuid",
        ) from None


def socket_connector(address: str) -> Connector:
    """Make the connector of a path: the `ConnectorFactory` of a process that has no others.

    :raise MonitorUnreachable: when the address is something else.
    """
    transport = transport_of(address)
    if transport is MonitorTransport.SOCKET:
        return SocketConnector(address)
    what = (
        "no QEMU can connect" if transport is MonitorTransport.INBOUND else "libvirt is not asked"
    )
    raise MonitorUnreachable(
        f"the monitor {address} cannot be reached: {what} here",
        hint="run the service with its listener and with libvirt, see docs/configuration.md",
    )
