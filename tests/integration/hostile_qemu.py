"""A QEMU that was taken over: speaks QMP until it has been added, then does its worst.

``python -m tests.integration.hostile_qemu SOCKET HOW SECONDS``: listens there, serves one client
after another, and begins HOW when a file SOCKET.go exists. Ends by itself.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tests.unit.hypervisors.qemu.test_qmp_features import SCHEMA, VERSION
from tests.unit.qmp_peer import GREETING

FLOODS: dict[str, bytes] = {
    "small events": b'{"event":"X"}\n' * 4000,
    "wanted events": b'{"event":"STOP"}\n{"event":"RESUME"}\n' * 2000,
    "lists": b'{"return": [' + b"[]," * 2_500_000 + b"[]]}\n",
    "reasons": b'{"event": "SHUTDOWN", "data": {"reason": "' + b"x" * 9_000_000 + b'"}}\n',
}
HUBS = "".join(f"hub {n}\r\n \\ p{n}\r\n" for n in range(45_000))
NIC = "index=0,type=nic,model=e1000,macaddr=52:54:00:00:00:01"
NICS = "".join(f"net{n}: {NIC}\r\n" for n in range(200))
ANSWERS: dict[str, Any] = {
    "query-version": VERSION,
    "query-target": {"arch": "x86_64"},
    "query-qmp-schema": SCHEMA,
    "query-status": {"running": True, "status": "running"},
    "query-uuid": {"UUID": "e4575ab2-7cba-58df-aac2-669e6faac4ef"},
    "human-monitor-command": "",
}


def answered(command: dict[str, Any], how: str, begun: bool) -> bytes:
    value = ANSWERS.get(command["execute"], {})
    if begun and how == "hubs" and command["execute"] == "human-monitor-command":
        value = HUBS
    if begun and how == "slow":
        time.sleep(4.9)
    if how == "slow NIC":
        value = f"net0: {NIC}\r\n" if command["execute"] == "human-monitor-command" else value
        time.sleep(2.5 if begun else 0)
    if begun and how == "other NICs" and command["execute"] == "human-monitor-command":
        now = int(time.monotonic() / 3)
        value = "".join(f"net{now}-{n}: {NIC}\r\n" for n in range(90))
    if begun and how == "many NICs":
        value = NICS if command["execute"] == "human-monitor-command" else value
        time.sleep(0.3)
    reply = {"return": value}
    if "id" in command:
        reply["id"] = command["id"]
    return json.dumps(reply).encode() + b"\r\n"


def serve(sock: socket.socket, how: str, go: Path, end: float) -> None:
    sock.sendall(json.dumps(GREETING).encode() + b"\r\n")
    text = b""
    while time.monotonic() < end:
        begun = go.exists()
        if begun and how == "hang up":
            return
        if begun and how in FLOODS:
            sock.settimeout(None)
            sock.sendall(FLOODS[how])
        if not select.select([sock], [], [], 0 if begun and how in FLOODS else 0.05)[0]:
            continue
        data = sock.recv(1 << 16)
        if not data:
            return
        *lines, text = (text + data).replace(b"}{", b"}\n{").split(b"\n")
        for line in [*lines, text]:
            try:
                command = json.loads(line)
            except ValueError:
                continue
            sock.settimeout(2)
            sock.sendall(answered(command, how, begun))
            text = b"" if line is text else text


def main() -> None:
    path, how, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        listener.settimeout(0.2)
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while time.monotonic() < end:
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            with sock:
                try:
                    serve(sock, how, path.with_suffix(".go"), end)
                except OSError:
                    continue


if __name__ == "__main__":
    main()
