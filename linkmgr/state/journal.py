"""Intent and outcome on disk: one JSON document per VM, one for networks and ports.

The journal says what was meant; QEMU and the kernel say what is (`linkmgr.reconcile.recovery`
compares them).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from linkmgr.errors import BadName
from linkmgr.model import Endpoint, LinkState, Network, NotifyMode, Port, check_name
from linkmgr.state.codec import DecodeError, JsonReader, read_endpoint, read_network, read_port
from linkmgr.state.directory import StateDirectory

VMS = "vms"  #: the group of the VMs' documents
NETWORKS = "networks"  #: the document of networks and ports


@dataclass(frozen=True)
class NicFacts:
    """The facts of a NIC that hold from boot to end.

    :param managed: whether it is wired so that its cable can change.
    :param mtu: bytes.
    """

    model: str
    mac: str
    mtu: int
    managed: bool


@dataclass(frozen=True)
class CableRecord:
    """The cable that a NIC is on.

    :param attachment: id of the network side's claim.
    :param id: of the cable; another one when a replug kept the macvtap.
    """

    attachment: str
    id: str
    port: Port
    endpoint: Endpoint
    device: str
    mac: str
    since: datetime


@dataclass(frozen=True)
class Intent:
    """A swap that has begun: to the port, or to no cable at all.

    :param attachment: id of the new claim.
    :param foreign: QEMU's ids of the hub port and the backend of a cable that linkmgr has not
        made and that is to be unplugged.
    """

    attachment: str | None = None
    port: Port | None = None
    notify: NotifyMode = NotifyMode.AUTO
    foreign: tuple[str, str] | None = None


@dataclass(frozen=True)
class NicRecord:
    """What is known of one NIC.

    :param intent: ``None`` while nothing is in flight.
    :param name: that the host's devices of its cables are to have; ``None`` for one of our own.
    """

    facts: NicFacts
    wanted: LinkState = LinkState.UP
    cable: CableRecord | None = None
    intent: Intent | None = None
    name: str | None = None


@dataclass(frozen=True)
class VmRecord:
    """What is known of one VM.

    :param qmp: path of its monitor socket.
    :param pid: of QEMU, ``None`` if it is of another pid namespace.
    :param started: when that process began, in clock ticks since boot, for a pid is used again.
    :param adder: uid of the user who added it; ``None`` if linkmgr did, or it is not known.
    :param owner: uid of the process that listens on its monitor socket; ``None`` if none does, or
        it is not known.
    :param uuid: what QEMU says that it has as uuid; ``None`` if that is not known.
    """

    vm: str
    qmp: str
    nics: Mapping[str, NicRecord] = field(default_factory=dict)
    pid: int | None = None
    started: int | None = None
    adder: int | None = None
    owner: int | None = None
    uuid: str | None = None

    def process_lives(self) -> bool:
        """Whether that very process is still there. False if it was never known."""
        return self.pid is not None and self.is_of(self.pid)

    def is_of(self, pid: int | None) -> bool:
        """Whether it tells of the process that has this pid now."""
        if pid != self.pid:
            return False
        return pid is None or (self.started is not None and started_at(pid) == self.started)


class Journal:
    """VMs, networks and ports in the state directory."""

    def __init__(self, documents: StateDirectory) -> None:
        self._documents = documents

    async def load(self) -> tuple[list[VmRecord], list[Network], list[Port]]:
        """Read everything. What cannot be read is set aside, told loudly, and left out.

        :raise StateError: when the directory itself cannot be used.
        """
        vms = []
        for name in await self._documents.names(VMS):
            vm = name.removeprefix(f"{VMS}/")
            record = await self._documents.read(name, partial(_read_vm, vm))
            if record is not None:
                vms.append(record)
        await self._documents.names()  # what was set aside
        found = await self._documents.read(NETWORKS, _read_networks)
        networks, ports = found or ([], [])
        return vms, networks, ports

    async def save_vm(self, record: VmRecord) -> None:
        """Write what is known of a VM.

        :raise StateError: when it is not on disk afterwards.
        """
        await self._documents.write(f"{VMS}/{record.vm}", record)

    async def drop_vm(self, name: str) -> None:
        """Forget a VM.

        :raise StateError: when its document is still there afterwards.
        """
        await self._documents.remove(f"{VMS}/{name}")

    async def save_networks(self, networks: list[Network], ports: list[Port]) -> None:
        """Write all networks and ports.

        :raise StateError: when they are not on disk afterwards.
        """
        await self._documents.write(NETWORKS, {"networks": networks, "ports": ports})


def started_at(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (proc(5)); ``None`` if there is none."""
    try:
        # The name in the second field may hold anything, a bracket included.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


class VmJournal:
    """One VM's document, changed NIC by NIC.

    What is written is what was last said of every NIC; a change that could not be written is taken
    back, so that the next one does not bring it along.
    """

    def __init__(self, journal: Journal, record: VmRecord) -> None:
        self._journal = journal
        self.record = record
        self._lock = asyncio.Lock()
        self._dropped = False
        self._saved = bool(record.nics)  # else it may be new

    async def change(self, alias: str, **changes: Any) -> None:
        """Change what is said of a NIC, and write it.

        :param changes: fields of `NicRecord`.
        :raise StateError: when it could not be written; it is as before then.
        """
        async with self._lock:
            before = self.record
            known = before.nics.get(alias)
            if known is None:
                return  # the NIC is gone
            after = replace(known, **changes)
            if after == known:
                return
            await self._save(replace(before, nics={**before.nics, alias: after}))

    async def set_vm(
        self,
        nics: Mapping[str, NicRecord],
        pid: int | None,
        *,
        owner: int | None = None,
        uuid: str | None = None,
    ) -> None:
        """Say which NICs there are, and of which process; write it.

        :param owner: as in `VmRecord`; so is `uuid`.
        :raise StateError: when it could not be written; it is as before then.
        """
        async with self._lock:
            started = None if pid is None else started_at(pid)
            after = replace(
                self.record, nics=dict(nics), pid=pid, started=started, owner=owner, uuid=uuid
            )
            if after != self.record or not self._saved:
                await self._save(after)

    async def _save(self, after: VmRecord) -> None:
        if self._dropped:
            return
        await self._journal.save_vm(after)
        self.record, self._saved = after, True

    async def drop(self) -> None:
        """Forget the VM.

        :raise StateError: when its document is still there.
        """
        async with self._lock:
            await self._journal.drop_vm(self.record.vm)
            self._dropped = True


def _read_vm(name: str, reader: JsonReader) -> VmRecord:
    if reader.text("vm") != name:
        raise DecodeError("vm", "is not the name of the file")
    record = VmRecord(
        vm=_named("vm", name),
        qmp=reader.text("qmp"),
        nics=reader.children("nics", _read_nic),
        pid=reader.integer("pid") if "pid" in reader else None,
        started=reader.integer("started") if "started" in reader else None,
        adder=reader.integer("adder") if "adder" in reader else None,
        owner=reader.integer("owner") if "owner" in reader else None,
        uuid=reader.text_or_none("uuid"),
    )
    # An older linkmgr wrote down NICs whose id cannot be a name. Without a cable they are nothing
    # to anybody, and no reason to lose what else is there.
    nics = {a: nic for a, nic in record.nics.items() if nic.cable or nic.intent or _is_name(a)}
    for alias in nics:
        _named(f"nics.{alias}", alias)
    return replace(record, nics=nics)


def _read_nic(reader: JsonReader) -> NicRecord:
    return NicRecord(
        facts=reader.child("facts", _read_facts),
        wanted=reader.choice("wanted", LinkState),
        cable=reader.child_or_none("cable", _read_cable),
        intent=reader.child_or_none("intent", _read_intent),
        name=reader.text_or_none("name"),
    )


def _read_facts(reader: JsonReader) -> NicFacts:
    return NicFacts(
        reader.text("model"), reader.text("mac"), reader.integer("mtu"), reader.flag("managed")
    )


def _read_cable(reader: JsonReader) -> CableRecord:
    return CableRecord(
        attachment=reader.text("attachment"),
        id=reader.text("id"),
        port=reader.child("port", read_port),
        endpoint=reader.child("endpoint", read_endpoint),
        device=reader.text("device"),
        mac=reader.text("mac"),
        since=reader.time("since"),
    )


def _read_intent(reader: JsonReader) -> Intent:
    foreign = reader.raw("foreign")
    return Intent(
        attachment=reader.text_or_none("attachment"),
        port=reader.child_or_none("port", read_port),
        notify=reader.choice("notify", NotifyMode),
        foreign=(str(foreign[0]), str(foreign[1]))
        if isinstance(foreign, list) and len(foreign) == 2
        else None,
    )


def _read_networks(reader: JsonReader) -> tuple[list[Network], list[Port]]:
    return reader.items("networks", read_network), reader.items("ports", read_port)


def _is_name(alias: str) -> bool:
    try:
        check_name("NIC", alias)
    except BadName:
        return False
    return True


def _named(path: str, name: str) -> str:
    try:
        return check_name("VM or NIC", name)
    except BadName as error:
        raise DecodeError(path, str(error)) from None
