"""The instruments of the failure tests; test_failures_watch.py proves that they can fail.

A `Scene` is a lab with one guest and three networks, shared by the tests of a module. `Fault` does
something at a step of a swap. `no_frame_lost` watches the cable, `nothing_left` what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio

from linkmgr import LinkmgrError, NicState
from linkmgr.swap.steps import Step
from linkmgr.testing import Guest, NetnsPeer
from linkmgr.testing.process import until
from tests.integration.lab import Lab, mac_of, make_lab

NIC = "web1/net0"
T = TypeVar("T")

RATE = 100  #: frames per second, each way


class Fault:
    """The probe of a manager: does what `at` says, once, before that step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []  #: those that were begun, since `at` or `forget`
        self._step: Step | None = None
        self._action: Callable[[], Awaitable[object]] | None = None

    def at(self, step: Step, action: Callable[[], Awaitable[object]]) -> None:
        """Do this before the next time that the step is taken."""
        self.steps.clear()
        self._step, self._action = step, action

    def forget(self) -> None:
        """Do nothing any more."""
        self.steps.clear()
        self._step = self._action = None

    async def __call__(self, step: Step) -> None:
        self.steps.append(step)
        if step is self._step and self._action is not None:
            action, self._step, self._action = self._action, None, None
            await action()


@dataclass
class Scene:
    """A lab with the bridges blue and red, the macvtap parent green, and one guest on none."""

    lab: Lab
    fault: Fault = field(default_factory=Fault)

    @property
    def guest(self) -> Guest:
        """The guest web1."""
        return self.lab.guests["web1"]

    async def state(self) -> str:
        """The NIC's state and network, as in "plugged blue"."""
        nic = await self.lab.links.nic(NIC)
        return f"{nic.state} {nic.connection.network}" if nic.connection else str(nic.state)

    async def plug(self, network: str) -> None:
        """Plug the NIC and wait until the guest sees it."""
        await self.lab.links.plug(NIC, network, notify="silent")
        await self.guest.wait_carrier("eth0", True)


@asynccontextmanager
async def make_scene(
    workdir: Path, *, boot: bool = True, add: bool = True, timeout: float = 5.0
) -> AsyncIterator[Scene]:
    """Build a scene. Without `boot` the guest waits at its first instruction."""
    fault = Fault()
    async with make_lab(workdir, timeout=timeout, probe=fault) as lab:
        for network in ("blue", "red", "green"):
            await lab.network(network)
        await lab.guest(boot=boot, add=add, cmdline="lm.ip.eth0=10.1.0.2/24")
        yield Scene(lab, fault)


@asynccontextmanager
async def no_frame_lost(guest: Guest, peer: NetnsPeer, *, but: int = 0) -> AsyncIterator[None]:
    """Send numbered frames between guest and peer while the block runs; all of them must arrive.

    :param but: so many may be lost each way: `RATE` times the seconds for which the cable may be
        out.
    """
    mac = await peer.mac("eth0")
    async with _at_once(
        peer.counting("eth0", tag="outward"), guest.counting("eth0", tag="inward")
    ) as (at_peer, at_guest):
        async with _at_once(
            guest.sending("eth0", mac, rate=RATE, tag="outward"),
            peer.sending("eth0", mac_of(1, 0), rate=RATE, tag="inward"),
        ) as (outward, inward):
            await until(
                _flowing(peer.ifname_outside), timeout=10, what="frames flow both ways",
                interval=0.01,
            )  # fmt: skip
            yield
        await asyncio.sleep(0.1)  # the last ones are on their way
    sent = outward.report.sent + outward.report.failed, inward.report.sent + inward.report.failed
    came = at_peer.report.unique("outward"), at_guest.report.unique("inward")
    assert min(sent) > 0, f"sent {sent} frames (outward, inward)"
    lost = [all_of - some for all_of, some in zip(sent, came, strict=True)]
    assert 0 <= min(lost) <= max(lost) <= but, f"arrived {came} of {sent} frames (outward, inward)"


@asynccontextmanager
async def _at_once(
    one: AbstractAsyncContextManager[T], other: AbstractAsyncContextManager[T]
) -> AsyncIterator[tuple[T, T]]:
    """Enter two at the same time, and leave them so: most of it is waiting."""
    begun = await asyncio.gather(one.__aenter__(), other.__aenter__())
    try:
        yield begun[0], begun[1]
    except BaseException as error:
        for each in (other, one):
            await each.__aexit__(type(error), error, error.__traceback__)
        raise
    await asyncio.gather(*(each.__aexit__(None, None, None) for each in (one, other)))


def _flowing(ifname: str) -> Callable[[], Awaitable[bool]]:
    """Whether some frames went each way since now."""
    files = [Path(f"/sys/class/net/{ifname}/statistics/{way}_packets") for way in ("rx", "tx")]
    begin = [int(file.read_text()) for file in files]

    async def asked() -> bool:
        return all(int(file.read_text()) > was + 3 for file, was in zip(files, begin, strict=True))

    return asked


def is_told(error: LinkmgrError, *, state: str, nic: str = NIC) -> None:
    """The error says what happened to which NIC, what state that is in, and what to do."""
    text = str(error)
    assert text.startswith(f"{nic}: {error.what}"), text
    assert re.search(rf"\. {nic} is {state}", text), text
    assert re.search(r"\. To do: \S+ \S+", text), text


# --- what is left behind --------------------------------------------------------------------------
def _fds(pid: int | str) -> Counter[str]:
    """What a process has open, without the numbers that tell one socket from another."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # the one that lists
        if target.startswith(f"{tempfile.gettempdir()}/#"):
            continue  # an unnamed temporary file: pytest's, or a station's
        found[re.sub(r"[0-9]+|linkmgr-\w+", "*", target)] += 1
    return found


async def traces(lab: Lab) -> dict[str, object]:
    """All that an operation may leave behind."""
    found: dict[str, object] = {
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "ports": sorted(path.parent.name for path in Path("/sys/class/net").glob("*/brport")),
        "connections": await lab.links.connections(),
        "our fds": _fds("self"),
    }
    for name, guest in lab.guests.items():
        if guest.running:
            # Named descriptors cannot be listed, but they are among the fds.
            info = await guest.qmp("human-monitor-command", **{"command-line": "info network"})
            found[f"{name}: network"] = sorted(info.split("\r\n"))
            found[f"{name}: fds"] = _fds(guest.pid)
    return found


async def nothing_left(lab: Lab, before: dict[str, object], *, within: float = 3.0) -> None:
    """Once every QEMU answers again or is gone, all is as it was, and `check` agrees."""

    async def settled() -> bool:
        states = [nic.state for nic in await lab.links.nics()]
        return NicState.UNKNOWN not in states and await lab.links.check() == []

    async def same() -> bool:
        return await traces(lab) == before

    try:
        await until(settled, timeout=10, what="every QEMU answers again or is gone")
        await until(same, timeout=within, what="nothing is left behind")
    except TimeoutError:
        found = await lab.links.check()
        assert found == [], found
        after = await traces(lab)
        changed = [
            f"{key}: {was}, now {after[key]}" for key, was in before.items() if after[key] != was
        ]
        assert not changed, "\n".join(changed)


# --- fixtures -------------------------------------------------------------------------------------
@pytest_asyncio.fixture(name="scene", scope="module", loop_scope="module")
async def scene_on_blue(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """A scene whose NIC is plugged into blue, and stays there."""
    async with make_scene(tmp_path_factory.mktemp("scene")) as made:
        await made.plug("blue")
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def scene(built: Scene) -> AsyncIterator[Scene]:
    """An unplugged NIC. In the end it is unplugged again, and nothing is left of the test.

    `built` is the module's own: a scene with what its tests need besides.
    """
    before = await traces(built.lab)
    yield built
    built.fault.forget()
    await built.lab.links.unplug(NIC)
    await nothing_left(built.lab, before)


@pytest_asyncio.fixture(loop_scope="module")
async def spare(scene: Scene) -> AsyncIterator[str]:
    """A network whose device, called spare, is the test's to make."""
    await scene.lab.links.create_network("spare", "bridge", bridge="spare")
    await scene.lab.links.create_network("spare-direct", "direct", parent="spare")
    yield "spare"
    for network in ("spare", "spare-direct"):
        await scene.lab.links.delete_port(network, "other")
    # Also shows that no claim was left: a network in use cannot be deleted.
    assert await scene.lab.links.delete_network("spare")
    assert await scene.lab.links.delete_network("spare-direct")
    await scene.lab.sh("ip link del spare 2>/dev/null || true")


# --- what tests share -----------------------------------------------------------------------------
@asynccontextmanager
async def another_guest(
    lab: Lab, name: str, nic_args: Sequence[str], *, boot: bool = False, add: bool = True
) -> AsyncIterator[Guest]:
    """Start one more guest in a lab, and take it away again."""
    guest = await lab.guest(name, nic_args=nic_args, boot=boot, add=add)
    try:
        yield guest
    finally:
        await lab.links.remove_vm(name)
        await guest.stop()
        del lab.guests[name]


def known_ids(patch: pytest.MonkeyPatch) -> str:
    """Give the same id to every attachment from now on, and return it."""
    for driver in ("bridge", "direct"):
        patch.setattr(f"linkmgr.drivers.{driver}.new_id", lambda: "0badcafe")
    return "0badcafe"


# linux/capability.h
_CAP_NET_ADMIN, _VERSION_3 = 12, 0x20080522


def _capabilities(*, net_admin: bool) -> None:
    """Take CAP_NET_ADMIN from this thread, or give it back."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    effective, permitted = data[0], data[1]
    assert permitted & 1 << _CAP_NET_ADMIN
    bit = 1 << _CAP_NET_ADMIN
    data[0] = effective | bit if net_admin else effective & ~bit
    assert libc.capset(header, data) == 0


@contextmanager
def no_permission() -> Iterator[None]:
    """Take CAP_NET_ADMIN from this thread and from those that the event loop uses meanwhile."""
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(initializer=partial(_capabilities, net_admin=False))
    with contextlib.ExitStack() as undo:
        undo.callback(loop.set_default_executor, ThreadPoolExecutor())
        undo.enter_context(threads)
        loop.set_default_executor(threads)
        undo.callback(_capabilities, net_admin=True)
        _capabilities(net_admin=False)
        yield
