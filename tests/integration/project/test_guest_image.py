"""The test guest itself: it boots small and quickly, obeys, and is gone when it is told to go."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linkmgr.testing import (
    Guest,
    GuestGone,
    GuestMonitorError,
    GuestTimeout,
    NetnsPeer,
    ProcessFailed,
    images,
)
from linkmgr.testing.process import execute

MAC = "52:54:00:00:00:01"
VM_IMAGES = Path(__file__).parents[3] / "vm-images"


def nic(model: str = "virtio-net-pci") -> list[str]:
    return [
        *("-netdev", "hubport,id=H,hubid=1", "-netdev", "hubport,id=SINK,hubid=1"),
        *("-device", f"{model},id=net0,netdev=H,mac={MAC},romfile="),
    ]


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@contextlib.asynccontextmanager
async def booted(
    workdir: Path, *, model: str = "virtio-net-pci", cmdline: str = ""
) -> AsyncIterator[Guest]:
    async with Guest(
        "g", nic_args=nic(model), workdir=workdir, cmdline=cmdline, paused=False
    ) as guest:
        await guest.wait_boot()
        yield guest


@pytest.mark.next_qemu
@pytest.mark.parametrize("model", ["virtio-net-pci", "vmxnet3"])
async def test_boots_and_obeys_its_command_line(model: str, tmp_path: Path) -> None:
    words = "lm.ip.eth0=10.0.0.2/24 lm.ip6.eth0=fd00::2/64"
    async with booted(tmp_path, model=model, cmdline=words) as guest:
        assert (await guest.run("hostname", check=True)).output == "g\n"
        assert await guest.mac("eth0") == MAC
        assert await guest.ipv4("eth0") == "10.0.0.2"
        assert "inet6 fd00::2/64" in (await guest.run("ip addr show dev eth0")).output
        assert await guest.ifindex("eth0") == 2
        assert (await guest.pci_address("eth0")).startswith("0000:00:")
        for program in ("iperf3 --version", "tcpdump --version"):
            assert (await guest.run(program)).status == 0


@pytest.mark.next_qemu
@pytest.mark.parametrize("model", ["virtio-net-pci", "vmxnet3"])
async def test_the_carrier_follows_the_monitor(model: str, tmp_path: Path) -> None:
    async with booted(tmp_path, model=model) as guest:
        assert await guest.carrier("eth0")
        before = await guest.carrier_changes("eth0")
        await guest.qmp("set_link", name="net0", up=False)
        await guest.wait_carrier("eth0", up=False)
        await guest.qmp("set_link", name="net0", up=True)
        await guest.wait_carrier("eth0", up=True)
        assert await guest.carrier_changes("eth0") == before + 2


async def test_a_paused_guest_boots_when_it_is_told(tmp_path: Path) -> None:
    async with Guest("g", nic_args=nic(), workdir=tmp_path) as guest:
        assert (await guest.qmp("query-status"))["status"] == "prelaunch"
        with pytest.raises(GuestTimeout):
            await guest.wait_boot(timeout=0.2)
        await guest.cont()
        await guest.wait_boot()


async def test_commands_tell_status_and_exact_output(tmp_path: Path) -> None:
    async with booted(tmp_path) as guest:
        assert (await guest.run("exit 7")).status == 7
        assert (await guest.run("( syntax")).status == 2
        assert (await guest.run("echo out; echo err >&2")).output == "out\nerr\n"
        weird = 'it\'s "quoted" $HOME `id` \\n % é\n\nand\tlonger'
        assert (await guest.run(f"cat <<'END'\n{weird}\nEND")).output == weird + "\n"
        assert (await guest.run(r"printf 'no end\377\000.'")).output == "no end\\xff\0."
        assert len((await guest.run("seq 100000")).output) == 588895
        assert (await guest.run('read -r line; echo "<$line>"')).output == "<>\n"
        with pytest.raises(ProcessFailed, match="status 3: broken"):
            await guest.run("echo broken; exit 3", check=True)


async def test_one_channel_answers_while_the_other_is_busy(tmp_path: Path) -> None:
    async with booted(tmp_path) as guest:
        waits = "touch /run/busy; until [ -e /run/go ]; do usleep 10000; done; echo slept"
        busy = asyncio.create_task(guest.run(waits, channel=1))
        here = "until [ -e /run/busy ]; do usleep 10000; done; echo here"
        assert (await guest.run(here)).output == "here\n"
        assert not busy.done()
        await guest.run("touch /run/go", check=True)
        assert (await busy).output == "slept\n"


async def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    async with booted(tmp_path) as guest:
        with pytest.raises(GuestTimeout, match="so far it said 'first"):
            await guest.run("echo first; sleep 4711 & sleep 4711", timeout=2)
        assert (await guest.run("echo next")).output == "next\n"
        assert (await guest.run("pidof sleep")).status == 1

        cancelled = asyncio.create_task(guest.run("sleep 4711"))
        await asyncio.sleep(0.3)
        cancelled.cancel()
        assert (await guest.run("echo next")).output == "next\n"


async def test_a_job_runs_until_it_is_stopped(tmp_path: Path) -> None:
    async with booted(tmp_path) as guest:
        job = await guest.spawn("ping 127.0.0.1")
        assert (await guest.ping("::1")).lost == 0
        with pytest.raises(TimeoutError):
            await job.wait(0.2)
        stopped = await job.stop()
        assert stopped.status == 128 + signal.SIGTERM
        assert "64 bytes from 127.0.0.1" in stopped.output
        assert await job.stop() == stopped
        quick = await guest.spawn("sh -c 'echo done; exit 4'")
        assert await quick.wait() == type(stopped)(4, "done\n")


async def test_a_hotplug_is_seen_in_the_uevents(tmp_path: Path) -> None:
    async with booted(tmp_path) as guest:
        before = await guest.uevent_seqnum()
        await guest.qmp("device_add", driver="virtserialport", id="hot", name="hot")
        await asyncio.sleep(0.3)
        assert await guest.uevent_seqnum() > before
        assert any("add" in event and "virtio-ports" in event for event in await guest.uevents())


@pytest.mark.next_qemu
async def test_frames_of_a_guest_on_a_network_are_counted_at_both_ends(tmp_path: Path) -> None:
    addresses = ["10.1.0.1/24", "fd00:1::1/64"]
    lease = ("10.1.0.50", "10.1.0.99")
    async with (
        NetnsPeer("blue", "blue0", addresses=addresses, dhcp_range=lease) as peer,
        booted(tmp_path, cmdline="lm.dhcp=eth0 lm.ip6.eth0=fd00:1::2/64") as guest,
        tap_to(peer, guest),
    ):
        await guest.wait_ipv4("eth0", "10.1.0.")
        assert (await guest.ping("10.1.0.1")).lost == 0
        assert (await guest.ping("10.1.0.7")).received == 0
        assert (await peer.ping("fd00:1::2")).lost == 0
        to_peer, to_guest = await peer.mac("eth0"), await guest.mac("eth0")
        async with guest.counting("eth0") as at_guest, peer.counting("eth0", tag="red") as at_peer:
            sent = await guest.send_frames("eth0", to_peer, count=500, tag="red")
            await guest.send_frames("eth0", to_peer, count=10, tag="other")
            async with peer.sending("eth0", to_guest, tag="blue", rate=500) as sending:
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.1)
        assert (sent.sent, sent.failed) == (500, 0)
        assert (at_peer.report.unique("red"), at_peer.report.foreign) == (500, 10)
        assert at_guest.report.tags.keys() == {"blue"}
        assert at_guest.report.unique("blue") == sending.report.sent
        assert await guest.tcp_throughput(peer, "10.1.0.1", seconds=1) > 1e6


@contextlib.asynccontextmanager
async def tap_to(peer: NetnsPeer, guest: Guest) -> AsyncIterator[None]:
    """Plug the guest's hub into the peer's cable, with a bridge and a tap of QEMU's own making."""
    await guest.qmp("set_link", name="net0", up=False)
    for line in (
        "link add name br0 type bridge",
        "link set br0 addrgenmode none up",
        f"link set {peer.ifname_outside} master br0",
        "tuntap add tap0 mode tap",
        "link set tap0 addrgenmode none master br0 up",
    ):
        await execute(["ip", *line.split()])
    arguments = {"ifname": "tap0", "script": "no", "downscript": "no", "vnet_hdr": False}
    try:
        await guest.qmp("netdev_add", type="tap", id="T", **arguments)
        await guest.qmp("netdev_add", type="hubport", id="P", hubid=1, netdev="T")
        await guest.qmp("set_link", name="net0", up=True)
        yield
    finally:
        for name in ("P", "T"):
            await guest.qmp("netdev_del", id=name)
        for name in ("tap0", "br0"):
            await execute(["ip", "link", "del", name])


@pytest.mark.next_qemu
async def test_the_qemu_of_the_tests_loads_no_module_of_another(qemu: str) -> None:
    listed = await execute([*shlex.split(qemu), "-device", "help"])
    assert '"virtio-net-pci"' in listed.output


@pytest.mark.next_qemu
async def test_a_qemu_that_does_not_start_says_why(tmp_path: Path) -> None:
    guest = Guest("g", nic_args=["-device", "no-such-nic"], workdir=tmp_path)
    with pytest.raises(GuestGone, match=r"(?s)status 1.*no-such-nic"):
        await guest.start()
    missing = Guest("m", nic_args=nic(), workdir=tmp_path, qemu="/no/such/qemu")
    with pytest.raises(GuestGone, match="/no/such/qemu"):
        await missing.start()
    await missing.stop()
    with pytest.raises(GuestGone, match="not running"):
        await missing.run("true")


async def test_monitor_commands_that_qemu_refuses_are_errors(tmp_path: Path) -> None:
    async with Guest("g", nic_args=nic(), workdir=tmp_path) as guest:
        with pytest.raises(GuestMonitorError, match=r"set_link.*nobody"):
            await guest.qmp("set_link", name="nobody", up=True)
        assert guest.qmp_path.is_socket()
        assert guest.qmp2_path.is_socket()


async def test_a_panic_ends_qemu(tmp_path: Path) -> None:
    async with booted(tmp_path) as guest:
        with pytest.raises(GuestGone, match="sysrq triggered crash"):
            await guest.run("echo c >/proc/sysrq-trigger", timeout=20)
        await guest.wait_exit()
        assert not guest.running


async def test_a_guest_that_was_killed_tells_everyone(tmp_path: Path) -> None:
    async with booted(tmp_path) as guest:
        waiting = asyncio.create_task(guest.run("sleep 100"))
        await asyncio.sleep(0.1)
        guest.kill()
        assert await guest.wait_exit() == -signal.SIGKILL
        with pytest.raises(GuestGone, match="status -9"):
            await waiting
        with pytest.raises(GuestGone):
            await guest.qmp("query-status")


async def test_stop_ends_a_stopped_qemu_and_closes_everything(tmp_path: Path) -> None:
    before = open_fds()
    async with booted(tmp_path) as guest:
        guest.signal(signal.SIGSTOP)
        with pytest.raises(GuestTimeout):
            await guest.run("true", timeout=0.2)
        pid = guest.pid
    await guest.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert not guest.qmp_path.exists()
    assert open_fds() == before


async def test_stop_finishes_although_it_is_cancelled(tmp_path: Path) -> None:
    guest = Guest("g", nic_args=nic(), workdir=tmp_path)
    await guest.start()
    pid = guest.pid
    stopping = asyncio.create_task(guest.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert not Path(f"/proc/{pid}").exists()


def test_the_image_is_small() -> None:
    image = images() / "initramfs.gz"
    assert image.stat().st_size < 12_000_000
    assert gzip.decompress(image.read_bytes()).startswith(b"070701")


def test_the_same_inputs_make_the_same_image() -> None:
    again = images() / "initramfs.gz.again"
    inputs = {"root": images() / "root", "frames": images() / "frames", "init": VM_IMAGES / "init"}
    arguments = [f"--{name}={path}" for name, path in inputs.items()]
    try:
        subprocess.run([VM_IMAGES / "mkinitramfs.py", *arguments, f"--output={again}"], check=True)
        assert again.read_bytes() == (images() / "initramfs.gz").read_bytes()
    finally:
        again.unlink(missing_ok=True)
