"""The socket: ours, a dead service's, a living one's, systemd's."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.errors import BadRequest, Conflict, HostError
from linkmgr.service.listeners import listening
from linkmgr.state.lock_file import LOCK_FILE_NAME
from linkmgr.testing.process import until
from tests.unit.service_lab import read_answer, request

# Takes its place as systemd would: the sockets from fd 3 on, and the variables about them.
SERVE = """
import asyncio, os, sys
from pathlib import Path
path, config, names, fds = sys.argv[1:5]
if names:
    numbers = [int(each) for each in fds.split(",")]
    spare = [os.dup(each) for each in numbers]
    for at, each in enumerate(spare):
        os.dup2(each, 3 + at)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(spare)),
                   "LISTEN_FDNAMES": names}
from linkmgr.service.main import serve
asyncio.run(serve(Path(path), None, Path(config) if config else None))
unwanted = {"httpx", "rich", "libvirt", "linkmgr.client", "linkmgr.cli"} & sys.modules.keys()
sys.exit(f"loaded: {unwanted}" if unwanted else 0)
"""


async def test_everybody_may_connect_and_the_socket_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new/api.sock"
    async with listening(path) as sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert not path.exists()


async def test_a_dead_services_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with listening(path):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


async def test_a_living_services_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with listening(path):
        before = path.stat().st_ino
        with pytest.raises(Conflict, match=r"listens on .* already"):
            async with listening(path):
                pass
        assert path.stat().st_ino == before


async def test_of_many_services_that_start_at_once_one_has_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    done = asyncio.Event()

    async def start() -> bool:
        try:
            async with listening(path):
                await done.wait()
        except Conflict:
            return False
        return True

    starts = [asyncio.create_task(start()) for _ in range(8)]
    await asyncio.sleep(0.5)
    done.set()
    assert sorted(await asyncio.gather(*starts)) == [False] * 7 + [True]


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(Conflict, match="not a socket"):
        async with listening(path):
            pass
    assert path.read_text() == "precious"
    with pytest.raises(BadRequest, match="too long"):
        async with listening(tmp_path / ("x" * 120)):
            pass
    with pytest.raises(HostError, match="cannot be made"):
        async with listening(Path("/proc/api.sock")):
            pass


async def test_a_socket_that_another_has_put_there_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as other:
        async with listening(path):
            path.unlink()
            other.bind(str(path))
        assert path.exists()


@contextlib.asynccontextmanager
async def service(
    path: Path, *, config: str = "", passed: dict[str, socket.socket] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `serve` in a process of its own, until it answers; end it with SIGTERM."""
    given = passed or {}
    fds = [sock.fileno() for sock in given.values()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, str(path), config, ":".join(given), ",".join(map(str, fds)),
        pass_fds=fds, stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            while b"ready" not in (line := await process.stderr.readline()):
                assert line, f"it ended with {await process.wait()}"
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, log.decode()


async def ask(path: Path, where: str) -> object:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(request("GET", where))
        answer = await read_answer(reader)
        assert answer.status == 200
        return answer.json
    finally:
        writer.close()
        await writer.wait_closed()


async def test_the_service_answers_until_it_is_told_to_end(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with service(path) as process:
        assert await ask(path, "/v1/nics") == {"nics": []}
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0])
        assert resident < 80_000, f"{resident} KiB without any VM"
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVE, str(path), "", "", "", stderr=asyncio.subprocess.PIPE
        )
        _, log = await asyncio.wait_for(second.communicate(), 20)
        assert second.returncode
        assert f"a service listens on {path} already" in log.decode()
        assert await ask(path, "/healthz")
    assert list(tmp_path.iterdir()) == []


async def test_a_socket_of_systemd_is_answered_and_stays(tmp_path: Path) -> None:
    path, unused = tmp_path / "systemd.sock", tmp_path / "unused.sock"
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as other:
        sock.bind(str(path))
        sock.listen()
        async with service(unused, passed={"other": other, "api": sock}):
            assert await ask(path, "/healthz")
            assert not unused.exists()
        assert path.exists()
        async with service(unused, passed={"api": sock}):
            assert await ask(path, "/healthz"), "the next run has the same socket"


async def test_a_reload_reaches_the_whole_service(tmp_path: Path) -> None:
    path, config = tmp_path / "api.sock", tmp_path / "linkmgr.toml"
    text = "[networks.{}]\ndriver = 'bridge'\noptions = {{ bridge = 'br0' }}\n"
    config.write_text(text.format("blue"))

    async def names() -> list[str]:
        found = json.loads(json.dumps(await ask(path, "/v1/networks")))
        return [each["name"] for each in found["networks"]]

    async with service(path, config=str(config)) as process:
        assert await names() == ["blue"]
        config.write_text(text.format("green"))
        os.kill(process.pid, signal.SIGHUP)

        async def reloaded() -> bool:
            return await names() == ["green"]

        await until(reloaded, timeout=10, what="the configuration is in force")


async def test_a_service_with_a_bad_configuration_does_not_start(tmp_path: Path) -> None:
    config = tmp_path / "linkmgr.toml"
    config.write_text("[limits]\nevnts = 1\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, str(tmp_path / "api.sock"), str(config), "", "",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, log = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode
    assert "line 2: limits.evnts" in log.decode()
    assert not (tmp_path / "api.sock").exists()


async def test_a_lock_that_anybody_can_have_keeps_no_service_from_starting(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    fd = os.open(run, os.O_RDONLY)  # as anybody may
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        async with asyncio.timeout(2), listening(run / "api.sock"):
            assert not (run / LOCK_FILE_NAME).exists()
    finally:
        os.close(fd)


@pytest.mark.parametrize("planted", ["open to all", "link", "fifo"])
async def test_a_lock_file_that_others_can_open_is_not_used(tmp_path: Path, planted: str) -> None:
    lock = tmp_path / LOCK_FILE_NAME
    match planted:
        case "open to all":
            lock.touch()
            lock.chmod(0o644)
        case "link":
            lock.symlink_to(tmp_path / "elsewhere")
        case "fifo":
            os.mkfifo(lock, 0o600)
    with pytest.raises(Conflict, match="not a lock file of ours"):
        async with asyncio.timeout(2), listening(tmp_path / "api.sock"):
            pass
    assert not (tmp_path / "elsewhere").exists()
