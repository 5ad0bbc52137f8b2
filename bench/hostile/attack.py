"""``python -m bench.hostile.attack NAME TARGET UID SECONDS``: an attacker in a process of its own.

Each attacker knows the service's protocol and nothing else of it: only the standard library. It
becomes the user UID first and ends by itself after SECONDS. TARGET is a socket of the service, or
one of `bench.hostile.sink`, which reads alike and answers little.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["LOCAL", "NAMES"]

ROUND_INTERVAL_S = 0.001  # seconds between two rounds: a flood, not a spinning attacker
CONNECTIONS = 200  # connections at once
LINGER_S = 3600  # seconds for which the kernel would wait in close()
ELEMENTS = 330_000  # of a domain's metadata
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""},
                    "capabilities": ["oob"]}}  # fmt: skip


def _http(method: str, path: str, body: bytes = b"", header: str = "") -> bytes:
    head = {"Host": "linkmgr"}
    if header:
        name, _, value = header.partition(": ")
        head[name] = value
    if not header.startswith("Transfer-Encoding"):
        head["Content-Length"] = str(len(body))
    if body:
        head["Content-Type"] = "application/json"
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _connect(target: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.settimeout(1.0)
    try:
        sock.connect(target)
    except OSError:
        sock.close()
        return None
    return sock


def _until(end: float) -> Iterator[None]:
    while time.monotonic() < end:
        yield
        time.sleep(ROUND_INTERVAL_S)


def _flood(target: str, end: float, request: bytes, connections: int) -> None:
    """Ask the same on many connections, without waiting for one answer before the next question."""
    with selectors.DefaultSelector() as waiting:
        for _ in _until(end):
            while len(waiting.get_map()) < connections:
                sock = _connect(target)
                if sock is None:
                    break
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    sock.send(request)
                waiting.register(sock, selectors.EVENT_READ)
            for key, _ in waiting.select(0.01):
                sock = key.fileobj  # type: ignore[assignment]  # see the assert
                assert isinstance(sock, socket.socket)
                try:
                    alive = bool(sock.recv(1 << 16))
                    if alive:
                        sock.send(request)
                except BlockingIOError:
                    continue
                except OSError:
                    alive = False
                if not alive:
                    waiting.unregister(sock)
                    sock.close()
        for key in list(waiting.get_map().values()):
            sock = key.fileobj  # type: ignore[assignment]  # see the assert
            assert isinstance(sock, socket.socket)
            sock.close()


def checks(target: str, end: float) -> None:
    """Have everything checked, on as many connections as there may be."""
    _flood(target, end, _http("GET", "/v1/check"), 256)


def lists(target: str, end: float) -> None:
    """Have every list made."""
    _flood(target, end, _http("GET", "/v1/nics"), CONNECTIONS)


def connects(target: str, end: float) -> None:
    """Connect and hang up, as often as it goes."""
    for _ in _until(end):
        for _ in range(20):
            if (sock := _connect(target)) is not None:
                sock.close()


def refusals(target: str, end: float) -> None:
    """Ask for what is refused, so that each request is looked into and logged."""
    body = json.dumps({"target": "nowhere"}).encode()
    _flood(target, end, _http("PUT", "/v1/connections/vm0/net0", body), 64)


def bodies(target: str, end: float) -> None:
    """Send bodies that are too large, or never end."""
    for _ in _until(end):
        if (sock := _connect(target)) is not None:
            with sock, contextlib.suppress(OSError):
                sock.sendall(_http("POST", "/v1/networks", header="Transfer-Encoding: chunked"))
                for _ in range(64):
                    sock.sendall(b"10000\r\n" + b"[" * 0x10000 + b"\r\n")


def lingering(target: str, end: float) -> None:
    """Send fds whose last close() waits for an hour: sockets with unsent data and SO_LINGER."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in _until(end):
            pid = os.fork()
            if not pid:
                with contextlib.suppress(OSError):
                    _send_lingering(target, server)
                os._exit(0)
            _KEPT.append(server.accept()[0])
            time.sleep(0.05)
            # It hangs if it was the last one to close; a process that is killed does not wait.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _send_lingering(target: str, server: socket.socket) -> None:
    slow = socket.create_connection(server.getsockname())
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
    slow.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            slow.send(b"x" * (1 << 16))
    sock = _connect(target)
    if sock is not None:
        socket.send_fds(sock, [_http("GET", "/v1/nics")], [slow.fileno()])
        slow.close()  # at once, so that what the message holds is the last reference


_KEPT: list[socket.socket] = []  # peers that never read


def fds(target: str, end: float) -> None:
    """Leave fds that are refused, on the socket for them."""
    with Path("/dev/null").open("rb") as null:
        for number, _ in enumerate(_until(end)):
            sock = _connect(target, socket.SOCK_SEQPACKET)
            if sock is None:
                continue
            with sock, contextlib.suppress(OSError):
                packet = json.dumps({"name": f"x{number}"}).encode()
                socket.send_fds(sock, [packet], [null.fileno()] * 8)
                sock.recv(1 << 16)


def dials(target: str, end: float) -> None:
    """Call the service as a QEMU would, again and again, and greet it."""
    kept: list[socket.socket] = []
    greeting = json.dumps(GREETING).encode() + b"\r\n"
    for _ in _until(end):
        if (sock := _connect(target)) is not None:
            with contextlib.suppress(OSError):
                sock.sendall(greeting)
            kept.append(sock)
        for old in kept[: len(kept) - CONNECTIONS]:
            old.close()
        del kept[: len(kept) - CONNECTIONS]
    for sock in kept:
        sock.close()


def streams(target: str, end: float) -> None:
    """Listen for events on many connections and read none of them."""
    kept: list[socket.socket] = []
    for _ in _until(end):
        if len(kept) < CONNECTIONS and (sock := _connect(target)) is not None:
            with contextlib.suppress(OSError):
                sock.sendall(_http("GET", "/v1/events"))
            kept.append(sock)
    for sock in kept:
        sock.close()


def operations(target: str, end: float) -> None:
    """Have operations of the attacker's own slow guest queue up, waiting for none."""
    body = json.dumps({"target": "red"}).encode()
    asked = _http("PUT", "/v1/connections/mine/net0", body, header="Prefer: respond-async")
    _flood(target, end, asked, 64)


def metadata(target: str, end: float) -> None:
    """Be the author of a domain's XML, which libvirt's hook hands over."""
    empty = "<a/>\n" * ELEMENTS
    xml = f"<domain type='qemu'><name>d</name><metadata>{empty}</metadata></domain>"
    call = {"operation": "prepare", "sub_operation": "begin", "extra": "-", "name": "d", "xml": xml}
    request = _http("POST", "/v1/libvirt/hook", json.dumps(call).encode())
    for _ in _until(end):
        if (sock := _connect(target)) is not None:
            with sock, contextlib.suppress(OSError):
                sock.settimeout(30.0)
                sock.sendall(request)
                sock.recv(1 << 16)
        time.sleep(0.1)


# --- a QEMU that was taken over -------------------------------------------------------------------


class _Monitor:
    """A real QEMU's monitor at `qemu`, with what the attacker adds, for whoever dials `target`.

    `change` may rewrite an answer; `extra` is sent whenever the client has room for it.
    """

    def __init__(
        self,
        target: str,
        extra: Callable[[], bytes] = lambda: b"",
        change: Callable[[bytes, str], bytes] = lambda line, _: line,
    ) -> None:
        self._target = target
        self._extra = extra
        self._change = change

    def run(self, end: float) -> None:
        Path(self._target).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(self._target)
            Path(self._target).chmod(0o666)
            server.listen(8)
            server.settimeout(0.1)
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    client, _ = server.accept()
                    with client:
                        self._serve(client, end)

    def _serve(self, client: socket.socket, end: float) -> None:
        qemu = _connect(f"{self._target}.real")
        if qemu is None:
            return
        with qemu:
            client.setblocking(False)
            qemu.setblocking(False)
            asked: list[str] = []
            answers, commands, pending, greeted = b"", "", b"", False
            while time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    data, got, _, _ = socket.recv_fds(client, 1 << 16, 8)
                    if not data:
                        return
                    socket.send_fds(qemu, [data], got)
                    for fd in got:
                        os.close(fd)
                    commands += data.decode()
                    commands = _names(commands, asked)
                with contextlib.suppress(BlockingIOError):
                    data = qemu.recv(1 << 20)
                    if not data:
                        return
                    *lines, answers = (answers + data).split(b"\n")
                    for line in lines:
                        name = asked.pop(0) if b'"return"' in line and asked else ""
                        pending += self._change(line, name) + b"\n"
                        greeted = greeted or name == "qmp_capabilities"
                if not pending and greeted:
                    pending = self._extra()
                if pending:
                    with contextlib.suppress(BlockingIOError):
                        pending = pending[client.send(pending) :]
                time.sleep(ROUND_INTERVAL_S)


def _names(text: str, into: list[str]) -> str:
    """Note the commands in `text`; return what is not whole yet."""
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        try:
            command, length = decoder.raw_decode(text)
        except ValueError:
            break
        into.append(command.get("execute") or command.get("exec-oob") or "")
        text = text[length:]
    return text


def _event(name: str, data: object) -> bytes:
    stamp = {"seconds": 1, "microseconds": 1}
    return json.dumps({"timestamp": stamp, "event": name, "data": data}).encode() + b"\r\n"


def events(target: str, end: float) -> None:
    """Send small events without a pause."""
    some = _event("NIC_RX_FILTER_CHANGED", {"name": "net0", "path": "/x"})
    _Monitor(target, extra=lambda: some * 500).run(end)


def reasons(target: str, end: float) -> None:
    """Say with 9 MB that the guest shuts down, again and again."""
    large = _event("SHUTDOWN", {"guest": False, "reason": "x" * (9 << 20)})
    _Monitor(target, extra=lambda: large).run(end)


def brackets(target: str, end: float) -> None:
    """Send a message of 7.5 MB that consists of empty lists."""
    large = _event("X", [[] for _ in range(1_800_000)])
    _Monitor(target, extra=lambda: large).run(end)


def hubs(target: str, end: float) -> None:
    """Answer `info network` with 45,000 hubs."""
    said = "".join(f"hub {number}\r\n" for number in range(45_000))

    def change(line: bytes, name: str) -> bytes:
        if name != "human-monitor-command":
            return line
        answer = json.loads(line)
        answer["return"] = str(answer["return"]) + said
        return json.dumps(answer).encode()

    _Monitor(target, change=change).run(end)


def hangups(target: str, end: float) -> None:
    """Greet whoever dials and hang up at once."""
    Path(target).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(target)
        Path(target).chmod(0o666)
        server.listen(8)
        server.settimeout(0.1)
        for _ in _until(end):
            with contextlib.suppress(OSError):
                client, _ = server.accept()
                client.sendall(json.dumps(GREETING).encode() + b"\r\n")
                client.close()


#: What a local user, or root's hook for an author of XML, does: against a socket of the service.
LOCAL: dict[str, Callable[[str, float], None]] = {
    "checks": checks, "lists": lists, "connects": connects, "refusals": refusals,
    "bodies": bodies, "lingering": lingering, "fds": fds, "dials": dials, "streams": streams,
    "operations": operations, "metadata": metadata,
}  # fmt: skip
#: What a QEMU does: it listens, and the service dials.
QEMU: dict[str, Callable[[str, float], None]] = {
    "events": events, "reasons": reasons, "brackets": brackets, "hubs": hubs, "hangups": hangups,
}  # fmt: skip
NAMES = (*LOCAL, *QEMU)


def main(name: str, target: str, uid: int, seconds: float) -> None:
    """Attack until the time is over."""
    "".encode("idna")  # loads its module, which may lie in a directory of root's
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    (LOCAL | QEMU)[name](target, time.monotonic() + seconds)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
