"""A FUSE file system whose server takes requests and never answers one."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN = struct.Struct("<IIQQIIII")  # struct fuse_in_header: length, opcode, unique, node, ...
_OUT = struct.Struct("<IiQ")  # struct fuse_out_header: length, error, unique
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")  # struct fuse_init_out
INIT = 26
MNT_DETACH = 2


@contextmanager
def silent_fuse(folder: Path) -> Iterator[None]:
    """Mount one, which everybody may enter. At the end all who wait for it get an error."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"silent", os.fsencode(folder), b"fuse.silent", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    wake, stop = os.pipe()
    try:
        _greet(device)
        with _Taking(device, wake, stop):
            yield
    finally:
        os.close(device)  # the last one: the kernel ends all that wait
        libc.umount2(os.fsencode(folder), MNT_DETACH)


def _greet(device: int) -> None:
    request = os.read(device, 1 << 17)
    _, opcode, unique, *_ = _IN.unpack_from(request)
    assert opcode == INIT
    body = _INIT_OUT.pack(7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 0, 0, 0)
    os.write(device, _OUT.pack(_OUT.size + len(body), 0, unique) + body)


class _Taking:
    """Reads requests, as a server does that is then stuck."""

    def __init__(self, device: int, wake: int, stop: int) -> None:
        self._wake, self._stop = wake, stop
        self._thread = threading.Thread(target=self._take, args=(device,), daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        os.close(self._stop)
        self._thread.join()
        os.close(self._wake)

    def _take(self, device: int) -> None:
        os.set_blocking(device, False)
        while True:
            ready, _, _ = select.select([device, self._wake], [], [])
            if self._wake in ready:
                return
            os.read(device, 1 << 17)
