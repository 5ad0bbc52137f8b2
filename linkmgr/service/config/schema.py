"""The configuration file: networks, ports, limits, and who may do what.

TOML, read with `tomllib` and checked strictly: a key that is not known is a mistake, and every
mistake is told with its line. docs/configuration.md explains each key.
"""

from __future__ import annotations

import codecs
import difflib
import os
import pwd
import stat
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from linkmgr.errors import BadConfig, BadName, BadOption, LinkmgrError
from linkmgr.model import Drift, check_name
from linkmgr.service.config.toml_lines import key_lines, line_of
from linkmgr.text.suggest import join_names
from linkmgr.text.untrusted import quoted

DEFAULT_PATH = Path("/etc/linkmgr/linkmgr.toml")
_MAX_MISTAKES_SHOWN = 10  # mistakes in one error
_MAX_FILE_BYTES = 4 << 20
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = r"^(/[^\x00]*)?$"  # absolute, or none


class Permission(StrEnum):
    """A verb that changes something, which a rule can permit."""

    ADD_VM = "add_vm"
    REMOVE_VM = "remove_vm"
    CREATE_NETWORK = "create_network"
    DELETE_NETWORK = "delete_network"
    CREATE_PORT = "create_port"
    DELETE_PORT = "delete_port"
    PLUG = "plug"
    UNPLUG = "unplug"
    SET_LINK = "set_link"
    GC = "gc"


#: What a rule without verbs permits. The others reach beyond the networks that there are: the user
#: who creates a network chooses the bridge or device that is behind it.
DEFAULT_PERMISSIONS = (Permission.PLUG, Permission.UNPLUG, Permission.SET_LINK)

#: The permissions that are about NICs, and those that are about networks: a rule with one of these
#: has to say about which.
PERMISSIONS_ON_NICS = frozenset(
    (*DEFAULT_PERMISSIONS, Permission.ADD_VM, Permission.REMOVE_VM, Permission.GC)
)
PERMISSIONS_ON_NETWORKS = frozenset(Permission) - {Permission.ADD_VM, Permission.REMOVE_VM}


class _Section(BaseModel):
    # strict: TOML has types of its own, and "15" is not a number in it.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NetworkSection(_Section):
    """``[networks.NAME]``; the ports are tables of their options."""

    driver: str
    drift: Annotated[Drift, Field(strict=False)] = Drift.REPAIR
    options: dict[str, Any] = {}
    ports: dict[str, dict[str, Any]] = {}


class Rule(_Section):
    """``[[access.rules]]``: what one user may change.

    :param user: a number or a name.
    :param nics: patterns of ``VM/ALIAS`` with ``*`` for any text; without it, none.
    :param networks: patterns of network names; without it, none.
    """

    user: Annotated[int, Field(ge=0)] | str
    verbs: list[Annotated[Permission, Field(strict=False)]] = list(DEFAULT_PERMISSIONS)
    nics: list[str] = []
    networks: list[str] = []

    @property
    def uid(self) -> int:
        """The user's number.

        :raise KeyError: when there is no user of that name.
        """
        return self.user if isinstance(self.user, int) else pwd.getpwnam(self.user).pw_uid


class AccessSection(_Section):
    """``[access]``: who may change anything beside root."""

    group: str = "linkmgr"
    rules: list[Rule] = []


class Limits(_Section):
    """``[limits]``. Times are in seconds.

    :param monitor_seconds: how long QEMU may take for one command. Read at start only.
    :param heartbeat_seconds: how often an idle event stream gets a sign of life.
    :param request_seconds: how long a client may take to send a request.
    :param events: how many past events are kept for clients that come back.
    :param streams: how many event streams there may be at once.
    :param operations: how many finished operations are kept.
    :param running: how many operations may be under way at once.
    :param connections: how many connections one user may have, beside root and the service's own.
    """

    monitor_seconds: Annotated[float, Field(ge=0.1, le=300)] = 5.0
    heartbeat_seconds: Annotated[float, Field(ge=0.05, le=3600)] = 15.0
    request_seconds: Annotated[float, Field(ge=0.1, le=3600)] = 30.0
    events: Annotated[int, Field(ge=1, le=100_000)] = 1000
    streams: Annotated[int, Field(ge=1, le=100_000)] = 1000
    operations: Annotated[int, Field(ge=1, le=100_000)] = 1000
    running: Annotated[int, Field(ge=1, le=100_000)] = 500
    connections: Annotated[int, Field(ge=1, le=100_000)] = 256


class HookSection(_Section):
    """``[hook]``: for libvirt's hook, which reads it itself (hooks/qemu).

    :param seconds: how long libvirt may wait for the service, in all, at one call of the hook.
    :param fail_closed: a domain is started only if the service agrees to it.
    """

    seconds: Annotated[float, Field(ge=0.1, le=30)] = 2.0
    fail_closed: bool = False


class LibvirtSection(_Section):
    """``[libvirt]``. Read at start only.

    :param uri: as for virsh; empty for no libvirt.
    :param run_dir: where libvirt keeps ``NAME.pid`` and ``NAME.xml`` of the domains that run. Empty
        for no socket that QEMUs dial.
    :param config_dir: where it keeps ``NAME.xml`` of those that are defined. Nothing is read there
        any more; it stays so that configurations which name it hold.
    """

    uri: str = "qemu:///system"
    run_dir: Annotated[str, Field(pattern=_FOLDER)] = "/run/libvirt/qemu"
    config_dir: Annotated[str, Field(pattern=_FOLDER)] = "/etc/libvirt/qemu"


class Config(_Section):
    """A whole file."""

    networks: dict[str, NetworkSection] = {}
    access: AccessSection = AccessSection()
    limits: Limits = Limits()
    hook: HookSection = HookSection()
    libvirt: LibvirtSection = LibvirtSection()


_SECTIONS: dict[str, type[_Section]] = {
    "networks": NetworkSection,
    "rules": Rule,
    "access": AccessSection,
    "limits": Limits,
    "hook": HookSection,
    "libvirt": LibvirtSection,
}
_Mistake = tuple[tuple[str | int, ...], str]


def load_config(path: Path) -> Config:
    """Read and check a configuration file. Touches nothing but the file.

    :raise BadConfig: when it cannot be read or has mistakes; names the file and the lines.
    """
    try:
        data = _read(path)
        if len(data) > _MAX_FILE_BYTES:
            raise BadConfig(
                f"{path} is larger than {_MAX_FILE_BYTES} bytes", hint="name another file"
            )
        if data.startswith(codecs.BOM_UTF8):
            raise BadConfig(
                f"{path} begins with a byte order mark", hint="save it as UTF-8 without one"
            )
        text = data.decode()
        raw = tomllib.loads(text)
    except OSError as error:
        raise BadConfig(
            f"the configuration {path} cannot be read: {error.strerror}",
            hint="make it readable for the service, or name another file with --config",
        ) from None
    except UnicodeDecodeError:
        raise BadConfig(f"{path} is not UTF-8 text", hint="save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"{path} is not TOML: {error}", hint="mend that line") from None
    except RecursionError:
        raise BadConfig(f"{path} is nested too deeply", hint="write it flat") from None
    if not text.strip():
        raise BadConfig(
            f"the configuration {path} is empty, as after a full disk",
            hint="write it again; to go on without one, remove it or write a comment into it",
        )
    mistakes, config = _check(raw)
    if mistakes or config is None:
        raise BadConfig(_tell(path, text, mistakes), hint="mend the file; it was not used")
    return config


def looks_cut_off(path: Path) -> str | None:
    """Why a file that can be used may be part of one, as after a full disk; ``None`` if it is not.

    What was cut off at the end of a line cannot be told from a shorter file.
    """
    try:
        data = _read(path)
    except (OSError, BadConfig):
        return None
    if not data or data.endswith(b"\n"):
        return None
    return f"the last line of {path} has no end: the file may have been cut off"


def reload_config(path: Path, in_force: Config) -> Config:
    """Read a configuration file in place of the one in force.

    A file that is empty or gone is one that is being written, or was lost with a full disk, far
    more often than one that shall take all networks away.

    :raise BadConfig: as `load_config`, and when it says nothing while the one in force does.
    """
    try:
        there = path.lstat() is not None
    except OSError:
        there = False
    config = load_config(path) if there or path != DEFAULT_PATH else Config()
    if config == Config() != in_force:
        state = "is empty" if there else "is gone"
        raise BadConfig(
            f"the configuration {path} {state}",
            hint="write it again; to go on without one, restart the service",
        )
    return config


def _read(path: Path) -> bytes:
    """Read a regular file, and never wait for what is none.

    :raise OSError: it cannot be opened or read.
    :raise BadConfig: it is something else.
    """
    _check_regular(path, path.stat())  # opening a device may do something
    with open(os.open(path, _OPEN), "rb") as file:  # noqa: PTH123 - a descriptor
        _check_regular(path, os.fstat(file.fileno()))
        return file.read(_MAX_FILE_BYTES + 1)


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise BadConfig(
            f"the configuration {path} cannot be read: it is not a regular file",
            hint="name another with --config",
        )


def _check(raw: dict[str, Any]) -> tuple[list[_Mistake], Config | None]:
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        return [_mistake(each) for each in error.errors(include_url=False)], None
    return [*_bad_networks(config), *_bad_rules(config)], config


def _mistake(error: Any) -> _Mistake:
    # A union adds the name of its member to the place, which no key of the file has.
    where = tuple(each for each in error["loc"] if each not in ("str", "constrained-int", "int"))
    match error["type"]:
        case "extra_forbidden":
            key = str(where[-1])
            near = difflib.get_close_matches(key, _known_keys(where), 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            return where, f"is not a key that linkmgr knows{meant}"
        case "missing":
            return where, "is missing"
        case _:
            return where, str(error["msg"]).replace("Input should", "should")


def _known_keys(where: tuple[str | int, ...]) -> list[str]:
    names = [each for each in where[:-1] if isinstance(each, str)]
    section = next((_SECTIONS[each] for each in reversed(names) if each in _SECTIONS), Config)
    return list(section.model_fields)


def _bad_networks(config: Config) -> Iterator[_Mistake]:
    from linkmgr.drivers.fd import refuse_reserved  # noqa: PLC0415 - with netlink: only now
    from linkmgr.drivers.options import check_options  # noqa: PLC0415 - as above
    from linkmgr.drivers.registry import find_driver  # noqa: PLC0415 - as above

    for name, network in config.networks.items():
        where = ("networks", name)
        try:
            refuse_reserved(check_name("network", name))
            driver = find_driver(network.driver)
        except BadName as error:
            yield where, _said(error)
            continue
        except BadOption as error:
            yield (*where, "driver"), _said(error)
            continue
        known = {**driver.port_options, **driver.network_options}
        for owner, at, allowed, options in (
            (f"network {name}", (*where, "options"), known, network.options),
            *(
                (f"port {name}:{port}", (*where, "ports", port), driver.port_options, given)
                for port, given in network.ports.items()
            ),
        ):
            try:
                check_options(owner, allowed, options)
            except BadOption as error:
                yield (*at, *_culprit(allowed, options)), _said(error)
        for port in network.ports:
            try:
                check_name("port", port)
            except BadName as error:
                yield (*where, "ports", port), _said(error)


def _said(error: LinkmgrError) -> str:
    """One mistake of several: what to do about all of them stands at the end."""
    return f"{error.what} ({error.hint})" if error.hint else error.what


def _culprit(known: Mapping[str, Any], options: Mapping[str, object]) -> tuple[str, ...]:
    """The first option that is wrong by itself; none when one is missing."""
    for key, value in options.items():
        try:
            known[key].read(value)
        except (KeyError, ValueError):
            return (key,)
    return ()


def _bad_rules(config: Config) -> Iterator[_Mistake]:
    for number, rule in enumerate(config.access.rules):
        try:
            _ = rule.uid
        except KeyError:
            yield ("access", "rules", number, "user"), f"there is no user {quoted(rule.user)} here"
        for key, verbs in (("nics", PERMISSIONS_ON_NICS), ("networks", PERMISSIONS_ON_NETWORKS)):
            if key not in rule.model_fields_set and not verbs.isdisjoint(rule.verbs):
                allowed = join_names([verb for verb in rule.verbs if verb in verbs])
                yield (
                    ("access", "rules", number),
                    f"allows {allowed}, but does not say of which {key}: add {key}, which are "
                    '["*"] for all',
                )


def _tell(path: Path, text: str, mistakes: list[_Mistake]) -> str:
    lines = key_lines(text)
    told = sorted(
        (line_of(lines, where) or 0, ".".join(str(each) for each in where), what)
        for where, what in mistakes
    )
    shown = [
        f"{f'line {line}' if line else 'the file'}: {where} {what}"
        for line, where, what in told[:_MAX_MISTAKES_SHOWN]
    ]
    more = (
        f"; and {len(told) - _MAX_MISTAKES_SHOWN} more" if len(told) > _MAX_MISTAKES_SHOWN else ""
    )
    return f"{path}: " + "; ".join(shown) + more
