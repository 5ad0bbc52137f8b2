"""Receives one packet with descriptors, in a process of its own. Runs as a script, by itself.

What a packet brings can make its receiver wait: at the last close of a TCP socket with SO_LINGER,
at any close of a file on FUSE or NFS. So this process receives, passes on a tap or a macvtap and
nothing else, and ends; the kernel closes the rest then, and the event loop waits for none of it.

Standard input is the connection, standard output a socket for the answer: one packet, as `ANSWER`
describes, with the descriptor if it is passed on, and the bytes of the packet behind it.
"""

import array
import fcntl
import os
import socket
import stat
import struct

ANSWER = struct.Struct("=iiIII")  #: flags, descriptors, st_mode, and st_rdev's major and minor
SCM_MAX_FD = 253  #: descriptors of one packet (linux/net/core/scm.h)
PACKET_MAX = 4096  #: bytes of a packet that are taken in
TUN = (10, 200)  #: device number of /dev/net/tun (linux/miscdevice.h)
_TUNGETFEATURES = 0x800454CF  # linux/if_tun.h


def _macvtap_majors() -> "set[int] | None":
    """The major numbers of macvtaps, which the kernel assigns; ``None`` without /proc/devices."""
    try:
        with open("/proc/devices", encoding="ascii") as lines:  # noqa: PTH123 - pathlib is slow
            rows = [line.split() for line in lines]
    except OSError:
        return None
    return {int(row[0]) for row in rows if len(row) == 2 and row[1] == "macvtap"}


def _is_macvtap(fd: int, major: int) -> bool:
    """Whether a character device that is not tun's is a macvtap."""
    majors = _macvtap_majors()
    if majors is not None:
        return major in majors
    try:
        fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4))
    except OSError:
        return False
    return True


def is_tap(fd: int, mode: int, major: int, minor: int) -> bool:
    """Whether it is a file of the kernel's tap or macvtap driver, whose close never waits long."""
    return stat.S_ISCHR(mode) and ((major, minor) == TUN or _is_macvtap(fd, major))


def main() -> None:
    """Receive from standard input, answer on standard output."""
    connection = socket.socket(fileno=0)
    room = socket.CMSG_SPACE(SCM_MAX_FD * 4)
    data, controls, flags, _ = connection.recvmsg(PACKET_MAX, room, socket.MSG_DONTWAIT)
    fds = array.array("i")
    for level, kind, payload in controls:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % 4])
    found, mode, major, minor = [], 0, 0, 0
    if len(fds) == 1:
        status = os.fstat(fds[0])
        mode, major, minor = status.st_mode, os.major(status.st_rdev), os.minor(status.st_rdev)
        if is_tap(fds[0], mode, major, minor):
            found = [fds[0]]
    head = ANSWER.pack(flags, len(fds), mode, major, minor)
    socket.send_fds(socket.socket(fileno=1), [head, data], found)


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # the interpreter's own end would close what was received, and wait
