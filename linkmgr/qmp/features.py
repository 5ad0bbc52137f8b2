"""What a QEMU build can do, read from its own schema and not from its version number.

``query-qmp-schema`` answers 0.2 MB, with types named by numbers (docs/devel/qapi-code-gen, "Client
JSON Protocol introspection"), so it is asked once per build and only the names are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from linkmgr.errors import MonitorError

if TYPE_CHECKING:
    from linkmgr.qmp.monitor import Monitor

#: Seconds for the schema; it took 65 ms per guest when 200 were asked at once.
SCHEMA_TIMEOUT = 30.0
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


_known: dict[str, Features] = {}
_asking: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = WeakKeyDictionary()


async def probe(monitor: Monitor) -> Features:
    """Tell what the QEMU at this monitor can do, asking once per build and process.

    Probes of one build that run at the same time share one query; when its monitor fails, the next
    in line asks its own.

    :raise CommandFailed, MonitorGone, MonitorTimeout: as `Monitor.execute`.
    :raise MonitorError: the answer is no schema.
    """
    build = await _build(monitor)
    locks = _asking.setdefault(asyncio.get_running_loop(), {})
    async with locks.setdefault(build, asyncio.Lock()):
        if build not in _known:
            schema = await monitor.execute("query-qmp-schema", timeout=SCHEMA_TIMEOUT)
            _known[build] = read_schema(build, schema)
    return _known[build]


async def _build(monitor: Monitor) -> str:
    version = await monitor.execute("query-version")
    target = await monitor.execute("query-target")
    try:
        number = ".".join(str(version["qemu"][part]) for part in ("major", "minor", "micro"))
        return f"{number} ({version['package']}) {target['arch']}"
    except (TypeError, KeyError) as err:
        raise MonitorError(
            f"the monitor {monitor.name} does not tell QEMU's version: no {err}"
        ) from err


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
                netdevs = dict.fromkeys(entities[tag]["values"], arguments[name])
                for variant in kind["variants"]:
                    netdevs[variant["case"]] = arguments[name] | _members(entities[variant["type"]])
    except (TypeError, KeyError, StopIteration) as err:
        raise MonitorError(f"QEMU {build} answered a schema without {err!r}") from err
    return Features(
        build, frozenset(commands), MappingProxyType(arguments), MappingProxyType(netdevs)
    )


def _members(kind: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(member["name"] for member in kind.get("members", ()))
