"""The kernel modules and libraries that the test guest gets from packages of different Debians."""

from __future__ import annotations

import importlib.util
import lzma
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")


@pytest.fixture(scope="module")
def mkinitramfs() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "mkinitramfs", ROOT / "vm-images" / "mkinitramfs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernel_package(
    root: Path, *, built_in: tuple[str, ...], packed: bool, names: list[str]
) -> None:
    """Unpacked, with each of `names` as a module, virtio_net needing net_failover."""
    folder = root / "lib" / "modules" / "6.12"
    folder.mkdir(parents=True)
    listing = "".join(f"kernel/drivers/{name}.ko\n" for name in built_in)
    (folder / "modules.builtin").write_text(listing)
    for name in names:
        needs = b"net_failover" if name == "virtio_net" else b""
        code = b"\0depends=" + needs + b"\0name=" + name.encode() + b"\0"
        path = folder / f"{name.replace('_', '-')}.ko{'.xz' if packed else ''}"
        path.write_bytes(lzma.compress(code) if packed else code)


@pytest.mark.parametrize("packed", [False, True])
def test_modules_are_found_whether_compressed_or_not(
    mkinitramfs: ModuleType, tmp_path: Path, packed: bool
) -> None:
    names = ["net_failover", *mkinitramfs.MODULES]
    kernel_package(tmp_path, built_in=(), packed=packed, names=names)
    found = mkinitramfs.modules(tmp_path)
    order = [mkinitramfs.module_name(path) for path in found]
    assert sorted(order) == sorted(names)
    assert order.index("net_failover") < order.index("virtio_net")
    assert all(b"\0name=" in mkinitramfs.content(path) for path in found)


def test_a_module_that_is_built_into_the_kernel_is_none_to_load(
    mkinitramfs: ModuleType, tmp_path: Path
) -> None:
    built_in = ("virtio/virtio-pci", "char/virtio_console", "net/net_failover")
    rest = ["virtio_net", "vmxnet3", "pvpanic_mmio", "macvlan"]
    kernel_package(tmp_path, built_in=built_in, packed=True, names=rest)
    assert [mkinitramfs.module_name(path) for path in mkinitramfs.modules(tmp_path)] == rest


def test_a_module_that_is_nowhere_ends_the_build(mkinitramfs: ModuleType, tmp_path: Path) -> None:
    kernel_package(tmp_path, built_in=(), packed=True, names=["virtio_pci"])
    with pytest.raises(SystemExit, match="no module virtio_console"):
        mkinitramfs.modules(tmp_path)


def compiled(path: Path, source: str, *words: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-o", str(path), "-x", "c", "-", *words]
    subprocess.run(command, input=source, text=True, check=True)
    return path


@needs_cc
def test_a_program_that_cancels_threads_gets_the_library_that_glibc_loads_for_it(
    mkinitramfs: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "lib").mkdir()
    for soname in ("libc.so.6", "ld-linux-x86-64.so.2", "libgcc_s.so.1"):
        compiled(tmp_path / "lib" / soname, "", "-shared", "-nostdlib", f"-Wl,-soname,{soname}")
    threads = "#include <pthread.h>\nint main(void) { return pthread_cancel(pthread_self()); }\n"
    cancelling = compiled(tmp_path / "bin" / "cancelling", threads)
    plain = compiled(tmp_path / "bin" / "plain", "int main(void) { return 0; }\n")
    assert "libgcc_s.so.1" in mkinitramfs.libraries(tmp_path, [cancelling])
    assert "libgcc_s.so.1" not in mkinitramfs.libraries(tmp_path, [plain])
