"""Asking the kernel what there is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

from linkmgr.aio.threads import run_in_thread
from linkmgr.errors import HostError
from linkmgr.host.names import check_any_name
from linkmgr.host.netlink import dump
from linkmgr.host.netlink.errors import KernelRefused, device_missing, to_host_error
from linkmgr.host.netlink.link import FdbEntry, NetDevice

_DUMP_ATTEMPTS = 10
_DUMP_RETRY_INTERVAL_S = 0.001

T = TypeVar("T")


class NetlinkReader:
    """Reads, in threads, from the network namespace of this process."""

    async def find_device(self, name: int | str) -> NetDevice | None:
        """Return a device, by its name or index, or ``None``."""
        key = name if isinstance(name, int) else check_any_name(name)
        try:
            return await run_in_thread(dump.find_device, key)
        except KernelRefused as refused:
            raise to_host_error(refused, "this host") from refused

    async def find_devices(self, names: Collection[str]) -> dict[str, NetDevice]:
        """Return the devices of these names, by what was asked for, without those that are not."""
        keys = [check_any_name(name) for name in names]
        return await _read(partial(dump.find_devices, keys))

    async def device(self, name: int | str, what_for: str | None = None) -> NetDevice:
        """Return a device, by its name or index.

        :raise LinkMissing: when there is none; it says what it is needed for.
        """
        if (device := await self.find_device(name)) is None:
            raise device_missing(name, what_for)
        return device

    async def list_devices(self, *, consistent: bool = True) -> list[NetDevice]:
        """Return all devices.

        :param consistent: ``False`` if devices that come or go meanwhile may be missing: never
            before something is deleted because it is not in the list.
        """
        if not consistent:
            return (await _read(dump.list_devices))[0]
        return await _read_consistent(_consistent_list, "list the network devices")

    async def name_of(self, index: int | None) -> str:
        """Return the name of a device for a sentence, whether or not it is still there."""
        device = None if index is None else await self.find_device(index)
        return device.name if device else f"the device with index {index}"

    async def fdb_entries(self, bridge: NetDevice, mac: str) -> list[FdbEntry]:
        """Return a bridge's forwarding entries for an address, in whichever VLAN it looks."""
        try:
            if not bridge.vlan_filtering:
                found = await run_in_thread(dump.find_fdb_entry, bridge.index, mac)
                return [found] if found else []
            entries, _ = await run_in_thread(dump.list_fdb_entries, bridge.index)
        except KernelRefused as refused:
            raise to_host_error(refused, bridge.name) from refused
        return [entry for entry in entries if entry.mac == mac and entry.vlan is not None]


def _consistent_list() -> list[NetDevice] | None:
    found, consistent = dump.list_devices()
    return found if consistent else None


async def _read(ask: Callable[[], T]) -> T:
    try:
        return await run_in_thread(ask)
    except KernelRefused as refused:
        raise to_host_error(refused, "this host") from refused


async def _read_consistent(ask: Callable[[], T | None], action: str) -> T:
    """Return a complete list, also while devices come and go.

    :raise HostError: when there was no quiet moment for it.
    """
    for _ in range(_DUMP_ATTEMPTS):
        if (answer := await _read(ask)) is not None:
            return answer
        # The kernel says that something may be missing: whoever believes it deletes too much.
        await asyncio.sleep(_DUMP_RETRY_INTERVAL_S)
    raise HostError(
        f"cannot {action}: they change all the time", hint="try again when the host is calmer"
    )
