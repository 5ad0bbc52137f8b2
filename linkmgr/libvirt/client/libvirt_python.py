"""libvirt-python, loaded when it is needed, and what its errors mean.

It is a C extension against the libvirt of the host, so a distribution's own (``python3-libvirt``)
is the one that fits and the one that a package of linkmgr can ask for. It lies in a directory that
a virtual environment does not look into, and that holds much that ours must not see: only the files
of libvirt-python are taken from there.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

from linkmgr.errors import LibvirtError, LibvirtRefused, LibvirtUnreachable

#: Where Debian and its kin keep Python packages of the distribution.
SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"
_MODULES = frozenset({"libvirt", "libvirtmod", "libvirt_qemu", "libvirtmod_qemu"})
_INSTALL = "'apt install python3-libvirt', or 'pip install linkmgr[libvirt]' for another Python"


class _Finder:
    """Finds libvirt-python, and nothing else, among the distribution's packages."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Called by Python's import when nobody before knew the module."""
        del path, target
        if name not in _MODULES:
            return None
        return importlib.machinery.PathFinder.find_spec(name, [SYSTEM_PACKAGES])


def load_libvirt_python() -> Any:
    """libvirt-python: a namespace with `libvirt` and `qemu`.

    Blocks for the time of an import, the first time.

    :raise LibvirtUnreachable: it is not installed, or does not fit this Python or this libvirt.
    """
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
    try:
        return SimpleNamespace(
            libvirt=importlib.import_module("libvirt"),
            qemu=importlib.import_module("libvirt_qemu"),
        )
    except ImportError as error:
        raise LibvirtUnreachable(f"libvirt-python cannot be used: {error}", hint=_INSTALL) from None


def from_libvirt_error(error: Exception, what: str, *, alive: bool) -> LibvirtError:
    """Turn a ``libvirtError`` into one of ours.

    :param what: that was asked, for the text: "the XML of web1".
    :param alive: whether the connection still is.
    """
    reader: Any = error
    number = int(reader.get_error_code() or 0)
    text = " ".join(str(reader.get_error_message() or error).split())
    if not alive:
        return LibvirtUnreachable(
            f"{what}: the connection to libvirt ended before the answer ({text})",
            hint="it is connected again by itself; look whether libvirtd runs",
            sent=True,
        )
    if number == LibvirtRefused.NO_DOMAIN:
        hint = "see 'virsh list --all'"
    else:
        hint = "see libvirt's own log, 'journalctl -u libvirtd -u virtqemud'"
    return LibvirtRefused(f"{what}: libvirt refused: {text}", number=number, hint=hint)
