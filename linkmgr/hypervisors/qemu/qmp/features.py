"""What a QEMU build can do, read from its own schema and not from its version number.

``query-qmp-schema`` answers 0.2 MB, with types named by numbers (docs/devel/qapi-code-gen, "Client
JSON Protocol introspection"), so it is asked once per executable and only the names are kept.

A QEMU that was taken over answers what it likes. So what it says holds for others only if the
kernel says that they run the same executable, and only if nothing is missing in it: it can lie
itself into more than it has, and cannot take from another guest what that one has.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from linkmgr.aio.file_threads import run_in_file_thread
from linkmgr.errors import MonitorError
from linkmgr.text.untrusted import printable

if TYPE_CHECKING:
    from linkmgr.hypervisors.qemu.qmp.monitor import Monitor

#: Seconds for the schema; it took 65 ms per guest when 200 were asked at once.
SCHEMA_TIMEOUT_S = 30.0
#: Seconds to wait for the answer that another guest of the same executable is to give: one that
#: does not answer holds nobody up for longer.
SHARED_PROBE_TIMEOUT_S = 1.0
#: Seconds that the kernel may take to say which file an executable is: it may be on a network.
STAT_TIMEOUT_S = 1.0
#: Executables whose features are kept; a host has one or two.
MAX_CACHED_EXECUTABLES = 16
#: Types of ``netdev_add``, and members of one type, in a schema: QEMU 8.2 has 13 and 35, and each
#: type has a set of all.
MAX_SCHEMA_MEMBERS = 200
#: Commands whose arguments are kept.
_ARGUMENTS_OF = frozenset(
    {"netdev_add", "netdev_del", "getfd", "closefd", "set_link", "announce-self", "query-rx-filter"}
)


@dataclass(frozen=True)
class Features:
    """Names that a QEMU build knows.

    :param build: version, package and target, such as ``7.2.22 (Debian ...) x86_64``.
    :param commands: all QMP commands.
    :param arguments: argument names, of the commands that linkmgr uses.
    :param netdevs: netdev types -> the options of each.
    """

    build: str
    commands: frozenset[str]
    arguments: Mapping[str, frozenset[str]] = field(default_factory=dict)
    netdevs: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def has_command(self, name: str) -> bool:
        """Whether QEMU knows the command."""
        return name in self.commands

    def has_argument(self, command: str, argument: str) -> bool:
        """Whether a command that linkmgr uses takes the argument."""
        return argument in self.arguments.get(command, frozenset())

    def has_netdev(self, kind: str) -> bool:
        """Whether ``netdev_add`` takes the type; ``user`` and others may not be built in."""
        return kind in self.netdevs

    @property
    def missing(self) -> tuple[str, ...]:
        """What a swap needs and this QEMU has not."""
        needs = {
            "getfd": self.fd_passing,
            "set_link": self.set_link,
            "-netdev hubport": self.hubport,
            "-netdev tap": self.tap,
            "announce-self with interfaces": self.announce_self_ids,
        }
        return tuple(name for name, there in needs.items() if not there)

    @property
    def fd_passing(self) -> bool:
        """Whether a descriptor can be handed over and taken back."""
        return {"getfd", "closefd"} <= self.commands

    @property
    def set_link(self) -> bool:
        """Whether the guest's carrier can be set."""
        return self.has_command("set_link")

    @property
    def announce_self(self) -> bool:
        """Whether QEMU can announce a guest's addresses."""
        return self.has_command("announce-self")

    @property
    def announce_self_ids(self) -> bool:
        """Whether announcements can be limited to one NIC and kept apart by an id."""
        return self.has_argument("announce-self", "interfaces") and self.has_argument(
            "announce-self", "id"
        )

    @property
    def query_rx_filter(self) -> bool:
        """Whether the guest's receive filter can be read."""
        return self.has_command("query-rx-filter")

    @property
    def hubport(self) -> bool:
        """Whether there are hubs: the hub wiring needs them."""
        return self.has_netdev("hubport")

    @property
    def tap(self) -> bool:
        """Whether taps and macvtaps can be taken."""
        return self.has_netdev("tap")

    @property
    def user_netdev(self) -> bool:
        """Whether user-mode networking is built in."""
        return self.has_netdev("user")

    @property
    def stream_netdev(self) -> bool:
        """Whether stream sockets can be a backend (QEMU 7.2)."""
        return self.has_netdev("stream")

    @property
    def dgram_netdev(self) -> bool:
        """Whether datagram sockets can be a backend (QEMU 7.2)."""
        return self.has_netdev("dgram")

    @property
    def reconnect_ms(self) -> bool:
        """Whether a stream backend reconnects in milliseconds, not only whole seconds."""
        return "reconnect-ms" in self.netdevs.get("stream", frozenset())


_Executable = tuple[int, int, int, int]  # device, inode, size, and when it was written in ns
_Key = tuple[_Executable, str]  # and what it says of its version, which can only tell them apart

_cached: OrderedDict[_Key, Features] = OrderedDict()
_probe_locks: WeakKeyDictionary[
    asyncio.AbstractEventLoop, WeakValueDictionary[_Key, asyncio.Lock]
] = WeakKeyDictionary()


async def probe_features(monitor: Monitor) -> Features:
    """Probe the features of the QEMU at this monitor, once per executable.

    Probes of one executable that run at the same time share one query; when its monitor fails or
    is slow, the next in line queries its own.

    :raise CommandFailed, MonitorGone, MonitorTimeout: as `Monitor.execute`.
    :raise MonitorError: the answer is no schema.
    """
    build = await _build(monitor)
    executable = await _executable(monitor.pid)
    if executable is None:
        return await _query_schema(monitor, build)
    key = (executable, build)
    locks = _probe_locks.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    lock = locks.setdefault(key, asyncio.Lock())
    try:
        async with asyncio.timeout(SHARED_PROBE_TIMEOUT_S):
            await lock.acquire()
    except TimeoutError:
        return _cached.get(key) or await _query_schema(monitor, build)
    try:
        if key not in _cached:
            found = await _query_schema(monitor, build)
            if found.missing:
                return found
            _cached[key] = found
            while len(_cached) > MAX_CACHED_EXECUTABLES:
                _cached.popitem(last=False)
        _cached.move_to_end(key)
        return _cached[key]
    finally:
        lock.release()


async def _query_schema(monitor: Monitor, build: str) -> Features:
    return read_schema(build, await monitor.execute("query-qmp-schema", timeout=SCHEMA_TIMEOUT_S))


async def _executable(pid: int | None) -> _Executable | None:
    """Which file a process runs; ``None`` when the kernel does not say."""
    if pid is None:
        return None
    try:
        uid = Path(f"/proc/{pid}").stat().st_uid  # procfs itself never waits
        exe = partial(os.stat, f"/proc/{pid}/exe")  # a file of whoever runs it
        status = await run_in_file_thread(uid, exe, timeout=STAT_TIMEOUT_S)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def _build(monitor: Monitor) -> str:
    version = await monitor.execute("query-version")
    target = await monitor.execute("query-target")
    try:
        number = ".".join(str(int(version["qemu"][part])) for part in ("major", "minor", "micro"))
        return printable(f"{number} ({version['package']}) {target['arch']}", 100)
    except (TypeError, KeyError, ValueError) as err:
        raise MonitorError(
            f"the monitor {monitor.name} does not tell QEMU's version: no {printable(str(err))}"
        ) from None


def read_schema(build: str, schema: Iterable[Mapping[str, Any]]) -> Features:
    """Pick the names out of the answer of ``query-qmp-schema``.

    :raise MonitorError: a needed part is missing or of another shape.
    """
    try:
        entities = {entity["name"]: entity for entity in schema}
        commands = {n: e for n, e in entities.items() if e["meta-type"] == "command"}
        arguments, netdevs = {}, {}
        for name in _ARGUMENTS_OF & commands.keys():
            kind = entities[commands[name]["arg-type"]]
            arguments[name] = _members(kind)
            if name == "netdev_add":  # a union: what else it takes depends on `type`
                # Types without options of their own may be missing among the variants.
                tag = next(m["type"] for m in kind["members"] if m["name"] == kind["tag"])
                netdevs = dict.fromkeys(_bounded(entities[tag]["values"]), arguments[name])
                for variant in _bounded(kind["variants"]):
                    netdevs[variant["case"]] = arguments[name] | _members(entities[variant["type"]])
    except (TypeError, KeyError, StopIteration) as err:
        raise MonitorError(
            f"QEMU {build} answered a schema without {printable(repr(err))}"
        ) from None
    return Features(
        build, frozenset(commands), MappingProxyType(arguments), MappingProxyType(netdevs)
    )


def _members(kind: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(member["name"] for member in _bounded(kind.get("members", ())))


def _bounded(things: Any) -> Any:
    if len(things) > MAX_SCHEMA_MEMBERS:
        raise KeyError(f"no more than {MAX_SCHEMA_MEMBERS} members")
    return things
