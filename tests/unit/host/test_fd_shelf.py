"""An fd waits under a name, for one user, for a while, and is always owned by somebody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from linkmgr.errors import BadFd, BadName, Conflict, LinkmgrError, PortInUse, UnknownPort
from linkmgr.host import Fd
from linkmgr.host.fds.inspect import TapFdInfo, inspect_tap_fd
from linkmgr.host.fds.registry import FD_NAME_MAX, FdRegistry, port_name
from linkmgr.model import NicRef
from linkmgr.testing.process import until

NET0, NET1 = NicRef("web1", "net0"), NicRef("web1", "net1")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def found(fd: int, name: str) -> TapFdInfo:
    """Take every file for a tap; two fds of one file are one device."""
    return TapFdInfo("tap0", vnet_hdr=False, mtu=1500, identity=("file", os.fstat(fd).st_ino))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def registry(clock: Clock) -> AsyncIterator[FdRegistry]:
    registry = FdRegistry(lifetime=60, per_uid_max=3, total_max=5, clock=clock, inspect=found)
    yield registry
    await registry.close()


def an_fd() -> Fd:
    reading, writing = os.pipe()
    os.close(writing)
    return Fd(reading)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


async def left(registry: FdRegistry, name: str = "uplink", uid: int = 1000) -> int:
    """Leave an fd and return its number."""
    fd = an_fd()
    number = fd.number
    assert await registry.deposit(uid, name, fd) == 60
    return number


async def test_what_was_left_is_claimed_copied_and_closed_when_it_was_used(
    registry: FdRegistry,
) -> None:
    number = await left(registry)
    await registry.claim("1000.uplink", "aaaa0001", NET0)
    looked = await registry.recheck("aaaa0001")
    assert looked
    assert looked.device == "tap0"
    with registry.dup("aaaa0001") as copy:
        assert os.fstat(copy.number).st_ino == os.fstat(number).st_ino
        registry.commit("aaaa0001")
        await registry.release("aaaa0001")
        assert not is_open(number)
        assert is_open(copy.number)
    await registry.release("aaaa0001")
    with pytest.raises(UnknownPort):
        await registry.claim("1000.uplink", "aaaa0002", NET0)


async def test_what_was_claimed_and_not_used_waits_again_its_whole_time(
    registry: FdRegistry, clock: Clock
) -> None:
    number = await left(registry)
    clock.now += 59
    await registry.claim("1000.uplink", "aaaa0001", NET0)
    clock.now += 59
    await registry.release("aaaa0001")
    clock.now += 59
    await registry.claim("1000.uplink", "aaaa0002", NET1)
    assert is_open(number)


async def test_it_expires_at_its_time_and_not_before(registry: FdRegistry, clock: Clock) -> None:
    number = await left(registry)
    clock.now += 59.9
    await registry.sweep()
    assert is_open(number)
    clock.now += 0.1
    await registry.sweep()
    assert not is_open(number)


async def test_it_cannot_be_claimed_after_its_time_even_if_nobody_swept(
    registry: FdRegistry, clock: Clock
) -> None:
    number = await left(registry)
    clock.now += 60
    with pytest.raises(UnknownPort, match="uid 1000 has left no fd under the name uplink"):
        await registry.claim("1000.uplink", "aaaa0001", NET0)
    assert not is_open(number)


async def test_it_expires_by_itself() -> None:
    registry = FdRegistry(lifetime=0.05, inspect=found)
    first, second = an_fd(), an_fd()
    numbers = (first.number, second.number)
    await registry.deposit(1000, "a", first)
    await asyncio.sleep(0.03)
    await registry.deposit(1000, "b", second)

    async def expired() -> bool:
        return not any(map(is_open, numbers))

    await until(expired, timeout=5, what="both expire")
    await registry.close()


async def test_the_same_name_again_replaces_the_one_that_waits(registry: FdRegistry) -> None:
    first = await left(registry)
    inode = os.fstat(first).st_ino
    second = an_fd()
    assert os.fstat(second.number).st_ino != inode
    wanted = os.fstat(second.number).st_ino
    await registry.deposit(1000, "uplink", second)
    await registry.claim("1000.uplink", "aaaa0001", NET0)
    with registry.dup("aaaa0001") as copy:
        assert os.fstat(copy.number).st_ino == wanted
    assert not is_open(first)


async def test_a_name_that_is_in_use_is_not_replaced(registry: FdRegistry) -> None:
    await left(registry)
    await registry.claim("1000.uplink", "aaaa0001", NET0)
    other = an_fd()
    number = other.number
    with pytest.raises(PortInUse, match="in use by web1/net0"):
        await registry.deposit(1000, "uplink", other)
    assert not is_open(number)
    registry.commit("aaaa0001")
    await registry.release("aaaa0001")
    await left(registry)


async def test_each_user_has_names_of_his_own(registry: FdRegistry) -> None:
    await left(registry, uid=1000)
    with pytest.raises(UnknownPort):
        await registry.claim("1001.uplink", "aaaa0001", NET0)
    with pytest.raises(UnknownPort):
        await registry.claim("0.uplink", "aaaa0001", NET0)
    await left(registry, uid=1001)
    await registry.claim("1000.uplink", "aaaa0001", NET0)
    await registry.claim("1001.uplink", "aaaa0002", NET1)


async def test_one_device_is_not_given_to_two_nics(registry: FdRegistry) -> None:
    with an_fd() as device:
        await registry.deposit(1000, "a", device.dup())
        await registry.deposit(1000, "b", device.dup())
    await registry.claim("1000.a", "aaaa0001", NET0)
    with pytest.raises(PortInUse, match=r"tap0, fd 1000\.b, is in use by web1/net0"):
        await registry.claim("1000.b", "aaaa0002", NET1)


async def test_no_more_wait_than_may_of_one_user_and_of_all(
    registry: FdRegistry, clock: Clock
) -> None:
    for name in ("a", "b", "c"):
        await left(registry, name)
    refused = an_fd()
    number = refused.number
    with pytest.raises(Conflict, match="3 fds of uid 1000"):
        await registry.deposit(1000, "d", refused)
    assert not is_open(number)
    await left(registry, "c")  # in place of one that waits
    for name in ("a", "b"):
        await left(registry, name, uid=1001)
    with pytest.raises(Conflict, match="5 fds wait"):
        await registry.deposit(1002, "a", an_fd())
    clock.now += 60
    await left(registry, "d")


@pytest.mark.parametrize("name", ["", "a/b", "../x", "1000.uplink", "7.", "x" * (FD_NAME_MAX + 1)])
async def test_what_cannot_be_a_name_is_refused_and_closed(registry: FdRegistry, name: str) -> None:
    fd = an_fd()
    number = fd.number
    with pytest.raises(BadName):
        await registry.deposit(1000, name, fd)
    assert not is_open(number)


async def test_what_is_no_tap_is_refused_and_closed() -> None:
    registry = FdRegistry(inspect=inspect_tap_fd)
    fd = an_fd()
    number = fd.number
    with pytest.raises(BadFd, match="fd uplink is a pipe"):
        await registry.deposit(1000, "uplink", fd)
    assert not is_open(number)
    await registry.close()


async def test_closing_closes_what_waits_and_what_is_in_use(registry: FdRegistry) -> None:
    numbers = [await left(registry, name) for name in ("a", "b")]
    await registry.claim("1000.a", "aaaa0001", NET0)
    await registry.close()
    await registry.close()
    assert not any(map(is_open, numbers))
    late = an_fd()
    number = late.number
    with pytest.raises(LinkmgrError, match="while linkmgr ends"):
        await registry.deposit(1000, "c", late)
    assert not is_open(number)
    await registry.release("aaaa0001")


async def test_whoever_is_cancelled_while_leaving_leaves_nothing(clock: Clock) -> None:
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(fd: int, name: str) -> TapFdInfo:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
        return found(fd, name)

    registry = FdRegistry(clock=clock, inspect=slow)
    fd = an_fd()
    number = fd.number
    task = asyncio.create_task(registry.deposit(1000, "uplink", fd))
    await asyncio.sleep(0.02)
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_open(number)
    with pytest.raises(UnknownPort):
        await registry.claim("1000.uplink", "aaaa0001", NET0)
    await registry.close()


async def test_a_name_stays_in_use_over_a_restart_though_the_fd_is_lost(
    registry: FdRegistry,
) -> None:
    registry.restore("1000.uplink", "aaaa0001", NET0)
    with pytest.raises(PortInUse, match="web1/net0"):
        await registry.deposit(1000, "uplink", an_fd())
    assert await registry.recheck("aaaa0001") is None
    with pytest.raises(BadFd, match="lost when linkmgr was started again"):
        registry.dup("aaaa0001")
    await registry.release("aaaa0001")
    await left(registry)


def test_a_port_carries_the_uid_and_reads_back() -> None:
    assert port_name(1000, "uplink") == "1000.uplink"
    assert port_name(1000, "1000.uplink") == "1000.uplink"
    assert len(port_name(4294967294, "x" * FD_NAME_MAX)) == 63
    with pytest.raises(UnknownPort, match="a name of uid 1000, which uid 0 cannot use"):
        port_name(0, "1000.uplink")
    for name in ("", "a:b", "1000.", "x" * (FD_NAME_MAX + 1), "1000." + "x" * (FD_NAME_MAX + 1)):
        with pytest.raises(BadName):
            port_name(1000, name)
