"""An output file that is a device, a pipe or a link stays one."""

from __future__ import annotations

import asyncio
import os
import shlex
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.cli import outfile
from linkmgr.cli.outfile import write_output
from linkmgr.errors import HostError
from tests.unit.cli_runner import run
from tests.unit.http_peer import FakeService, serving

TEXT = "linkmgr_vms 1\n"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    async with serving(tmp_path) as made:
        made.script = lambda exchange: exchange.answer(TEXT, kind="text/plain")
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def _null(folder: Path) -> Path:
    """A device like /dev/null, which a fault may take away."""
    node = folder / "null"
    try:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        node.open("wb").close()
    except PermissionError:
        pytest.skip("needs root and a file system with devices")
    return node


async def test_metrics_into_a_device_leave_the_device_there(
    service: FakeService, folder: Path
) -> None:
    node = _null(folder)
    result = await run(service.path, "metrics", "--textfile", str(node))
    assert (result.exit_code, result.output) == (0, "")
    assert stat.S_ISCHR(node.stat().st_mode)
    assert list(folder.iterdir()) == [node]


async def test_a_link_to_a_device_is_followed(service: FakeService, folder: Path) -> None:
    node = _null(folder)
    (folder / "link").symlink_to("null")
    assert (await run(service.path, "metrics", "--textfile", str(folder / "link"))).exit_code == 0
    assert (folder / "link").is_symlink()
    assert stat.S_ISCHR(node.stat().st_mode)


async def test_a_terminal_is_written_through(service: FakeService, folder: Path) -> None:
    ours, theirs = os.openpty()
    try:
        result = await run(service.path, "metrics", "--textfile", os.ttyname(theirs))
        assert (result.exit_code, result.output) == (0, "")
        assert os.read(ours, 100) == b"linkmgr_vms 1\r\n"
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("target", ["there.prom", "new.prom"])
async def test_a_link_to_a_file_stays_a_link_and_the_file_is_replaced(
    service: FakeService, folder: Path, target: str
) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "there.prom").write_text("old")
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to(f"sub/{target}")
    assert (await run(service.path, "metrics", "--textfile", str(folder / "one"))).exit_code == 0
    assert (folder / "one").is_symlink()
    assert (folder / "two").is_symlink()
    assert (folder / "sub" / target).read_text() == TEXT
    assert not (folder / "sub" / target).is_symlink()


async def test_links_in_a_circle_are_an_error_in_a_sentence(
    service: FakeService, folder: Path
) -> None:
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    result = await run(service.path, "metrics", "--textfile", str(folder / "one"))
    assert result.exit_code == 6
    assert "cannot be written: Too many levels of symbolic links. To do: " in result.stderr


async def test_a_dash_is_stdout(
    service: FakeService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = await run(service.path, "metrics", "--textfile", "-")
    assert (result.exit_code, result.stdout) == (0, TEXT)
    assert list(folder.iterdir()) == []
    await run(service.path, "metrics", "--textfile", "./-")
    assert (folder / "-").read_text() == TEXT


@pytest.mark.parametrize("target", ["/proc/self/fd/1", "/dev/fd/1", "fds/1"])
async def test_a_link_to_stdout_is_stdout_whatever_that_is(
    service: FakeService, folder: Path, target: str
) -> None:
    # As /dev/stdout is one; a fault would take that away from the whole host.
    (folder / "fds").symlink_to("/proc/self/fd")
    link = folder / "stdout"
    link.symlink_to(target)
    out = folder / "out"
    main = [sys.executable, "-c", "from linkmgr.cli import main; main()"]
    script = f"echo before; {shlex.join([*main, 'metrics', '--textfile', str(link)])}; echo after"
    environment = os.environ | {"LINKMGR_SOCKET": str(service.path)}
    for piped in (True, False):
        with out.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                "sh", "-c", script,
                stdout=subprocess.PIPE if piped else file, env=environment,
            )  # fmt: skip
            said, _ = await process.communicate()
        assert (said if piped else out.read_bytes()).decode() == f"before\n{TEXT}after\n"
    assert link.is_symlink()


async def test_a_named_pipe_is_written_through(service: FakeService, folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    result = await run(service.path, "metrics", "--textfile", str(pipe))
    assert result.exit_code == 0, result.output
    reader.join(5)
    assert read == [TEXT]
    assert pipe.is_fifo()


def test_a_named_pipe_may_get_its_reader_a_little_later(folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_output, args=(str(pipe), TEXT), daemon=True)
    writer.start()
    writer.join(0.2)
    assert writer.is_alive()
    assert pipe.read_text() == TEXT
    writer.join(5)
    assert not writer.is_alive()


def test_a_named_pipe_that_nobody_reads_is_an_error_after_a_while(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outfile, "READER_TIMEOUT_S", 0.2)
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(HostError, match="start what reads from it first"):
        write_output(str(pipe), TEXT)


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_keeps_its_mode_and_owner(folder: Path, mode: int) -> None:
    file = folder / "x.prom"
    file.write_text("old")
    file.chmod(mode)
    if os.geteuid() == 0:
        os.chown(file, 65534, 12345)
    before = file.stat()
    write_output(str(file), TEXT)
    after = file.stat()
    assert file.read_text() == TEXT
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip
    assert after.st_ino != before.st_ino, "it was replaced as a whole"


def test_a_long_name_and_odd_letters_are_taken(folder: Path) -> None:
    for name in ("x" * 255, "\u0416 \udcff"):
        write_output(str(folder / name), TEXT)
        assert (folder / name).read_text() == TEXT
    assert len(list(folder.iterdir())) == 2
