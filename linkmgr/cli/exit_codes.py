"""Exit codes: one for each family of errors, so that a script can tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from linkmgr.errors import (
    BadConfig,
    BadRequest,
    CannotAttach,
    Conflict,
    Forbidden,
    HostError,
    LibvirtError,
    LinkmgrError,
    MonitorError,
    NotFound,
    ServiceGone,
    ServiceTimeout,
    ServiceUnreachable,
    StateError,
    Stopping,
)


class Exit(IntEnum):
    """What the command's end means. Tabulated in docs/cli.md; a number never changes."""

    OK = 0
    FINDINGS = 1  #: it worked, and found something that is not as it should be
    USAGE = 2  #: the call is wrong; nothing was tried
    NOT_FOUND = 3
    CONFLICT = 4
    CANNOT_ATTACH = 5
    HOST = 6
    MONITOR = 7
    FORBIDDEN = 8
    UNREACHABLE = 9
    GONE = 10  #: the service went away; it may or may not have been done
    STATE = 11
    OTHER = 12
    LIBVIRT = 13  #: libvirt's daemon is not there, is too late or refused
    TIMEOUT = 14  #: the service did not answer in time; it may or may not have been done
    INSTALLATION = 15  #: it was installed for another Python (packaging/linkmgr.launcher)
    CONFIG = 78  #: the configuration is wrong (EX_CONFIG): the service is not started again
    INTERRUPTED = 130  #: by Ctrl-C, as shells count
    BROKEN_PIPE = 141  #: nobody reads the output any more, as shells count


_FAMILIES: Mapping[type[LinkmgrError], Exit] = {
    BadConfig: Exit.CONFIG,
    BadRequest: Exit.USAGE,
    NotFound: Exit.NOT_FOUND,
    Conflict: Exit.CONFLICT,
    CannotAttach: Exit.CANNOT_ATTACH,
    HostError: Exit.HOST,
    MonitorError: Exit.MONITOR,
    LibvirtError: Exit.LIBVIRT,
    Forbidden: Exit.FORBIDDEN,
    ServiceUnreachable: Exit.UNREACHABLE,
    Stopping: Exit.UNREACHABLE,
    ServiceGone: Exit.GONE,
    ServiceTimeout: Exit.TIMEOUT,
    StateError: Exit.STATE,
    LinkmgrError: Exit.OTHER,
}


def exit_of(kind: type[LinkmgrError]) -> Exit:
    """The exit code of an error's family."""
    return next(_FAMILIES[each] for each in kind.__mro__ if each in _FAMILIES)
