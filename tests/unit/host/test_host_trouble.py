"""Every refusal of the kernel becomes one of our errors, with the device's name and advice."""

from __future__ import annotations

import errno

import pytest

from linkmgr.errors import Denied, HostError, LinkBusy, LinkMissing, NameTaken, Unsupported
from linkmgr.host.netlink.changes import _parse_acks
from linkmgr.host.netlink.errors import KernelRefused, device_missing, to_host_error


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EPERM, Denied),
        (errno.EACCES, Denied),
        (errno.ENODEV, LinkMissing),
        (errno.ENXIO, LinkMissing),
        (errno.EEXIST, NameTaken),
        (errno.EBUSY, LinkBusy),
        (errno.EADDRINUSE, LinkBusy),
        (errno.EOPNOTSUPP, Unsupported),
        (errno.EAFNOSUPPORT, Unsupported),
        (errno.EINVAL, HostError),
        (errno.ENOMEM, HostError),
        (errno.EMFILE, HostError),
    ],
)
def test_a_number_becomes_a_typed_error(code: int, kind: type[HostError]) -> None:
    error = to_host_error(KernelRefused(code, "create lm0", "because"), "lm0")
    assert type(error) is kind
    assert "lm0" in error.what
    assert "because" in error.what or kind is NameTaken
    assert error.hint


def test_without_words_of_the_kernel_there_are_those_of_the_number() -> None:
    assert "Device or resource busy" in str(
        to_host_error(KernelRefused(errno.EBUSY, "do it"), "lm0")
    )


@pytest.mark.parametrize(("device", "shown"), [("br7", "br7"), (42, "index 42")])
def test_a_missing_device_is_named(device: str | int, shown: str) -> None:
    error = device_missing(device, "a bridge")
    assert shown in error.what
    assert "needed as a bridge" in error.what


def test_the_answers_of_the_kernel_are_read() -> None:
    fine = bytes.fromhex("2400000002000001 07000000 00000000 00000000" + 16 * "00")
    words = b"nope\0"
    tlv = (4 + len(words)).to_bytes(2, "little") + (1).to_bytes(2, "little") + words + bytes(3)
    length = 36 + len(tlv)
    refused = (
        length.to_bytes(4, "little")
        + bytes.fromhex("0200 0003 08000000 00000000")
        + (-errno.EBUSY).to_bytes(4, "little", signed=True)
        + bytes(16)
        + tlv
    )
    assert _parse_acks(fine + refused) == [(7, 0, None), (8, errno.EBUSY, "nope")]
