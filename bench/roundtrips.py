"""Asks QEMU for its status over and over, and writes down how long each answer took.

A program of its own with a blocking socket, so that the time is QEMU's and not that of an event
loop that is busy with a swap. Standard library only. Called with the path of a monitor socket and
that of the file for the result: pairs of doubles, the start (seconds of CLOCK_MONOTONIC) and the
duration (seconds). Prints "ready" when it begins, ends on SIGTERM.
"""

from __future__ import annotations

import array
import gc
import json
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

REQUEST = b'{"execute": "query-status"}\n'
# Without one it would take a CPU for itself, and QEMU's other half too.
ROUND_TRIP_INTERVAL_S = 0.0003
stopped = False


def stop(_number: int, _frame: FrameType | None) -> None:
    """End after the answer that is due."""
    global stopped  # noqa: PLW0603 - a signal has nobody else to tell
    stopped = True


def ask(monitor: socket.socket, request: bytes) -> None:
    """Send a request and wait for its answer; events in between are skipped."""
    monitor.sendall(request)
    received = b""
    while True:
        received += monitor.recv(65536)
        while b"\n" in received:
            line, _, received = received.partition(b"\n")
            if "event" not in json.loads(line):
                return


def main(path: str, result: str) -> None:
    """Measure until told to stop."""
    times = array.array("d")
    clock = time.monotonic
    signal.signal(signal.SIGTERM, stop)
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(path)
        ask(monitor, b"")  # the greeting
        ask(monitor, b'{"execute": "qmp_capabilities"}\n')
        gc.disable()
        print("ready", flush=True)
        while not stopped:
            start = clock()
            ask(monitor, REQUEST)
            times.append(start)
            times.append(clock() - start)
            time.sleep(ROUND_TRIP_INTERVAL_S)
    Path(result).write_bytes(times.tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
