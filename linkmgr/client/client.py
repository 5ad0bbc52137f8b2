"""The verbs of `LinkManager`, in the service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from linkmgr.api import ORPHAN_MIN_AGE_S
from linkmgr.client.events import HEARTBEAT_S, RemoteEvents
from linkmgr.client.http import HttpTransport
from linkmgr.errors import ServiceGone, ServiceUnreachable
from linkmgr.model import (
    Affects,
    Connection,
    DomainInfo,
    Drift,
    Finding,
    LinkState,
    MonitorTransport,
    Network,
    NetworkInfo,
    Nic,
    NicRef,
    NotifyMode,
    OrphanDevice,
    Outcome,
    Port,
    VmInfo,
    check_name,
)
from linkmgr.naming import NicName
from linkmgr.paths import socket_path
from linkmgr.state.codec import (
    JsonReader,
    read_connection,
    read_domain,
    read_finding,
    read_network,
    read_network_info,
    read_nic,
    read_orphan,
    read_outcome,
    read_port,
    read_vm,
)

SUBSCRIBE_TIMEOUT_S = 5.0  #: for which a change waits until the subscriptions are connected

T = TypeVar("T")


class Client:
    """Asks the service: the same verbs, types and errors as `LinkManager`.

    ::

        async with Client() as client:
            await client.plug("web1/net0", "blue")

    A request that was certainly not sent is sent again while the service starts. A change that
    may have been received is never sent twice: `ServiceGone` says that it is not known whether it
    was done. An answer may take as long as it needs; put an `asyncio.timeout` around a verb to
    wait for less, which does not stop the verb.

    :param socket: of the service; by default LINKMGR_SOCKET, else /run/linkmgr/linkmgr.sock.
    :param patience: seconds to wait for a service that is not there.
    :param heartbeat: seconds between two heartbeats of the service.
    :raise ServiceUnreachable: by every verb, when nobody listens; nothing was done.
    :raise ServiceGone: by every verb, when the service went away before it answered.
    """

    def __init__(
        self,
        socket: str | Path | None = None,
        *,
        patience: float = 5.0,
        heartbeat: float = HEARTBEAT_S,
    ) -> None:
        self.socket = socket_path(socket)
        self._heartbeat = heartbeat
        self._transport = HttpTransport(self.socket, patience)
        self._subscriptions: set[RemoteEvents] = set()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all streams of events and let go of the service. Repeats freely."""
        subscriptions = list(self._subscriptions)
        for events in subscriptions:
            events.close()
        await asyncio.gather(*(events.task for events in subscriptions), return_exceptions=True)
        await self._transport.__aexit__(None, None, None)

    # ------------------------------------------------------------------ VMs

    async def add_vm(self, name: str, qmp: str | Path) -> list[Nic]:
        """Take charge of a running guest's NICs; see `LinkManager.add_vm`.

        :param qmp: path of its monitor socket, for the service, made absolute here; or
            ``libvirt:`` with the name or uuid of a domain.
        """
        libvirt = isinstance(qmp, str) and qmp.startswith(f"{MonitorTransport.LIBVIRT}:")
        body = {"name": name, "qmp": qmp if libvirt else str(Path(qmp).absolute())}
        return await self._change(
            "POST", "/v1/vms", body, lambda reader: reader.items("nics", read_nic)
        )

    async def remove_vm(self, name: str) -> bool:
        """Unplug all NICs of a VM and forget it; see `LinkManager.remove_vm`."""
        return await self._change("DELETE", f"/v1/vms/{check_name('VM', name)}", None, _changed)

    async def vms(self) -> list[VmInfo]:
        """All VMs as they are now."""
        return await self._transport.get("/v1/vms", lambda reader: reader.items("vms", read_vm))

    # ------------------------------------------------------------------ networks and ports

    async def create_network(
        self, name: str, driver: str, *, drift: str | Drift = Drift.REPAIR, **options: Any
    ) -> Network:
        """Describe a network; see `LinkManager.create_network`."""
        body = {"name": name, "driver": driver, "drift": str(drift), "options": options}
        return await self._change("POST", "/v1/networks", body, read_network)

    async def delete_network(self, name: str) -> bool:
        """Forget a network; see `LinkManager.delete_network`."""
        path = f"/v1/networks/{check_name('network', name)}"
        return await self._change("DELETE", path, None, _changed)

    async def networks(self) -> list[Network]:
        """All networks."""
        return await self._transport.get(
            "/v1/networks", lambda reader: reader.items("networks", read_network)
        )

    async def network(self, name: str) -> NetworkInfo:
        """One network with all that is known of it; see `LinkManager.network`."""
        path = f"/v1/networks/{check_name('network', name)}"
        return await self._transport.get(path, read_network_info)

    async def create_port(self, network: str, name: str, **options: Any) -> Port:
        """Describe a port; see `LinkManager.create_port`."""
        body = {"network": network, "name": name, "options": options}
        return await self._change("POST", "/v1/ports", body, read_port)

    async def delete_port(self, network: str, name: str) -> bool:
        """Forget a port; see `LinkManager.delete_port`."""
        path = f"/v1/ports/{check_name('network', network)}/{check_name('port', name)}"
        return await self._change("DELETE", path, None, _changed)

    async def ports(self, network: str) -> list[Port]:
        """The ports that were created on a network; see `LinkManager.ports`."""
        query = {"network": check_name("network", network)}
        return await self._transport.get(
            "/v1/ports", lambda reader: reader.items("ports", read_port), query=query
        )

    # ------------------------------------------------------------------ the cable

    async def plug(
        self,
        nic: str | NicRef,
        target: str | Network | Port,
        *,
        notify: str | NotifyMode = NotifyMode.AUTO,
        affects: str | Affects = Affects.LIVE,
    ) -> Outcome:
        """Plug a NIC into a network or port, from wherever it is; see `LinkManager.plug`.

        :param affects: of a guest of libvirt: what runs, its next start, or both.
        """
        body = {"target": str(target), "notify": str(notify), **_affects(affects)}
        return await self._verb("PUT", "/v1/connections/{}", nic, body)

    async def unplug(self, nic: str | NicRef, *, affects: str | Affects = Affects.LIVE) -> Outcome:
        """Take a NIC off its cable, its carrier first; see `LinkManager.unplug` and `plug`."""
        query = "".join(f"?{name}={quote(value)}" for name, value in _affects(affects).items())
        return await self._verb("DELETE", f"/v1/connections/{{}}{query}", nic, None)

    async def set_link(
        self, nic: str | NicRef, state: str | LinkState, *, affects: str | Affects = Affects.LIVE
    ) -> Outcome:
        """Set what the guest sees as carrier; see `LinkManager.set_link` and `plug`."""
        body = {"state": str(state), **_affects(affects)}
        return await self._verb("PUT", "/v1/nics/{}/link", nic, body)

    # ------------------------------------------------------------------ looking

    async def domains(self) -> list[DomainInfo]:
        """All guests of libvirt on the service's host, prepared or not, running or not."""
        return await self._transport.get(
            "/v1/domains", lambda reader: reader.items("domains", read_domain)
        )

    async def nics(self) -> list[Nic]:
        """All NICs as they are now."""
        return await self._transport.get("/v1/nics", lambda reader: reader.items("nics", read_nic))

    async def nic(self, nic: str | NicRef) -> Nic:
        """One NIC as it is now; see `LinkManager.nic`."""
        return await self._transport.get(f"/v1/nics/{NicName.parse(nic)}", read_nic)

    async def connections(self) -> list[Connection]:
        """All NICs that are plugged, with what they are plugged into."""
        return await self._transport.get(
            "/v1/connections", lambda reader: reader.items("connections", read_connection)
        )

    async def check(self) -> list[Finding]:
        """Compare what should be with QEMU and the kernel. Changes nothing; empty is good."""
        return await self._transport.get(
            "/v1/check", lambda reader: reader.items("findings", read_finding)
        )

    async def gc(
        self, *, older_than: float = ORPHAN_MIN_AGE_S, dry_run: bool = False
    ) -> list[OrphanDevice]:
        """Remove devices that carry our tag and that nothing recorded; see `LinkManager.gc`."""
        body = {"older_than": older_than, "dry_run": dry_run}
        return await self._change(
            "POST", "/v1/gc", body, lambda reader: reader.items("orphans", read_orphan)
        )

    async def metrics(self) -> str:
        """The service's figures in the text form of Prometheus."""
        return await self._transport.text("/metrics")

    def events(self) -> RemoteEvents:
        """Subscribe from now on: an asynchronous iterator of events, on a connection of its own.

        The connection is made anew when it breaks or when three heartbeats are missing, and goes
        on where it was. When that is not possible, because the service has started anew, an event
        of the kind `EventKind.RESET` says that some may be missing. A change that is asked for
        later by this client is heard. Ends when it is closed or the client is.

        :raise ServiceUnreachable: by the iterator, when nobody listened from the beginning.
        """
        events = RemoteEvents(
            self._transport, heartbeat=self._heartbeat, ended=self._subscriptions.discard
        )
        self._subscriptions.add(events)
        return events

    # ------------------------------------------------------------------ how a verb is asked for

    async def _verb(
        self, method: str, path: str, nic: str | NicRef, body: Mapping[str, object] | None
    ) -> Outcome:
        name = NicName.parse(nic)
        try:
            return await self._change(method, path.format(name), body, read_outcome)
        except (ServiceUnreachable, ServiceGone) as error:
            error.about(str(name))
            raise

    async def _change(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        read: Callable[[JsonReader], T],
    ) -> T:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SUBSCRIBE_TIMEOUT_S):
                for events in list(self._subscriptions):
                    await events.settled.wait()
        return await self._transport.change(method, path, body, read)


def _affects(affects: str | Affects) -> dict[str, str]:
    """What to send: nothing for the usual, which an older service takes too."""
    return {} if affects == Affects.LIVE else {"affects": str(affects)}


def _changed(reader: JsonReader) -> bool:
    return reader.flag("changed")


if TYPE_CHECKING:
    from linkmgr.api import LibvirtLinkApi

    _: LibvirtLinkApi = Client()
