"""A domain without a monitor for us: its cables move through libvirt's own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from linkmgr import LinkManager, LinkState, NicState
from linkmgr.errors import CommandFailed, MonitorGone, MonitorTimeout, MonitorUnreachable
from linkmgr.hypervisors.qemu.qmp import Monitor, QmpCommand
from linkmgr.hypervisors.qemu.qmp.connector import Connector
from linkmgr.hypervisors.qemu.qmp.info_network import parse_info_network
from linkmgr.libvirt.client.connection import Libvirt
from linkmgr.libvirt.monitor.passthrough import LibvirtConnector
from linkmgr.model import MonitorTransport, VmState
from linkmgr.testing.process import until
from linkmgr.wirings.hub.qemu_args import hub_number
from tests.integration.lab import SUBNETS, Lab
from tests.integration.libvirtd import DomainGuest, Libvirtd, private_libvirtd, tiny_domain

MAC = "52:54:00:00:01:00"
NIC = "web1/ua-net0"
HUB = hub_number("ua-net0")
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
#: As `linkmgr prepare` writes it, less the monitor.
WIRING = f"""<qemu:commandline xmlns:qemu='{QEMU}'>
    <qemu:arg value='-netdev'/><qemu:arg value='hubport,id=lm-hub-ua-net0,hubid={HUB}'/>
    <qemu:arg value='-netdev'/><qemu:arg value='hubport,id=lm-sink-ua-net0,hubid={HUB}'/>
  </qemu:commandline>
  <qemu:override xmlns:qemu='{QEMU}'><qemu:device alias='ua-net0'><qemu:frontend>
    <qemu:property name='netdev' type='string' value='lm-hub-ua-net0'/>
  </qemu:frontend></qemu:device></qemu:override>"""
INTERFACE = f"""<interface type='ethernet'><mac address='{MAC}'/><target dev='lmweb1'/>
    <model type='virtio'/><link state='down'/><alias name='ua-net0'/></interface>"""
STATIC = " ".join(f"lm.ip.eth0=10.{n}.0.2/24" for n in (1, 2))


@asynccontextmanager
async def connected(libvirtd: Libvirtd) -> AsyncIterator[Libvirt]:
    libvirt = Libvirt(libvirtd.uri, run_dir=libvirtd.run / "libvirt/qemu")
    task = asyncio.create_task(libvirt.run())
    try:
        yield libvirt
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)  # what libvirt wants freed is freed in the loop


def domain(libvirtd: Libvirtd) -> str:
    return tiny_domain(libvirtd, "web1", [INTERFACE], cmdline=STATIC, more=WIRING)


@pytest.mark.timeout(240)
@pytest.mark.newer_debian
async def test_a_cable_is_plugged_swapped_and_pulled_through_libvirt_also_after_its_kill(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        libvirtd = await stack.enter_async_context(private_libvirtd())
        libvirt = await stack.enter_async_context(connected(libvirtd))

        def connectors(address: str) -> Connector:
            return LibvirtConnector(libvirt, address.partition(":")[2])

        links = LinkManager(timeout=5.0, watch=False, connectors=connectors)
        lab = Lab(links, tmp_path, stack=stack)
        await stack.enter_async_context(links)
        for name in ("blue", "green"):
            await lab.network(name)
        await libvirtd.define(domain(libvirtd))
        with pytest.raises(MonitorUnreachable, match="domain web1 does not run"):
            await links.add_vm("web1", "libvirt:web1")
        await libvirtd.virsh("start", "web1")
        (nic,) = await links.add_vm("web1", "libvirt:web1")
        assert (nic.state, nic.mac) == (NicState.UNPLUGGED, MAC)
        vm = (await links.vms())[0]
        assert (vm.transport, vm.state) == (MonitorTransport.LIBVIRT, VmState.ANSWERS)
        async with DomainGuest(libvirtd, "web1") as guest:
            await guest.connect()
            assert not await guest.carrier("eth0")
            await _on(lab, guest, "blue")
            async with guest.sending("eth0", "ff:ff:ff:ff:ff:ff", rate=200, tag="guest"):
                for name in ("green", "blue", "green"):
                    await _on(lab, guest, name)
            await _killed(lab, libvirtd, guest)
            await links.unplug(NIC)
            assert not await guest.carrier("eth0")
            info = parse_info_network(await libvirtd.hmp("web1", "info network"))
            assert info.hubs[HUB].backends == ()
            assert "custom-monitor" in libvirtd.log("web1")
        await libvirtd.virsh("destroy", "web1")

        async def gone() -> bool:
            return (await links.vms())[0].state is VmState.GONE

        await until(gone, timeout=5, what="the VM is gone")


async def _on(lab: Lab, guest: DomainGuest, name: str) -> None:
    """Plug, and look from all sides."""
    await lab.links.plug(NIC, name)
    (nic,) = await lab.links.nics()
    assert (nic.state, nic.link) == (NicState.PLUGGED, LinkState.UP)
    await guest.wait_carrier("eth0", True)
    for network, number in SUBNETS.items():
        if network in lab.peers:
            answered = (await guest.ping(f"10.{number}.0.1", count=3, interval=0.1)).received
            assert bool(answered) is (network == name), f"on {name}: {network} answers {answered}"


async def _killed(lab: Lab, libvirtd: Libvirtd, guest: DomainGuest) -> None:
    """libvirtd is gone in the middle of a verb: the cable stays, and is known when it is back."""
    os.kill(libvirtd.pid, signal.SIGSTOP)
    verb = asyncio.create_task(lab.links.plug(NIC, "blue"))
    await asyncio.sleep(0.3)
    await libvirtd.stop(signal.SIGKILL)
    with pytest.raises((MonitorGone, MonitorUnreachable)):
        await asyncio.wait_for(verb, 20)
    assert (await guest.ping("10.2.0.1", count=2, interval=0.1)).received
    await libvirtd.start()

    async def back() -> bool:
        return (await lab.links.vms())[0].state is VmState.ANSWERS

    await until(back, timeout=15, what="the VM answers")
    assert (await lab.links.nics())[0].state is NicState.PLUGGED
    await _on(lab, guest, "blue")
    await _on(lab, guest, "green")


@pytest.mark.timeout(120)
async def test_a_monitor_through_libvirt_is_one_like_any_other() -> None:
    async with private_libvirtd() as libvirtd, connected(libvirtd) as libvirt:
        await libvirtd.define(domain(libvirtd))
        connector = LibvirtConnector(libvirt, "web1")
        for which, said in (("web1", "does not run"), ("web9", "Domain not found")):
            other = LibvirtConnector(libvirt, which)
            with pytest.raises(MonitorUnreachable, match=said) as refused:
                await other.connect(which, 3)
            assert other.proves_absence(refused.value)
        await libvirtd.virsh("start", "web1")
        uuid = await libvirtd.virsh("domuuid", "web1")
        pid = DomainGuest(libvirtd, "web1").pid
        monitor = await connector.connect("of VM web1", 5)
        assert monitor.pid == pid
        events = monitor.events()
        await _asked(monitor, uuid)
        await libvirtd.virsh("suspend", "web1")
        await libvirtd.virsh("resume", "web1")
        assert [(await anext(events)).name for _ in range(2)] == ["STOP", "RESUME"]

        # A QEMU that does not answer: late, not gone; and no other monitor waits for it.
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(MonitorTimeout) as late:
            await monitor.execute("query-status", timeout=0.5)
        assert late.value.sent
        assert (await libvirt.domain(uuid, timeout=5)).active, "it is stopped all the while"
        os.kill(pid, signal.SIGCONT)
        await asyncio.wait_for(monitor.wait_responsive(), 5)

        # libvirtd goes: nobody waits, the reason is told, and it is not taken for QEMU's end.
        os.kill(libvirtd.pid, signal.SIGSTOP)
        call = asyncio.create_task(monitor.execute("query-status"))
        await asyncio.sleep(0.2)
        await libvirtd.stop(signal.SIGKILL)
        with pytest.raises(MonitorGone, match=r"libvirt is gone") as cut_off:
            await asyncio.wait_for(call, 3)
        assert cut_off.value.sent
        with pytest.raises(MonitorGone, match="was not sent") as unsent:
            await monitor.execute("query-status")
        assert not unsent.value.sent
        assert (await anext(events)).name == "DISCONNECTED"
        with pytest.raises(MonitorUnreachable) as away:
            await connector.connect("of VM web1", 0.3)
        assert not connector.proves_absence(away.value)
        await monitor.close()

        await libvirtd.start()
        async with await connector.connect("of VM web1", 10) as again:
            assert again.pid == pid
            assert (await again.execute("query-status"))["running"]
            os.kill(pid, signal.SIGSTOP)
            stuck = await connector.connect("of VM web1", 5)
            call = asyncio.create_task(stuck.execute("query-status"))
            await asyncio.sleep(0.2)
            await asyncio.wait_for(stuck.close(), 2)  # QEMU is stopped all the while
            with pytest.raises(MonitorGone, match="linkmgr closed it"):
                await call
            os.kill(pid, signal.SIGCONT)
            events = again.events()
            await libvirtd.virsh("destroy", "web1")
            names = [event.name async for event in events]
            assert names[-1] == "DISCONNECTED"
            with pytest.raises(MonitorGone, match="the domain has stopped: destroyed"):
                await again.execute("query-status")


async def _asked(monitor: Monitor, uuid: str) -> None:
    """Answers, errors, descriptors, several at once."""
    assert await monitor.execute("query-uuid") == {"UUID": uuid}
    assert f"hub {HUB}" in await monitor.hmp("info network")
    with pytest.raises(CommandFailed, match="QEMU refused netdev_del: Device 'nope'") as failed:
        await monitor.execute("netdev_del", {"id": "nope"})
    assert failed.value.error_class == "DeviceNotFound"
    with pytest.raises(CommandFailed) as unknown:
        await monitor.execute("no-such-command")
    assert unknown.value.error_class == "CommandNotFound"
    ours, theirs = os.pipe()
    try:
        # It is kept under its name, and closed again, by QEMU and by us.
        await monitor.execute("query-status", fds={"lm-test": theirs})
        await monitor.execute("closefd", {"fdname": "lm-test"})
        with pytest.raises(CommandFailed, match="lm-test"):
            await monitor.execute("closefd", {"fdname": "lm-test"})
        with pytest.raises(CommandFailed):
            await monitor.execute("no-such-command", fds={"lm-test": theirs})
        with pytest.raises(CommandFailed, match="lm-test"):  # taken back after the failure
            await monitor.execute("closefd", {"fdname": "lm-test"})
    finally:
        os.close(theirs)
    assert os.read(ours, 1) == b""  # nobody holds the other end: not QEMU, not libvirt, not we
    os.close(ours)
    answers = await monitor.batch(
        [QmpCommand("query-status"), QmpCommand("no-such-command"), QmpCommand("query-name")]
    )
    assert isinstance(answers[0], dict)
    assert isinstance(answers[1], CommandFailed)
    assert answers[2] == {"name": "web1"}
