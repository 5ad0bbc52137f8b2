"""Open a tap in the network namespace of this process and leave it with linkmgr.

Needs nothing but Python. Run it where the tap shall be, then plug it::

    ip netns exec vault python3 leave_fd.py uplink tap0
    linkmgr plug web1/net0 fd:uplink
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import struct
import sys

IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000  # linux/if_tun.h
TUNSETIFF = 0x400454CA


def open_tap(device: str, *, vnet_hdr: bool = False) -> int:
    """Make a tap with one queue, or open a persistent one."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if vnet_hdr else 0)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", device.encode(), flags))
    return fd


def leave(path: str, name: str, fd: int) -> dict[str, object]:
    """Leave `fd` under `name` and return the answer. The caller still owns its own fd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        socket.send_fds(sock, [json.dumps({"name": name}).encode()], [fd])
        answer: dict[str, object] = json.loads(sock.recv(65536))
        return answer


def main() -> int:
    """Do it, print the answer, and say by the exit status whether it worked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("device")
    parser.add_argument("--socket", default="/run/linkmgr/fd.sock")
    parser.add_argument("--vnet-hdr", action="store_true")
    asked = parser.parse_args()
    fd = open_tap(asked.device, vnet_hdr=asked.vnet_hdr)
    answer = leave(asked.socket, asked.name, fd)
    # linkmgr has a copy of the fd by now: the tap stays when this process ends.
    print(json.dumps(answer))
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
