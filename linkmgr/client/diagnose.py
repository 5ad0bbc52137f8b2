"""Diagnosis of a service that does not answer: its unit's state, else its process's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import socket as sockets
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from linkmgr.paths import admin_socket_path

SYSTEMD = Path("/run/systemd/system")  #: is there where systemd runs; see sd_booted(3)
HEALTH_TIMEOUT_S = 1.0  #: for /healthz, which waits for nothing but the event loop
SYSTEMCTL_TIMEOUT_S = 2.0  #: systemd itself may hang, and the user waits already
_MAX_ANSWER_BYTES = 65536  # bytes of an answer to /healthz; whatever listens there may send more
_SAMPLES, _SAMPLE_INTERVAL_S = 12, 0.3  # a unit that ends at once is mostly seen while it starts
_UNITS = ("linkmgr.service", "linkmgr.socket")
_PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "Result", "ExecMainStatus", "MainPID", "NRestarts",
    "StatusText", "Listen",
)  # fmt: skip
_SEE_LOG = "look at 'journalctl -u linkmgr -n 20'"
_RESTART = "'systemctl restart linkmgr' touches no cable"
#: What the service's exit codes say: those of the command line, and sysexits.h's EX_CONFIG.
_EXIT_REASONS: Mapping[str, tuple[str, str]] = {
    "2": ("its configuration is wrong", "'linkmgr doctor' says where; then start it again"),
    "78": (
        "its configuration is wrong",
        "'linkmgr doctor' says where; then 'systemctl restart linkmgr'",
    ),
    "238": (  # systemd.exec(5), EXIT_STATE_DIRECTORY
        "/var/lib/linkmgr must be a directory, and no symbolic link",
        "mount it there instead ('mount --bind'); then 'systemctl restart linkmgr'",
    ),
    "11": (
        "its state directory cannot be used",
        f"make room on its disk ('df /var/lib/linkmgr'), or {_SEE_LOG}",
    ),
}


@dataclass(frozen=True)
class Diagnosis:
    """Why the service does not answer.

    :param why: a clause that can follow a colon.
    :param hint: what to do, as in an error.
    """

    why: str
    hint: str


async def diagnose(path: Path) -> Diagnosis | None:
    """Find out why the service does not answer; ``None`` when it does, or nothing can be seen.

    Takes a few seconds at most.

    :param path: of its socket.
    """
    # The command itself goes over the first of these that it may use.
    for each in filter(None, (admin_socket_path(path), path)):
        with contextlib.suppress(OSError, ValueError):  # TimeoutError is an OSError
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await health(each)
                return None
    return await _unit(path) or _listener(path)


async def health(path: Path) -> str:
    """Ask the service for its version; waits as long as it takes.

    :raise OSError: no connection could be made.
    :raise ValueError: that is not how a healthy service answers.
    """
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: linkmgr\r\nConnection: close\r\n\r\n")
        await writer.drain()
        parts: list[bytes] = []
        while part := await reader.read(_MAX_ANSWER_BYTES):
            parts.append(part)
            if sum(map(len, parts)) > _MAX_ANSWER_BYTES:
                raise ValueError("its answer has no end")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head, _, body = b"".join(parts).decode(errors="replace").partition("\r\n\r\n")
    first = head.partition("\r\n")[0]
    if " 200 " not in first:
        raise ValueError(f"it says {first[:80]!r}")
    try:
        return str(json.loads(body)["version"])
    except (KeyError, TypeError):
        raise ValueError("its answer has no version") from None


async def _unit(path: Path) -> Diagnosis | None:
    """Ask systemd, if the socket is of its unit."""
    found: Diagnosis | None = None
    for sample in range(_SAMPLES):
        if sample:
            await asyncio.sleep(_SAMPLE_INTERVAL_S)
        shown = await _shown()
        if shown is None or shown[0].get("LoadState") != "loaded":
            return None
        service, socket = shown
        if not any(f"{each} " in f"{socket.get('Listen', '')} " for each in _spellings(path)):
            return None
        found = _of_unit(service, socket)
        starts = service.get("ActiveState") == "activating"
        told = service.get("StatusText") == _EXIT_REASONS["78"][0]
        if not starts or told or service.get("SubState") == "auto-restart":
            break
    return found


def _spellings(path: Path) -> set[str]:
    with contextlib.suppress(OSError, RuntimeError):
        return {str(path), str(path.resolve())}
    return {str(path)}


async def _shown() -> tuple[dict[str, str], dict[str, str]] | None:
    """Return the properties of both units, or ``None`` where there is no systemd."""
    program = shutil.which("systemctl")
    if program is None or not SYSTEMD.is_dir():
        return None
    try:
        process = await asyncio.create_subprocess_exec(
            program, "show", *_UNITS, f"--property={','.join(_PROPERTIES)}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except OSError:
        return None
    try:
        async with asyncio.timeout(SYSTEMCTL_TIMEOUT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:  # also when the answer came meanwhile, and the diagnosis is cancelled
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
    units = [_properties(text) for text in said.decode(errors="replace").split("\n\n")]
    return (units[0], units[1]) if len(units) == len(_UNITS) else None


def _properties(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    found: dict[str, str] = {}
    for name, _, value in pairs:
        found[name] = f"{found[name]} {value}" if name in found else value
    return found


def _of_unit(service: Mapping[str, str], socket: Mapping[str, str]) -> Diagnosis:
    state, detail = service.get("ActiveState", ""), service.get("SubState", "")
    if state in ("active", "reloading", "deactivating"):
        pid = int(service.get("MainPID") or 0)
        return of_process(pid) if pid else Diagnosis(f"linkmgr.service is {state}", _SEE_LOG)
    if state == "failed" or detail == "auto-restart":
        return _of_failure(service)
    if state == "activating":
        return _of_start(service)
    if socket.get("ActiveState") == "failed":
        why = f"linkmgr.socket has failed ({socket.get('Result')})"
        return Diagnosis(why, "'systemctl restart linkmgr.socket linkmgr.service'")
    why = f"linkmgr.service is {state or 'unknown'}"
    return Diagnosis(why, "'systemctl start linkmgr.socket linkmgr.service'")


def _of_start(service: Mapping[str, str]) -> Diagnosis:
    told, times = service.get("StatusText", ""), service.get("NRestarts", "0")
    if told == _EXIT_REASONS["78"][0]:  # it has told so, and is about to end
        return Diagnosis(f"linkmgr.service cannot start: {told}", _EXIT_REASONS["78"][1])
    if times != "0":
        why = f"linkmgr.service has ended and been started again {times} times"
        return Diagnosis(why, _SEE_LOG)
    more = f" ({told})" if told else ""
    return Diagnosis(f"linkmgr.service is still starting{more}", f"wait, or {_SEE_LOG}")


def _of_failure(service: Mapping[str, str]) -> Diagnosis:
    code, result = service.get("ExecMainStatus", ""), service.get("Result", "")
    told = service.get("StatusText", "")
    what, hint = _EXIT_REASONS.get(code, ("", f"{_SEE_LOG}; then 'systemctl restart linkmgr'"))
    if result not in ("exit-code", "success", "start-limit-hit"):
        what, hint = "", f"{_SEE_LOG}; then 'systemctl restart linkmgr'"
    cause = f"exit code {code}" if result == "exit-code" else result
    state = "has failed" if service.get("ActiveState") == "failed" else "ends whenever it starts"
    reason = told or what
    return Diagnosis(f"linkmgr.service {state} ({cause})" + (f": {reason}" if reason else ""), hint)


def _listener(path: Path) -> Diagnosis | None:
    """Look at the process that listens on the socket, as the kernel names it."""
    form = "3i"  # struct ucred
    try:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.connect(str(path))
            raw = sock.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, struct.calcsize(form))
    except OSError as error:
        if error.errno == errno.EAGAIN:
            why = "nothing takes the connections that wait on its socket"
            return Diagnosis(why, f"{_SEE_LOG}; {_RESTART}")
        return None
    pid: int = struct.unpack(form, raw)[0]
    return of_process(pid) if pid > 1 else None  # 1 is systemd, 0 another pid namespace's


def of_process(pid: int, proc: Path = Path("/proc")) -> Diagnosis:
    """Diagnose a process that should answer, by its state (proc(5))."""
    try:
        state = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return Diagnosis(f"its process {pid} cannot be seen", f"{_SEE_LOG}, or start it again")
    match state:
        case "T":
            return Diagnosis(f"its process {pid} is stopped", f"'kill -CONT {pid}' lets it go on")
        case "t":
            return Diagnosis(f"a debugger holds its process {pid}", "let it go on there")
        case "D":
            why = f"its process {pid} waits for the kernel, as for a disk that hangs"
            return Diagnosis(why, f"look at 'dmesg', and at 'cat /proc/{pid}/stack' as root")
        case "Z" | "X":
            return Diagnosis(f"its process {pid} has ended", f"{_SEE_LOG}; start it again")
        case _:
            return Diagnosis(f"its process {pid} is busy, or hangs", f"{_SEE_LOG}; {_RESTART}")
