"""Finds network drivers by name, ours and those of others, through entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from linkmgr.drivers.base import NetworkDriver
from linkmgr.errors import BadOption
from linkmgr.text.suggest import hint_for_unknown
from linkmgr.text.untrusted import quoted

ENTRY_POINT_GROUP = "linkmgr.drivers"


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def known_drivers() -> list[str]:
    """Names of all installed drivers, sorted."""
    return sorted(_entries())


def find_driver(name: str) -> type[NetworkDriver]:
    """Load the driver class of that name.

    :raise BadOption: when there is none, or when it cannot be imported, and then says why.
    """
    entry = _entries().get(name)
    if entry is None:
        raise BadOption(
            f"there is no network driver {quoted(name)}",
            hint=hint_for_unknown(str(name), known_drivers(), "the installed drivers are"),
        )
    try:
        driver = entry.load()
    except Exception as error:  # somebody else's module may fail in any way
        raise BadOption(
            f"network driver {name!r} ({entry.value}) cannot be loaded: {error}",
            hint="mend or remove the package that brings it",
        ) from error
    if not (isinstance(driver, type) and issubclass(driver, NetworkDriver)):
        raise BadOption(
            f"network driver {name!r} ({entry.value}) is not a NetworkDriver",
            hint="mend or remove the package that brings it",
        )
    return driver
