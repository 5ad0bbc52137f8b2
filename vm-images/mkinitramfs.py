#!/usr/bin/env python3
"""Pack the test guest's initramfs: same inputs, same bytes.

A small cpio writer of our own instead of cpio(1): inode numbers, times, owners and order are
decided here, so that neither the file system nor the clock of the machine that builds can get in.
Kernel modules and shared libraries bring what they depend on, read from the files themselves.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

DIRECTORY, FILE, SYMLINK, DEVICE = 0o040755, 0o100755, 0o120777, 0o020600

# virtio first: without udev, interfaces are numbered in the order in which drivers are loaded.
# pvpanic_mmio, last, tells QEMU of a panic: libvirt's <panic model='isa'/>.
MODULES = ("virtio_pci", "virtio_console", "virtio_net", "vmxnet3", "pvpanic_mmio", "macvlan")
PROGRAMS = ("usr/bin/iperf3", "usr/bin/tcpdump")


def content(module: Path) -> bytes:
    """Return a module as insmod takes it; later Debians keep theirs compressed."""
    packed = module.read_bytes()
    return lzma.decompress(packed) if module.suffix == ".xz" else packed


def depends(module: Path) -> list[str]:
    """Return the modules that MODULE names in its .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", content(module))
    return [name for name in (found[1].decode() if found else "").split(",") if name]


def module_name(path: Path) -> str:
    """Return the name that a module's file stands for, as other modules depend on it."""
    return path.name.partition(".")[0].replace("-", "_")


def modules(root: Path) -> list[Path]:
    """MODULES and all that they need, in an order in which insmod can load them."""
    by_name = {module_name(path): path for path in root.glob("lib/modules/**/*.ko*")}
    (listing,) = root.glob("lib/modules/*/modules.builtin")
    built_in = {module_name(Path(line)) for line in listing.read_text().split()}
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = by_name.get(name)
        if name in built_in:
            return
        if path is None:
            raise SystemExit(f"the kernel package has no module {name}")
        for dependency in depends(path):
            add(dependency)
        if path not in ordered:
            ordered.append(path)

    for name in MODULES:
        add(name)
    return ordered


def libraries(root: Path, programs: list[Path]) -> dict[str, Path]:
    """Soname -> file of every shared library that PROGRAMS need, the dynamic loader included."""
    inside = root.resolve()  # an absolute symlink leads to a library of this machine
    candidates = (path for path in sorted(root.glob("**/*.so*")) if path.is_file())
    by_soname = {path.name: path for path in candidates if path.resolve().is_relative_to(inside)}
    found: dict[str, Path] = {}
    todo = list(programs)
    while todo:
        binary = todo.pop()
        listing = subprocess.run(
            ["objdump", "-p", binary], check=True, capture_output=True, text=True
        ).stdout
        needed = re.findall(r"^\s+NEEDED\s+(\S+)", listing, re.MULTILINE)
        if not binary.name.startswith("libc.") and b"pthread_cancel\0" in binary.read_bytes():
            needed.append("libgcc_s.so.1")  # glibc loads it only then, by dlopen(3)
        for soname in needed:
            if soname not in by_soname:
                raise SystemExit(f"{binary.name} needs {soname}: the unpacked packages have none")
            if soname not in found:
                found[soname] = by_soname[soname].resolve()
                todo.append(found[soname])
    return found


def tree(root: Path, init: Path, frames: Path) -> Iterator[tuple[str, int, bytes]]:
    """Everything in the image as (name, mode, content), parents before children."""
    for name in ("bin", "dev", "etc", "lib", "lib64", "lib/modules", "proc", "run", "sys", "tmp"):
        yield name, DIRECTORY, b""
    yield "dev/console", DEVICE, b""
    yield "init", FILE, init.read_bytes()
    yield "etc/udhcpc.script", SYMLINK, b"/init"
    yield "bin/busybox", FILE, (root / "bin/busybox").read_bytes()
    yield "bin/sh", SYMLINK, b"busybox"
    yield "bin/frames", FILE, frames.read_bytes()
    programs = [root / program for program in PROGRAMS]
    for program in programs:
        yield f"bin/{program.name}", FILE, program.read_bytes()
    for soname, path in sorted(libraries(root, programs).items()):
        folder = "lib64" if soname.startswith("ld-linux") else "lib"
        yield f"{folder}/{soname}", FILE, path.read_bytes()
    order = modules(root)
    for path in order:
        yield f"lib/modules/{path.name.removesuffix('.xz')}", FILE, content(path)
    names = "".join(f"/lib/modules/{path.name.removesuffix('.xz')}\n" for path in order)
    yield "lib/modules/order", FILE, names.encode()


def cpio(entries: Iterator[tuple[str, int, bytes]]) -> bytes:
    """Write a "newc" archive (Linux: driver-api/early-userspace/buffer-format.rst)."""
    archive = bytearray()

    def append(inode: int, name: str, mode: int, data: bytes) -> None:
        major, minor = (5, 1) if mode == DEVICE else (0, 0)  # the only device: /dev/console
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
        archive.extend(b"070701" + b"".join(b"%08X" % field for field in fields))
        for part in (name.encode() + b"\0", data):
            archive.extend(part)
            archive.extend(b"\0" * (-len(archive) % 4))

    for inode, entry in enumerate(entries, start=1):
        append(inode, *entry)
    append(0, "TRAILER!!!", 0, b"")
    return bytes(archive)


def main() -> None:
    """Pack what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, required=True, help="the unpacked Debian packages")
    parser.add_argument("--frames", type=Path, required=True, help="the frames program")
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    archive = cpio(tree(arguments.root, arguments.init, arguments.frames))
    arguments.output.write_bytes(gzip.compress(archive, compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
