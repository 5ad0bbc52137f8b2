"""macvtaps: a device on top of a parent, with a character device instead of a stack above it.

The descriptor is had without udev: the device number is in sysfs, and the node is the kernel's own.
Where ``/dev/tapN`` is missing, or that of another network namespace, it is one of ours, private and
gone again at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path

from linkmgr.host import sysfs
from linkmgr.host.devices.ipv6_off import disable_ipv6
from linkmgr.host.devices.tap import IFF_NO_PI, IFF_TAP, set_interface
from linkmgr.host.fd import Fd
from linkmgr.host.netlink.changes import (
    IFF_ALLMULTI,
    IFF_UP,
    Rtnl,
    del_link,
    index_of,
    new_link,
    set_link,
)
from linkmgr.host.netlink.errors import KernelRefused
from linkmgr.model import DirectMode, OwnerTag

# linux/if_tun.h

_DEV = Path("/dev")
_SYSFS = Path("/sys/class/net")
_NODES = "linkmgr-node-"  #: begins the names of the folders that a node of ours is made in
_OLD_NODES = "linkmgr-"  #: what these began with until 0.1
_OPEN = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def make_macvtap(
    name: str, parent: int, tag: OwnerTag, *, mode: DirectMode, mac: str, mtu: int, up: bool
) -> Fd:
    """Make a macvtap on the device with index `parent`. Blocks for about 2 ms.

    :raise KernelRefused: when the kernel does; nothing is left then.
    """
    with Rtnl() as rtnl, ExitStack() as undo:
        data = {"IFLA_MACVTAP_MODE": mode.value}
        rtnl.change(new_link(name, "macvtap", data, link=parent, address=mac, mtu=mtu))
        undo.callback(rtnl.try_all, [del_link(name)])
        index = index_of(name)
        # A passthru macvtap is born with its parent's address. Setting ours sets the parent's too
        # (a virtual function receives nothing else); the kernel puts that back at the end.
        rtnl.change(
            set_link(f"set up {name}", index, on=IFF_ALLMULTI, address=mac, ifalias=str(tag))
        )
        disable_ipv6(rtnl, name)
        fd = undo.enter_context(open_macvtap_fd(name, index))
        if up:
            rtnl.change(set_link(f"bring {name} up", index, on=IFF_UP))
        undo.pop_all()
        return fd


def open_macvtap_fd(name: str, index: int) -> Fd:
    """Open a macvtap that exists. Blocks for about 0.1 ms.

    :raise KernelRefused: when the kernel does.
    """
    action = f"open {name}"
    number = device_number(name, index)
    with ExitStack() as undo:
        fd = undo.enter_context(Fd(_open_node(number, index, action)))
        set_interface(fd.number, name, IFF_TAP | IFF_NO_PI, action)
        undo.pop_all()
        return fd


def device_number(name: str, index: int) -> int:
    """The device number of a macvtap's node.

    :raise KernelRefused: when there is none, or /sys is that of another network namespace.
    """
    # The index in the path tells a sysfs of another network namespace from ours.
    path = f"{_SYSFS}/{name}/macvtap/tap{index}/dev"
    try:
        major, minor = sysfs.read(path).split(":")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise KernelRefused(
            errno.EOPNOTSUPP,
            f"open {name}",
            f"{path} does not exist: /sys must be that of this network namespace",
        ) from error
    return os.makedev(int(major), int(minor))


def _open_node(number: int, index: int, action: str) -> int:
    failures = []
    # The kernel's own (devtmpfs), where there is one: a kill -9 leaves nothing of ours then.
    node = _DEV / f"tap{index}"
    with contextlib.suppress(OSError):
        found = node.lstat()
        # It may be that of another network namespace.
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == number:
            return os.open(node, _OPEN)
    for directory in _directories():
        try:
            return _open_private_node(number, directory)
        except OSError as error:
            failures.append(f"{directory}: {error.strerror}")
    raise KernelRefused(errno.EACCES, action, f"no device node can be used ({', '.join(failures)})")


def _directories() -> list[Path]:
    """Where a node can be made: some file systems forbid devices, some are read-only."""
    directories = [_DEV]
    with contextlib.suppress(FileNotFoundError):  # a hardened service has no temporary directory
        directories.append(Path(tempfile.gettempdir()))
    return directories


def _open_private_node(number: int, directory: Path) -> int:
    private = tempfile.mkdtemp(prefix=_NODES, dir=directory)
    with ExitStack() as stack:
        stack.callback(_remove_folder, private)
        folder = os.open(private, _FOLDER)
        stack.callback(os.close, folder)
        # While it is locked, `remove_stale_nodes` leaves it alone.
        fcntl.flock(folder, fcntl.LOCK_EX)
        os.mknod("tap", 0o600 | stat.S_IFCHR, number, dir_fd=folder)
        stack.callback(_remove_node, folder)
        return os.open("tap", _OPEN, dir_fd=folder)


def remove_stale_nodes() -> list[str]:
    """Remove the nodes that a linkmgr left that was killed; return their folders. Blocks."""
    cleared = []
    for directory in _directories():
        for private in directory.glob(f"{_OLD_NODES}*"):
            with contextlib.suppress(OSError), ExitStack() as stack:
                folder = os.open(private, _FOLDER)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_left(private.name, folder):
                    _remove_node(folder)
                    private.rmdir()
                    cleared.append(str(private))
    return cleared


def _is_left(name: str, folder: int) -> bool:
    """Whether a folder is one of `_open_private_node`: ours, with nothing but a node in it."""
    if os.fstat(folder).st_uid != os.geteuid():
        return False
    match os.listdir(folder):
        case []:
            return name.startswith(_NODES)
        case ["tap"]:
            return stat.S_ISCHR(os.lstat("tap", dir_fd=folder).st_mode)
        case _:
            return False


def _remove_node(folder: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink("tap", dir_fd=folder)


def _remove_folder(private: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(private)  # noqa: PTH106 - a string
