"""What a refusal of the kernel means: the one place that turns error numbers into our errors."""

from __future__ import annotations

import errno
import os

from linkmgr.errors import Denied, HostError, LinkBusy, LinkMissing, NameTaken, Unsupported
from linkmgr.text.untrusted import ip_device

_DENIED = {errno.EPERM, errno.EACCES}
_MISSING = {errno.ENODEV, errno.ENXIO}
_BUSY = {errno.EBUSY, errno.EADDRINUSE}
_UNSUPPORTED = {
    errno.EOPNOTSUPP,
    errno.EAFNOSUPPORT,
    errno.EPROTONOSUPPORT,
    errno.ENOTTY,
    errno.ENOSYS,
}
#: What helps where IPv6 cannot be switched off on a device, which nothing else does by a file.
_READ_ONLY = (
    "run 'sysctl -w net.ipv6.conf.default.disable_ipv6=1' where /proc/sys of this network "
    "namespace can be written, or let linkmgr write there"
)


class KernelRefused(Exception):
    """The kernel refused a step. It stays inside this package; callers see a `HostError`.

    :param code: a number of `errno`.
    :param action: the step, such as "create lm3f9a1c2e".
    :param text: the kernel's own words (extended acknowledgement), else those of the number.
    """

    def __init__(self, code: int, action: str, text: str | None = None) -> None:
        self.code = code
        self.action = action
        self.text = text or os.strerror(code)
        super().__init__(f"{action}: {self.text}")


def to_host_error(refused: KernelRefused, device: str | int) -> HostError:
    """Return the error to raise for a refusal that was about `device`."""
    name = f"device {device}" if isinstance(device, int) else device
    code, what = refused.code, f"cannot {refused.action}: {refused.text}"
    if code in _DENIED:
        return Denied(
            what,
            hint="run as root or give the process CAP_NET_ADMIN in this network namespace "
            "(and CAP_MKNOD, for a macvtap)",
        )
    if code in _MISSING:
        return LinkMissing(
            f"cannot {refused.action}: there is no such device ({name}: {refused.text})",
            hint="look at 'ip link', in the network namespace where linkmgr runs",
        )
    if code == errno.EEXIST:
        return NameTaken(
            f"cannot {refused.action}: there is another device of that name ({name})",
            hint=f"look whose it is: 'ip -d link show {ip_device(name)}'; rename or remove it",
        )
    if code in _BUSY:
        return LinkBusy(
            f"{what} ({name})", hint=f"look who has it: 'ip -d link show {ip_device(name)}'"
        )
    if code in _UNSUPPORTED:
        return Unsupported(
            f"{what} ({name})",
            hint="this kernel or device cannot do it: load the kernel's module or use another",
        )
    hint = _READ_ONLY if code == errno.EROFS else "look at the kernel's messages: 'dmesg'"
    return HostError(f"{what} ({name})", hint=hint)


def device_missing(name: str | int, what_for: str | None = None) -> LinkMissing:
    """Return the error for a device that is not there."""
    shown = f"device {name}" if isinstance(name, str) else f"device with index {name}"
    return LinkMissing(
        f"there is no {shown}" + (f", needed as {what_for}" if what_for else ""),
        hint="look at 'ip link', in the network namespace where linkmgr runs",
    )
