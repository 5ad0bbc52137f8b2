"""``python -m bench.hostile.sink KIND PATH``: what an attacker is aimed at instead of the service.

``stream`` and ``seqpacket`` listen on PATH, read everything, and answer each read with an empty
HTTP answer, which costs less than any service could; ``dial`` connects to the attacker's monitor as
the service would, says hello, asks once a second what the service asks, and discards the rest.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time
from pathlib import Path

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
NEGOTIATE = b'{"execute": "qmp_capabilities", "id": 1}\n'
INFO_NETWORK = (
    b'{"execute": "human-monitor-command", "arguments": {"command-line": "info network"},'
        b' "id": 2}\n')  # fmt: skip
LIST_INTERVAL_S = 1.0
RECONNECT_INTERVAL_S = 0.5


def listen(path: str, kind: socket.SocketKind) -> None:
    """Read and discard until killed."""
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as server, selectors.DefaultSelector() as waiting:
        server.bind(path)
        Path(path).chmod(0o666)
        server.listen(512)
        server.setblocking(False)
        waiting.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is server:
                    with contextlib.suppress(OSError):
                        client, _ = server.accept()
                        client.setblocking(False)
                        waiting.register(client, selectors.EVENT_READ)
                    continue
                if not _read(sock):
                    waiting.unregister(sock)
                    sock.close()


def _read(sock: socket.socket) -> bool:
    try:
        data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 8)
    except BlockingIOError:
        return True
    except OSError:
        return False
    for fd in fds:
        with contextlib.suppress(OSError):  # an attacker's fd, whose close() may wait
            if not _waits(fd):
                os.close(fd)
    if data:
        with contextlib.suppress(OSError):
            sock.send(ANSWER)
    return bool(data)


def _waits(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")  # noqa: PTH115 - no Path is wanted


def dial(path: str) -> None:
    """Connect, say hello, ask and discard until killed."""
    while True:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.settimeout(LIST_INTERVAL_S)
            sock.sendall(NEGOTIATE)
            asked = 0.0
            while True:
                if time.monotonic() - asked > LIST_INTERVAL_S:
                    asked = time.monotonic()
                    sock.sendall(INFO_NETWORK)
                with contextlib.suppress(TimeoutError):
                    if not sock.recv(1 << 16):
                        break
        time.sleep(RECONNECT_INTERVAL_S)


if __name__ == "__main__":
    if sys.argv[1] == "dial":
        dial(sys.argv[2])
    else:
        listen(sys.argv[2], getattr(socket, f"SOCK_{sys.argv[1].upper()}"))
