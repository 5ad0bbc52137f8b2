"""`Libvirt` under a real libvirtd: what happens is told, what was missed is found by comparing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from linkmgr.errors import LibvirtRefused, LibvirtUnreachable, UnknownNetwork
from linkmgr.libvirt.client.api_calls import DomainState
from linkmgr.libvirt.client.connection import Libvirt
from linkmgr.libvirt.client.events import DomainEvent, DomainEventKind, DomainEventSubscription
from linkmgr.libvirt.client.pool import HELD_AFTER_S
from linkmgr.libvirt.domains.diagnose import explain_unknown_network
from linkmgr.libvirt.domains.gateway import HookSafeLibvirt
from linkmgr.libvirt.monitor.passthrough import LibvirtConnector
from linkmgr.testing.process import Child, execute, finish, until
from tests.integration.libvirtd import DomainGuest, Libvirtd, private_libvirtd, tiny_domain
from tests.own_time import own_time

MAC, SPARE_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
CABLES_NAMESPACE = "urn:linkmgr:cables"
NOBODY = 65534
K = DomainEventKind
#: Sleeps as long as the file says, for the domain that it names.
HOOK = """#!/bin/sh
[ -e /run/lab/slow ] && [ "$1 $2" = "$(cat /run/lab/slow)" ] && sleep 3
exit 0
"""


@asynccontextmanager
async def following(libvirtd: Libvirtd) -> AsyncIterator[tuple[Libvirt, DomainEventSubscription]]:
    libvirt = Libvirt(libvirtd.uri, run_dir=libvirtd.run / "libvirt/qemu")
    events = libvirt.events()
    task = asyncio.create_task(libvirt.run())
    try:
        yield libvirt, events
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(1):
            async for _ in events:  # it ends
                pass
        await asyncio.sleep(0.1)  # what libvirt wants freed is freed in the loop


async def told(
    events: DomainEventSubscription, *wanted: tuple[DomainEventKind, str], timeout: float = 20.0
) -> list[DomainEvent]:
    """Wait for events of these kinds and details, in this order; others may lie between."""
    heard: list[DomainEvent] = []
    found: list[DomainEvent] = []
    try:
        async with asyncio.timeout(timeout):
            async for event in events:
                heard.append(event)
                if (event.kind, event.detail) == wanted[len(found)]:
                    found.append(event)
                if len(found) == len(wanted):
                    break
    except TimeoutError:
        raise AssertionError(f"waited for {wanted[len(found)]}, heard {heard}") from None
    return found


def nic(mac: str) -> str:
    return f"<interface type='user'><mac address='{mac}'/><model type='virtio'/></interface>"


NETWORK = "<network><name>lab</name><forward mode='bridge'/><bridge name='br-lab'/></network>"


async def test_a_network_of_libvirts_own_is_found_by_its_name_and_explained() -> None:
    async with private_libvirtd() as libvirtd, following(libvirtd) as (libvirt, events):
        await told(events, (K.CONNECTED, ""))
        (libvirtd.run / "lab.xml").write_text(NETWORK)
        await libvirtd.virsh("net-define", str(libvirtd.run / "lab.xml"))
        assert await libvirt.network_xml("nope") is None
        assert "br-lab" in str(await libvirt.network_xml("lab"))
        unknown = UnknownNetwork("there is no network lab", hint="create it first")
        told_of = await explain_unknown_network(unknown, "lab", HookSafeLibvirt(libvirt))
        assert str(told_of) == (
            "lab is a network of libvirt's own (bridge, bridge br-lab), and linkmgr has none of "
            "that name. To do: run 'linkmgr network create lab bridge bridge=br-lab', then plug "
            "again"
        )


@pytest.mark.timeout(180)
async def test_a_domains_life_is_told_and_its_metadata_and_links_can_be_set() -> None:
    async with private_libvirtd() as libvirtd, following(libvirtd) as (libvirt, events):
        await told(events, (K.CONNECTED, ""))
        await libvirtd.define(tiny_domain(libvirtd, "web1", [nic(MAC), nic(SPARE_MAC)]))
        uuid = (await told(events, (K.DEFINED, "added")))[0].uuid
        assert uuid == await libvirtd.virsh("domuuid", "web1")
        shut_off = await libvirt.domain("web1")
        assert (shut_off.uuid, shut_off.active, shut_off.pid) == (uuid, False, None)
        assert (shut_off.state, shut_off.persistent) == (DomainState.SHUT_OFF, True)

        await libvirtd.virsh("start", "web1")
        await told(events, (K.RESUMED, "unpaused"), (K.STARTED, "booted"))
        async with DomainGuest(libvirtd, "web1") as guest:
            (view,) = await libvirt.domains()
            assert (view.active, view.state, view.pid) == (True, DomainState.RUNNING, guest.pid)
            assert view == await libvirt.domain(uuid)
            await libvirtd.virsh("suspend", "web1")
            await libvirtd.virsh("resume", "web1")
            await told(events, (K.SUSPENDED, "paused"), (K.RESUMED, "unpaused"))
            await guest.connect()
            await _metadata(libvirtd, libvirt, events, uuid)
            await _links(libvirtd, libvirt, guest, uuid)
            await libvirtd.virsh("detach-interface", "web1", "user", "--mac", SPARE_MAC, "--live")
            await told(events, (K.DEVICE_REMOVED, "net1"))
        await libvirtd.virsh("reset", "web1")
        await told(events, (K.REBOOTED, ""))
        await libvirtd.virsh("managedsave", "web1")
        await told(events, (K.STOPPED, "saved"))
        await libvirtd.virsh("start", "web1")
        await told(events, (K.STARTED, "restored"))
        await libvirtd.virsh("destroy", "web1")
        await told(events, (K.STOPPED, "destroyed"))
        await libvirtd.virsh("undefine", "web1")
        await told(events, (K.UNDEFINED, "removed"))
        with pytest.raises(LibvirtRefused, match="domain web1: libvirt refused") as refused:
            await libvirt.domain("web1")
        assert refused.value.no_domain


async def _metadata(
    libvirtd: Libvirtd, libvirt: Libvirt, events: DomainEventSubscription, uuid: str
) -> None:
    """Live and config are two."""
    for live in (True, False):
        assert await libvirt.metadata(uuid, CABLES_NAMESPACE, live=live) is None
        text = f"<cables><cable nic='live-{live}'/></cables>"
        await libvirt.set_metadata(uuid, CABLES_NAMESPACE, "lm", text, live=live, config=not live)
        (event,) = await told(events, (K.METADATA, CABLES_NAMESPACE))
        assert (event.uuid, event.name) == (uuid, "web1")
    for live in (True, False):
        assert f"live-{live}" in (await libvirt.metadata(uuid, CABLES_NAMESPACE, live=live) or "")
        assert f"live-{live}" in await libvirt.xml(uuid, live=live)
        words = [] if live else ["--config"]
        said = await libvirtd.virsh("metadata", "web1", CABLES_NAMESPACE, *words)
        assert f"live-{live}" in said
    for _ in range(2):  # the second time there is nothing to remove
        await libvirt.set_metadata(uuid, CABLES_NAMESPACE, "lm", None, live=True, config=True)
    assert "live-" not in await libvirt.xml(uuid, live=True)
    assert await libvirt.metadata(uuid, CABLES_NAMESPACE, live=False) is None


async def _links(libvirtd: Libvirtd, libvirt: Libvirt, guest: DomainGuest, uuid: str) -> None:
    """What libvirt believes, and what the guest sees."""
    for up in (False, True):
        await libvirt.set_link(uuid, MAC.upper(), up)
        said = await libvirtd.virsh("domif-getlink", "web1", MAC)
        assert said == f"{MAC} {'up' if up else 'down'}"
        await guest.wait_carrier("eth0", up)
    with pytest.raises(LibvirtRefused, match="no NICs with the address 52:54:00:ff"):
        await libvirt.set_link(uuid, "52:54:00:ff:ff:ff", True)


@pytest.mark.timeout(180)
async def test_a_libvirtd_that_is_stopped_or_killed_costs_only_the_calls_of_that_time() -> None:
    async with private_libvirtd() as libvirtd:
        (libvirtd.root / "etc/hooks/qemu").write_text(HOOK)
        (libvirtd.root / "etc/hooks/qemu").chmod(0o755)
        for name in ("web1", "web2"):
            await libvirtd.define(tiny_domain(libvirtd, name, [nic(MAC)]))
            await libvirtd.virsh("start", name)
        async with following(libvirtd) as (libvirt, events):
            await told(events, (K.CONNECTED, ""))
            await _killed_during_a_call_and_a_stop(libvirtd, libvirt, events)
            await _a_qemu_that_does_not_answer(libvirtd, libvirt)
            await _a_hook_that_takes_its_time(libvirtd, libvirt)


async def _killed_during_a_call_and_a_stop(
    libvirtd: Libvirtd, libvirt: Libvirt, events: DomainEventSubscription
) -> None:
    web1, web2 = await libvirt.domains()
    assert web1.pid is not None
    os.kill(libvirtd.pid, signal.SIGSTOP)
    beat = asyncio.create_task(_longest_standstill(3.0))
    call = asyncio.create_task(libvirt.xml(web1.uuid, live=True))
    await asyncio.sleep(0.1)
    began = own_time()
    with pytest.raises(LibvirtUnreachable, match="was not asked within") as late:
        await libvirt.xml(web2.uuid, live=True, timeout=0.3)
    assert not late.value.sent  # it waited behind the other
    assert own_time() - began < 0.5
    os.kill(web1.pid, signal.SIGKILL)  # libvirt will not see it
    await libvirtd.stop(signal.SIGKILL)
    with pytest.raises(LibvirtUnreachable, match="the connection to libvirt ended") as cut_off:
        await asyncio.wait_for(call, 2)
    assert cut_off.value.sent
    await told(events, (K.LOST, ""), timeout=2)
    assert not libvirt.connected
    began = own_time()
    with pytest.raises(LibvirtUnreachable, match="there is no connection to libvirt"):
        await libvirt.domains()
    assert own_time() - began < 0.1
    assert await beat < 0.2  # the loop never stood still
    await libvirtd.start()
    await told(events, (K.CONNECTED, ""), timeout=6)

    # Nobody told that web1 has stopped: comparing finds it.
    async def seen() -> bool:
        return [(each.name, each.active) for each in await libvirt.domains()] == [
            ("web1", False), ("web2", True)
        ]  # fmt: skip

    await until(seen, timeout=5, what="web1 is seen to be shut off")
    await libvirtd.virsh("start", "web1")
    await told(events, (K.STARTED, "booted"))


async def _a_qemu_that_does_not_answer(libvirtd: Libvirtd, libvirt: Libvirt) -> None:
    """It holds the calls about itself, for as long as their callers want; others go on."""
    pid = DomainGuest(libvirtd, "web1").pid
    os.kill(pid, signal.SIGSTOP)
    try:
        stuck = asyncio.create_task(libvirt.set_link("web1", MAC, False, timeout=2))
        await asyncio.sleep(0.1)
        answering = os.getpid(), libvirtd.pid
        began = own_time(*answering)
        assert len(await libvirt.domains(timeout=2)) == 2
        assert own_time(*answering) - began < 1.0
        with pytest.raises(LibvirtUnreachable, match="was asked, but did not answer") as late:
            await stuck
        assert late.value.sent
        assert libvirt.connected
    finally:
        os.kill(pid, signal.SIGCONT)

    async def down() -> bool:
        return "down" in await libvirtd.virsh("domif-getlink", "web1", MAC)

    await until(down, timeout=5, what="the link is down after all")


async def _a_hook_that_takes_its_time(libvirtd: Libvirtd, libvirt: Libvirt) -> None:
    """libvirt answers no call about the domain meanwhile, nor a list with it."""
    (libvirtd.run / "lab/slow").write_text("web2 stopped")
    begun = time.monotonic()
    ending = asyncio.create_task(libvirtd.virsh("destroy", "web2"))
    await asyncio.sleep(0.5)
    with pytest.raises(LibvirtUnreachable, match="was asked, but did not answer"):
        await libvirt.domain("web2", timeout=0.5)
    assert (await libvirt.domain("web1", timeout=2)).active
    with pytest.raises(LibvirtUnreachable, match="busy with it"):
        await libvirt.domain("web2", timeout=10)

    async def ended() -> bool:
        with contextlib.suppress(LibvirtUnreachable):
            return not (await libvirt.domain("web2", timeout=10)).active
        return False

    await until(ended, timeout=10, what="web2 is seen to be shut off")
    assert time.monotonic() - begun >= 2.5
    await ending


@pytest.mark.timeout(180)
async def test_eight_guests_whose_qemus_hang_delay_nothing_of_a_ninth() -> None:
    hung = [f"hung{number}" for number in range(8)]
    async with private_libvirtd() as libvirtd:
        for name in (*hung, "web1"):
            await libvirtd.define(tiny_domain(libvirtd, name, [nic(MAC)]))
            await libvirtd.virsh("start", name)
        pids = [DomainGuest(libvirtd, name).pid for name in hung]
        answering = os.getpid(), libvirtd.pid, DomainGuest(libvirtd, "web1").pid
        async with following(libvirtd) as (libvirt, events):
            await told(events, (K.CONNECTED, ""))
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                calls = [libvirt.set_link(name, MAC, False, timeout=5) for name in hung]
                stuck = [asyncio.create_task(call) for call in calls]
                await asyncio.sleep(0)
                took = []
                for number in range(10):
                    began = own_time(*answering)
                    await libvirt.set_link("web1", MAC, bool(number % 2), timeout=5)
                    took.append(own_time(*answering) - began)
                assert max(took) < 0.4
                assert sorted(took)[5] < 0.1
                await asyncio.sleep(2 * HELD_AFTER_S)
                for name in hung:
                    with pytest.raises(LibvirtUnreachable, match="busy with it"):
                        await libvirt.set_link(name, MAC, True)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            await asyncio.gather(*stuck)
            await libvirt.set_link("hung7", MAC, True)


async def _longest_standstill(seconds: float) -> float:
    """The longest time for which the loop did nothing else."""
    end, longest = time.monotonic() + seconds, 0.0
    while time.monotonic() < end:
        now = own_time()
        await asyncio.sleep(0.01)
        longest = max(longest, own_time() - now)
    return longest


SESSION_DOMAIN = """<domain type='qemu'><name>web1</name><memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"""


@asynccontextmanager
async def session_libvirtd(folder: Path) -> AsyncIterator[str]:
    """A libvirtd of an ordinary user; yields its URI. Its guests end with it."""
    for name in ("home", "run"):
        (folder / name).mkdir()
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    environment = {"HOME": f"{folder}/home", "XDG_RUNTIME_DIR": f"{folder}/run"}
    words = ["env", *(f"{name}={value}" for name, value in environment.items())]
    words += ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    (folder / "home/.config/libvirt").mkdir(parents=True)
    (folder / "home/.config/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')
    for path in (folder / "home").rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    with (folder / "log").open("wb") as log:
        daemon = Child([*words, "libvirtd"], output=log)
    uri = f"qemu+unix:///session?socket={folder}/run/libvirt/libvirt-sock"

    async def answers() -> bool:
        return (await execute(["virsh", "-q", "-c", uri, "uri"], check=False)).status == 0

    try:
        await until(answers, timeout=20, what="libvirtd")
        yield uri
    finally:
        await finish(daemon.end(grace=10))


async def test_a_session_of_an_ordinary_user_works_as_well() -> None:
    with tempfile.TemporaryDirectory(prefix="lmv-") as name:
        async with session_libvirtd(Path(name)) as uri:
            libvirt = Libvirt(uri, run_dir=Path(name) / "run/libvirt/qemu/run")
            events = libvirt.events()
            task = asyncio.create_task(libvirt.run())
            await told(events, (K.CONNECTED, ""))
            path = Path(name) / "web1.xml"
            path.write_text(SESSION_DOMAIN)
            await execute(["virsh", "-q", "-c", uri, "create", str(path)])
            try:
                await told(events, (K.STARTED, "booted"))
                (view,) = await libvirt.domains()
                assert (view.active, view.persistent) == (True, False)
                assert Path(f"/proc/{view.pid}").stat().st_uid == NOBODY
                async with await LibvirtConnector(libvirt, view.uuid).connect("web1", 5) as monitor:
                    assert monitor.pid == view.pid
                    assert (await monitor.execute("query-status"))["running"]
            finally:  # it would outlive its libvirtd, and the test
                await execute(["virsh", "-q", "-c", uri, "destroy", "web1"])
            await told(events, (K.STOPPED, "destroyed"))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.1)
